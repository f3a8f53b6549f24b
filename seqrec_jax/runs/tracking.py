"""MLflow under the reference's names, so that its databases and ours read alike; a run never waits for it.

What is to be kept is in the run's folder first; `tracking.json` says what was sent. A thread sends it on, and tries
again where a server goes away. What is left when the run ends is sent when the same command is run again. A run
that was deleted in MLflow is begun anew there, with all that the folder holds.
"""

import json
import logging as std_logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from seqrec_jax.errors import InputError, in_short
from seqrec_jax.files import read_json, write_text
from seqrec_jax.runs.folder import METRICS, TRACKING
from seqrec_jax.runs.settings import Tracking

SECONDS_BETWEEN_SENDS, MOST_SECONDS_BETWEEN_TRIES = 2.0, 60.0
TRIES_AT_THE_END = 3
METRICS_PER_REQUEST = 1000
NOTHING_SENT: dict[str, Any] = {"run_id": None, "metrics": 0, "params": [], "artifacts": {}, "status": None}


def _connect(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the thread tries again by itself
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow", "urllib3"):
        std_logging.getLogger(chatty).setLevel(std_logging.ERROR)
    return MlflowClient(tracking_uri=uri)


class Tracker:
    """A run in MLflow, fed by a thread; `settings` of None keep nothing."""

    def __init__(self, settings: Tracking | None):
        self.settings = settings or Tracking(uri=None)
        self._client: Any = None
        self._params: dict[str, str] = {}
        self._artifacts: list[Path] = []
        self._sent: dict[str, Any] = {}
        self._status: str | None = None  # what the run is closed with; None until then
        self._refused = ""  # what is to be done before anything can be sent
        self._folder, self._wake, self._waited = Path(), threading.Event(), False
        self._thread: threading.Thread | None = None

    def start(self, run_dir: Path) -> None:
        """Goes on with the run that a folder belongs to, or begins one, in the background."""
        uri = self.settings.uri
        if uri is None:
            return
        self._folder, path = run_dir, run_dir / TRACKING
        self._sent = {"uri": uri} | NOTHING_SENT
        try:
            sent = read_json(path, "the run is sent anew") if path.exists() else self._sent
            if not isinstance(sent, dict) or not self._sent.keys() <= sent.keys():
                raise InputError(f"{path}: is no record of what was sent; the run is sent anew")
            self._sent = sent if sent["uri"] == uri else self._sent
        except InputError as error:
            logging.warning("%s", error)
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def run_id(self, timeout: float) -> str | None:
        """The run's id; the first call waits up to `timeout` seconds for it. None where it is not known."""
        until, self._waited = time.monotonic() + (0 if self._waited else timeout), True
        while (thread := self._thread) is not None and thread.is_alive() and not self._sent["run_id"]:
            if time.monotonic() >= until:
                break
            self._wake.set()
            time.sleep(0.1)
        return self._sent.get("run_id")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keeps parameters; those that the run has already are left as they are."""
        self._params |= {name: str(value) for name, value in params.items()}
        self._wake.set()

    def log_artifact(self, path: Path) -> None:
        """Keeps a copy of a file or a folder as it is when it is sent."""
        self._artifacts.append(path)
        self._wake.set()

    def close(self, status: str) -> None:
        """Sends what is left, and marks the run FINISHED, FAILED or KILLED."""
        if self._thread is None:
            return
        self._status = status
        self._wake.set()
        self._thread.join(self.settings.patience)
        if self._thread.is_alive() or self._sent["status"] != status:
            remedy = self._refused or "running the same command again sends it"
            logging.warning("tracking store %s: not all could be sent; it is kept in %s, and %s", self.settings.uri,
                            self._folder, remedy)  # fmt: skip
        self._thread = None

    def _run(self) -> None:
        """Sends until the run is closed and all is sent, or the store stays away."""
        pause, warned, tries = SECONDS_BETWEEN_SENDS, False, 0
        while True:
            status = self._status
            try:
                self._send(status)
                if warned:
                    logging.info("tracking store %s: is there again", self.settings.uri)
                if status is not None:
                    return
                pause, warned = SECONDS_BETWEEN_SENDS, False
            except Exception as error:
                if not warned:
                    logging.warning(
                        "tracking store %s: %s; the run goes on, and what it reports is kept in %s until then",
                        self.settings.uri, in_short(error), self._folder,
                    )  # fmt: skip
                warned, self._client = True, None
                tries += status is not None
                if tries == TRIES_AT_THE_END or self._refused:
                    return
                pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)
            self._wake.wait(pause if self._status is None else SECONDS_BETWEEN_SENDS)
            self._wake.clear()

    def _record(self, **sent: Any) -> None:
        """Notes in the folder what was sent."""
        self._sent |= sent
        write_text(self._folder / TRACKING, json.dumps(self._sent, indent=1) + "\n")

    def _send(self, status: str | None) -> None:
        """Sends what is new, and the status of a run that is closed."""
        if self._client is None:
            self._begin()
        from mlflow.entities import Param

        client, sent = self._client, self._sent
        new = {name: value for name, value in dict(self._params).items() if name not in sent["params"]}
        if new:
            client.log_batch(sent["run_id"], params=[Param(name, value) for name, value in new.items()])
            self._record(params=[*sent["params"], *new])
        self._send_metrics()
        for path in list(self._artifacts):
            if not path.exists() or sent["artifacts"].get(path.name) == (written := path.stat().st_mtime):
                continue
            client.log_artifact(sent["run_id"], str(path))
            self._record(artifacts=sent["artifacts"] | {path.name: written})
        if status is not None and sent["status"] != status:
            client.set_terminated(sent["run_id"], status)
            self._record(status=status)

    def _begin(self) -> None:
        """Connects, and begins the run or goes on with it."""
        sent, settings, uri, name = self._sent, self.settings, str(self.settings.uri), self.settings.experiment
        client = self._client = _connect(uri)
        if sent["run_id"] is not None and not self._is_there():
            logging.warning("tracking store %s: run %s was deleted; a new one is begun", uri, sent["run_id"])
            sent |= NOTHING_SENT
        if sent["run_id"] is None:
            folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
            place = folder.as_uri() if uri.startswith("sqlite:///") else None
            found = client.get_experiment_by_name(name)
            if found and found.lifecycle_stage == "deleted":
                self._refused = f"experiment {name!r} was deleted: restore it, or bind Tracker.experiment to another"
                raise ValueError(self._refused)
            experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=place)
            tags = {} if settings.parent_run_id is None else {"mlflow.parentRunId": settings.parent_run_id}
            self._record(run_id=client.create_run(experiment, run_name=settings.run_name, tags=tags).info.run_id)
        elif sent["status"] is not None:
            client.update_run(sent["run_id"], status="RUNNING")
            sent["status"] = None

    def _is_there(self) -> bool:
        """Whether MLflow still has the run."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(self._sent["run_id"]).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        path, sent = self._folder / METRICS, self._sent
        if not path.exists() or path.stat().st_size <= sent["metrics"]:
            return
        with path.open("rb") as file:
            file.seek(max(0, sent["metrics"] - 1))
            if sent["metrics"] and file.read(1) != b"\n":  # Damaged lines were removed; MLflow knows what it has.
                sent["metrics"] = file.seek(0)
            lines = [line for line in file if line.endswith(b"\n")]
        metrics = []
        for record in map(json.loads, lines):
            at = int(1000 * record["time"]), record["step"] if record["kind"] == "step" else record["epoch"]
            metrics += [Metric(name, value, *at) for name, value in record["metrics"].items() if value is not None]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(sent["run_id"], metrics=metrics[first : first + METRICS_PER_REQUEST])
        self._record(metrics=sent["metrics"] + sum(map(len, lines)))
