"""MLflow under the reference's names, so that its databases and ours read alike; a run never waits for it.

What is to be kept is in the run's folder first: `metrics.jsonl`, files, and `tracking.json`, which says what was sent.
A thread sends it on. A server that goes away is tried again later, and what is left when the run ends is sent when the
same command is run again.
"""

import contextlib
import json
import logging as std_logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
from absl import logging

from seqrec_jax.errors import Interrupted
from seqrec_jax.files import write_text
from seqrec_jax.training.metrics_log import METRICS

TRACKING = "tracking.json"
SECONDS_BETWEEN_SENDS = 2.0
MOST_SECONDS_BETWEEN_TRIES = 60.0
TRIES_AT_THE_END = 3
METRICS_PER_REQUEST = 1000
PARENT_TAG = "mlflow.parentRunId"


def _connect(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the thread tries again by itself
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow", "urllib3"):
        std_logging.getLogger(chatty).setLevel(std_logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = uri.startswith("sqlite:///")
    folder = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" if local else None
    return client.create_experiment(name, artifact_location=folder.as_uri() if folder else None)


@gin.configurable
class Tracker:
    """A run in MLflow, fed by a thread.

    Args:
        uri: of the tracking store; None keeps nothing.
        experiment: its name.
        run_name: the run's name; None lets MLflow choose one.
        parent_run_id: of the run that this one is a part of.
        patience: seconds that the end of a run waits for what is left to send.
    """

    def __init__(
        self,
        uri: str | None = "sqlite:///mlruns.sqlite",
        experiment: str = "seqrec_jax",
        run_name: str | None = None,
        parent_run_id: str | None = None,
        patience: float = 60.0,
    ):
        self._uri, self._experiment, self._name, self._parent = uri, experiment, run_name, parent_run_id
        self._patience = patience
        self._client: Any = None
        self._folder: Path | None = None
        self._wanted: dict[str, Any] = {"params": {}, "artifacts": [], "status": None}
        self._sent: dict[str, Any] = {}
        self._wake, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None

    @property
    def store(self) -> dict[str, Any]:
        """The bindings that others share who belong to the same experiment."""
        return {"uri": self._uri, "experiment": self._experiment}

    def start(self, run_dir: Path) -> None:
        """Goes on with the run that a folder belongs to, or begins one, in the background."""
        if self._uri is None:
            return
        self._folder = run_dir
        path = run_dir / TRACKING
        fresh: dict[str, Any] = {
            "uri": self._uri,
            "run_id": None,
            "metrics": 0,
            "params": [],
            "artifacts": {},
            "status": None,
        }
        known = json.loads(path.read_text()) if path.exists() else fresh
        self._sent = known if known["uri"] == self._uri else fresh
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def run_id(self, timeout: float) -> str | None:
        """The run's id, waited for up to `timeout` seconds; None where it is not known by then."""
        until = time.monotonic() + timeout
        while self._thread is not None and not self._sent["run_id"] and time.monotonic() < until:
            self._wake.set()
            time.sleep(0.1)
        return self._sent.get("run_id")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keeps parameters; those that the run has already are left as they are."""
        self._wanted["params"] |= {name: str(value) for name, value in params.items()}
        self._wake.set()

    def log_artifact(self, path: Path) -> None:
        """Keeps a copy of a file or a folder as it is when it is sent."""
        self._wanted["artifacts"].append(path)
        self._wake.set()

    def close(self, status: str) -> None:
        """Sends what is left, and marks the run FINISHED, FAILED or KILLED."""
        if self._thread is None:
            return
        self._wanted["status"], self._closing = status, True
        self._wake.set()
        self._thread.join(self._patience)
        if self._thread.is_alive() or not self._all_sent():
            logging.warning(
                "tracking store %s: not all could be sent; it is kept in %s, and running the same command again "
                "sends it", self._uri, self._folder,
            )  # fmt: skip
        self._thread = None

    @contextlib.contextmanager
    def until_closed(self) -> Iterator[None]:
        """Closes the run in the end, with the status that the block ended with."""
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except Interrupted:
            status = "KILLED"
            raise
        finally:
            self.close(status)

    def _all_sent(self) -> bool:
        return self._sent["status"] == self._wanted["status"]

    def _run(self) -> None:
        pause, told, tries = SECONDS_BETWEEN_SENDS, False, 0
        while True:
            closing = self._closing
            try:
                self._send(closing)
                pause = SECONDS_BETWEEN_SENDS
                if told:
                    logging.info("tracking store %s: is there again", self._uri)
                told = False
                if closing:
                    return
            except Exception as error:
                if not told:
                    logging.warning(
                        "tracking store %s: %s; the run goes on, and what it tells is kept in %s until then",
                        self._uri, " ".join(str(error).split())[:200], self._folder,
                    )  # fmt: skip
                told, self._client = True, None
                tries += closing
                if tries == TRIES_AT_THE_END:
                    return
                pause = min(2 * pause, MOST_SECONDS_BETWEEN_TRIES)
            self._wake.wait(SECONDS_BETWEEN_SENDS if self._closing else pause)
            self._wake.clear()

    def _save(self) -> None:
        assert self._folder is not None
        write_text(self._folder / TRACKING, json.dumps(self._sent, indent=1) + "\n")

    def _send(self, closing: bool) -> None:
        """Sends what is new."""
        if self._client is None:
            self._client = _connect(str(self._uri))
            if self._sent["run_id"] is None:
                experiment = _experiment(self._client, str(self._uri), self._experiment)
                tags = {} if self._parent is None else {PARENT_TAG: self._parent}
                self._sent["run_id"] = self._client.create_run(experiment, run_name=self._name, tags=tags).info.run_id
                self._save()
            elif self._sent["status"] is not None:
                self._client.update_run(self._sent["run_id"], status="RUNNING")
                self._sent["status"] = None
        self._send_params()
        self._send_metrics()
        self._send_artifacts()
        if closing and not self._all_sent():
            self._client.set_terminated(self._sent["run_id"], self._wanted["status"])
            self._sent["status"] = self._wanted["status"]
            self._save()

    def _send_params(self) -> None:
        from mlflow.entities import Param

        new = {name: value for name, value in dict(self._wanted["params"]).items() if name not in self._sent["params"]}
        if new:
            self._client.log_batch(self._sent["run_id"], params=[Param(name, value) for name, value in new.items()])
            self._sent["params"] += list(new)
            self._save()

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        assert self._folder is not None
        path = self._folder / METRICS
        if not path.exists() or path.stat().st_size <= self._sent["metrics"]:
            return
        with path.open("rb") as file:
            file.seek(self._sent["metrics"])
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        metrics = []
        for record in map(json.loads, lines.splitlines()):
            step = record["step"] if record["kind"] == "step" else record["epoch"]
            metrics += [
                Metric(name, value, int(1000 * record["time"]), step)
                for name, value in record["metrics"].items()
                if value is not None
            ]
        for first in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(self._sent["run_id"], metrics=metrics[first : first + METRICS_PER_REQUEST])
        self._sent["metrics"] += len(lines)
        self._save()

    def _send_artifacts(self) -> None:
        for path in list(self._wanted["artifacts"]):
            if not path.exists():
                continue
            written = path.stat().st_mtime
            if self._sent["artifacts"].get(path.name) == written:
                continue
            if path.is_dir():
                self._client.log_artifacts(self._sent["run_id"], str(path), path.name)
            else:
                self._client.log_artifact(self._sent["run_id"], str(path))
            self._sent["artifacts"][path.name] = written
            self._save()
