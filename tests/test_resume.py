"""A run that is killed, stopped or damaged goes on, and ends as an undisturbed one does, bit for bit."""

import dataclasses
import functools
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from etl.recbole import convert
from seqrec_jax.data.corpus import Corpus
from seqrec_jax.errors import InputError, Interrupted
from seqrec_jax.losses.proposals.knn import knn
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.model.recommender import Recommender
from seqrec_jax.model.spec import Architecture
from seqrec_jax.model.storage import load
from seqrec_jax.runs.run import Run
from seqrec_jax.runs.settings import Checkpoints, Reports, RunSettings
from seqrec_jax.runs.stopping import StopRequests
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.fit import fit
from seqrec_jax.training.optimizers import adamw

ARCHITECTURE = Architecture(hidden_size=32, n_layers=1)
CONFIG = TrainConfig(
    epochs=4, eval_every=2, train_batch_size=400, learning_rate=5e-3, optimizer=adamw, ema_decay=0.9,
    loss=functools.partial(sampled_softmax, n_negatives=64), proposal=functools.partial(knn, pool_size=20),
)  # fmt: skip
SETTINGS = RunSettings(checkpoints=Checkpoints(every_steps=5), reports=Reports(every_steps=4))
GIN = """
run.task = @pretrain
pretrain.corpus = @Corpus()
pretrain.architecture = @Architecture()
pretrain.config = @TrainConfig()
pretrain.settings = @RunSettings()
Corpus.datasets = %DATASET
pretrain.run_dir = %RUN_DIR
Architecture.hidden_size = 32
Architecture.n_layers = 1
TrainConfig.epochs = 4
TrainConfig.eval_every = 2
TrainConfig.train_batch_size = 400
TrainConfig.learning_rate = 5e-3
TrainConfig.optimizer = @adamw
TrainConfig.ema_decay = 0.9
TrainConfig.loss = @sampled_softmax
TrainConfig.proposal = @knn
TrainConfig.ranking = @Ranking()
sampled_softmax.n_negatives = 64
knn.pool_size = 20
Ranking.ks = (5, 10)
RunSettings.checkpoints = @Checkpoints()
RunSettings.reports = @Reports()
Checkpoints.every_steps = 5
Reports.every_steps = 4
"""
HALFWAY = 19  # steps; in the middle of an epoch of 8


def run(dataset, run_dir, settings=SETTINGS, **changes):
    """A run in this process, on four devices."""
    corpus = Corpus(dataset)
    return fit(
        Recommender.create(corpus, ARCHITECTURE), corpus, dataclasses.replace(CONFIG, **changes), run_dir,
        settings=settings,
    )  # fmt: skip


