"""MLflow under the reference's names, so that its databases and ours read alike."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin


@gin.configurable
class Tracker:
    """A run in MLflow.

    Args:
        uri: of the tracking store; None keeps nothing.
        experiment: its name.
        run_name: the run's name; None lets MLflow choose one.
    """

    def __init__(
        self, uri: str | None = "sqlite:///mlruns.sqlite", experiment: str = "seqrec_jax", run_name: str | None = None
    ):
        self._client: Any = None
        if uri is None:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        for chatty in ("alembic", "mlflow"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            local = uri.startswith("sqlite:///")
            folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" if local else None
            experiment_id = self._client.create_experiment(
                experiment, artifact_location=folder.as_uri() if folder else None
            )
        else:
            experiment_id = found.experiment_id
        self.run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keeps parameters, once a run."""
        if self._client is not None:
            from mlflow.entities import Param

            self._client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keeps metrics of a step; ours count epochs."""
        if self._client is not None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            self._client.log_batch(
                self.run_id, metrics=[Metric(name, float(value), now, step) for name, value in metrics.items()]
            )

    def log_artifact(self, path: Path) -> None:
        """Keeps a copy of a file."""
        if self._client is not None:
            self._client.log_artifact(self.run_id, str(path))

    def close(self, finished: bool) -> None:
        """Marks the run finished or failed."""
        if self._client is not None:
            self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")
