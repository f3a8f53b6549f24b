"""A baseline that is trained where it is not yet."""

import pytest

from seqrec_jax.data.split import leave_one_out
from seqrec_jax.errors import InputError
from seqrec_jax.model import storage
from seqrec_jax.studies import engine
from seqrec_jax.studies.trained_sasrec import trained_sasrec


class FakeProcess:
    """A run that is finished at once, or that fails."""

    trains, begun = False, []

    def __init__(self, job, cpus=None):
        FakeProcess.begun.append(job.command)
        if FakeProcess.trains:
            job.run_dir.mkdir()
            (job.run_dir / "results.json").write_text("{}")

    def status(self):
        return 0 if FakeProcess.trains else 2

    def stop(self):
        pass

    def last_line(self):
        return "DATASET has no interactions"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(engine, "JobProcess", FakeProcess)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LOOKS", 0.0)
    FakeProcess.trains, FakeProcess.begun = False, []


def test_it_is_trained_once_on_the_split_that_is_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "load", lambda folder: folder)
    FakeProcess.trains = True
    folder = str(tmp_path / "sasrec")
    for _ in range(2):
        assert trained_sasrec(folder, "shop", leave_one_out) == folder
    (command,) = FakeProcess.begun
    assert "--gin_file=gin/sasrec.gin" in command
    for bound in ("DATASET = 'shop'", f"RUN_DIR = {folder!r}", "SPLIT = @leave_one_out", "Tracker.uri = None"):
        assert f"--gin_bindings={bound}" in command


def test_what_it_cannot_be_trained_on_is_told(tmp_path):
    with pytest.raises(InputError, match="SASRec: DATASET has no interactions"):
        trained_sasrec(tmp_path / "sasrec", "nothing", leave_one_out)