def start(dataset, run_dir, **variables) -> subprocess.Popen:
    """The same run from a Gin file in a process of its own, on as many devices."""
    gin_file = Path(run_dir).parent / "run.gin"
    gin_file.write_text(f"DATASET = '{dataset}'\nRUN_DIR = '{run_dir}'\n{GIN}")
    command = [sys.executable, "-m", "seqrec_jax.main", f"--gin_file={gin_file}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"} | variables
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(dataset, run_dir, **variables) -> str:
    """Runs to the end in a process of its own; returns what was printed."""
    process = start(dataset, run_dir, **variables)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def curve(run_dir: Path) -> list[tuple]:
    """Every line of the metrics, without times and memory."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = ("time", "memory", "per_second", "mfu", "waiting")
    return [
        (r["kind"], r["step"], r["epoch"], {n: v for n, v in r["metrics"].items() if not any(m in n for m in measured)})
        for r in records
    ]


def outcome(run_dir: Path) -> tuple:
    """What must be the same."""
    results = json.loads((run_dir / "results.json").read_text())
    return results["params_sha256"], results["valid"], results["test"], results["train"]["best_step"], curve(run_dir)


@pytest.fixture(scope="module")
def undisturbed(shop_folder, tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(shop_folder, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def halfway(shop_folder, tmp_path_factory) -> Path:
    """A run that was asked to stop in the middle of an epoch."""
    run_dir = tmp_path_factory.mktemp("halfway") / "run"
    asked = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequests, "asked", property(lambda self: next(asked) >= HALFWAY))
        with pytest.raises(Interrupted, match=f"stopped .* after step {HALFWAY};"):
            run(shop_folder, run_dir)
    assert json.loads((run_dir / "checkpoints" / str(HALFWAY) / "progress" / "metadata").read_text())["step"] == HALFWAY
    assert not (run_dir / "results.json").exists()
    return run_dir


@pytest.fixture
def stopped(halfway, tmp_path) -> Path:
    """A copy of the run that was stopped."""
    return shutil.copytree(halfway, tmp_path / "run")


def test_a_stopped_run_goes_on_within_the_epoch(shop_folder, undisturbed, stopped):
    run(shop_folder, stopped)
    assert outcome(stopped) == outcome(undisturbed)


def damage(run_dir: Path, how: str) -> str:
    latest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    victim = max(latest.glob("training/**/*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    content = bytearray(victim.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    victim.write_bytes(content if how == "flipped" else content[: len(content) // 2] if how == "truncated" else b"")
    return latest.name


@pytest.mark.parametrize(
    "how", ["truncated", *(pytest.param(of, marks=pytest.mark.slow) for of in ("emptied", "flipped"))]
)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_used(shop_folder, undisturbed, stopped, how, caplog):
    latest = damage(stopped, how)
    run(shop_folder, stopped)
    assert f"checkpoints/{latest}: training/" in caplog.text
    assert "is damaged; put aside as" in caplog.text
    assert (stopped / "damaged" / latest).is_dir()
    assert outcome(stopped) == outcome(undisturbed)


def best_of(run_dir: Path) -> int:
    latest = max(run_dir.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    return json.loads((latest / "progress" / "metadata").read_text())["best_step"]


@pytest.mark.parametrize(
    "how", ["flipped", *(pytest.param(of, marks=pytest.mark.slow) for of in ("missing", "checksums", "unlisted"))]
)
def test_a_damaged_best_checkpoint_is_named_and_made_again(shop_folder, undisturbed, stopped, how, caplog):
    best = best_of(stopped)
    place = stopped / "checkpoints" / str(best)
    assert best != HALFWAY
    if how == "flipped":
        victim = max(place.glob("params/**/*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
        content = bytearray(victim.read_bytes())
        content[len(content) // 3] ^= 4
        victim.write_bytes(content)
    elif how == "missing":
        shutil.rmtree(place)
    elif how == "checksums":
        (place / "checksums.json").write_text("{}")
    else:
        (place / "params" / "more").write_text("x")
    run(shop_folder, stopped)
    assert f"checkpoints/{HALFWAY}: the best one, {best}, " in caplog.text
    assert outcome(stopped) == outcome(undisturbed)


@pytest.mark.slow
def test_checkpoints_of_another_run_are_not_gone_on_from(shop_folder, stopped, halfway, tmp_path):
    theirs = tmp_path / "theirs"
    run(shop_folder, theirs, seed=7, epochs=2)
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(theirs / "checkpoints", stopped / "checkpoints")
    with pytest.raises(InputError, match=r"checkpoints/16: belongs to another run; move it away, or bind another"):
        run(shop_folder, stopped)
    assert (stopped / "checkpoints" / "16").is_dir()
    with pytest.raises(InputError, match=r"the checkpoint is damaged \(belongs to another run\)"):
        load(stopped)


def test_what_lies_beside_the_checkpoints_is_verified(shop_folder, undisturbed, tmp_path):
    finished = shutil.copytree(undisturbed, tmp_path / "run")
    content = bytearray((finished / "tokenizer.model").read_bytes())
    content[100] ^= 1
    (finished / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged \(tokenizer.model is damaged\)"):
        load(finished)


def test_a_checkpoint_that_cannot_be_read_back_ends_the_run(shop_folder, tmp_path, monkeypatch):
    def lose(params, spec):
        raise ValueError("what was written cannot be read back")

    monkeypatch.setattr("seqrec_jax.training.checkpoint._check_readable", lose)
    with pytest.raises(InputError, match=r"the checkpoint could not be written \(.*cannot be read back"):
        run(shop_folder, tmp_path / "run")


@pytest.mark.slow
def test_a_run_without_any_whole_checkpoint_starts_again(shop_folder, undisturbed, stopped):
    for folder in (stopped / "checkpoints").iterdir():
        (folder / "checksums.json").unlink()
    run(shop_folder, stopped)
    assert outcome(stopped) == outcome(undisturbed)


@pytest.mark.slow
def test_another_number_of_devices_is_said_and_changes_only_rounding(shop_folder, undisturbed, stopped):
    printed = finish(shop_folder, stopped, JAX_NUM_CPU_DEVICES="2")
    assert "was written on 4 devices, and there are 2 now" in printed
    for ours, theirs in zip(curve(stopped), curve(undisturbed), strict=True):
        assert ours[:3] == theirs[:3]
        for name in ("step/loss", "train/train_loss"):
            if name in theirs[3]:
                assert ours[3][name] == pytest.approx(theirs[3][name], rel=1e-4)


def wait_for_a_checkpoint(run_dir: Path, process: subprocess.Popen) -> None:
    while process.poll() is None and not list(run_dir.glob("checkpoints/[0-9]*/checksums.json")):
        time.sleep(0.02)


def kill_at_random(shop_folder, undisturbed, run_dir: Path, kills: int, seconds: float) -> None:
    rng, killed = random.Random(0), 0
    while killed < kills:
        process = start(shop_folder, run_dir)
        wait_for_a_checkpoint(run_dir, process)
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.communicate()
        if (run_dir / "results.json").exists():
            assert outcome(run_dir) == outcome(undisturbed)
            shutil.rmtree(run_dir)
    finish(shop_folder, run_dir)
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_killed_run_ends_as_an_undisturbed_one(shop_folder, undisturbed, tmp_path):
    kill_at_random(shop_folder, undisturbed, tmp_path / "run", kills=1, seconds=0.5)


@pytest.mark.slow
def test_thirty_kills(shop_folder, undisturbed, tmp_path):
    kill_at_random(shop_folder, undisturbed, tmp_path / "run", kills=30, seconds=8)


def send(shop_folder, run_dir: Path, number: int) -> None:
    """Sends a signal once the run has taken steps."""
    process = start(shop_folder, run_dir)
    for line in process.stdout:
        if "loss" in line and " of " in line:
            break
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, printed
    last = printed.splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name} after step")
    assert last.endswith("its checkpoint is written, and the same command goes on from there")
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(shop_folder, undisturbed, tmp_path):
    send(shop_folder, tmp_path / "run", signal.SIGTERM)
    run(shop_folder, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


@pytest.mark.slow
def test_five_signals(shop_folder, undisturbed, tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM):
        send(shop_folder, tmp_path / "run", number)
    finish(shop_folder, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


@pytest.mark.slow
def test_max_hours_ends_in_good_order(shop_folder, undisturbed, tmp_path):
    for step in (1, 2):
        with pytest.raises(Interrupted, match=f"stopped by MAX_HOURS = 1e-09 after step {step}; ") as stopped:
            run(shop_folder, tmp_path / "run", dataclasses.replace(SETTINGS, max_hours=1e-9))
        assert stopped.value.status == 0
    run(shop_folder, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(shop_folder, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    process = start(shop_folder, run_dir)
    wait_for_a_checkpoint(run_dir, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 2, printed
    assert "the checkpoint could not be written (" in printed.splitlines()[-1]
    assert "those before are whole" in printed.splitlines()[-1]
    run(shop_folder, run_dir)
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(shop_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(InputError, match=r"4 checkpoints need 0.00 GB of disk, but 0.00 GB are free"):
        run(shop_folder, tmp_path / "run")


def test_two_processes_do_not_share_a_folder(shop_folder, stopped):
    with Run(stopped), pytest.raises(InputError, match="another process is at work there; wait for it"):
        run(shop_folder, stopped)


@pytest.mark.slow
def test_a_run_of_another_dataset_is_refused_and_one_that_has_moved_is_not(
    shop_folder, shop_files, undisturbed, stopped, tmp_path
):
    convert(source=str(shop_files), output=str(tmp_path / "other"), vocab_size=400)
    with pytest.raises(
        InputError, match=r"holds a run of another configuration, .*Corpus\.datasets = \['\w+'\] \(now \['\w+'\]\)"
    ):
        run(tmp_path / "other", stopped)
    assert (stopped / "checkpoints" / str(HALFWAY)).is_dir()
    run(shutil.copytree(shop_folder, tmp_path / "moved"), stopped)
    assert outcome(stopped) == outcome(undisturbed)


@pytest.mark.slow
def test_nothing_moves_between_host_and_devices_unseen(shop_folder, tmp_path, monkeypatch):
    from seqrec_jax.training.loop import Trainer

    taken, take, report = [], Trainer._take, Trainer._report

    def guarded_take(self, batches):
        with jax.transfer_guard("disallow"):
            taken.append(take(self, batches))

    def guarded_report(self):
        with jax.transfer_guard("disallow"):
            report(self)

    monkeypatch.setattr(Trainer, "_take", guarded_take)
    monkeypatch.setattr(Trainer, "_report", guarded_report)
    run(shop_folder, tmp_path / "run", epochs=1)
    assert len(taken) == 8
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
        jax.jit(lambda x: x + 1)(np.ones(3))  # the guard does guard
