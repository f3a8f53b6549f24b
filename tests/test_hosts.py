"""Two processes of two devices make the run that one process of four makes."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

BINDINGS = {
    "TrainConfig.epochs": 6,
    "TrainConfig.eval_every": 3,
    "TrainConfig.train_batch_size": 400,
    "TrainConfig.learning_rate": 5e-3,
    "TrainConfig.loss": "@sampled_softmax",
    "TrainConfig.ranking": "@Ranking()",
    "sampled_softmax.n_negatives": 64,
    "Ranking.batch_size": 7,
    "Architecture.hidden_size": 32,
    "Architecture.n_layers": 1,
    "Reports.every_steps": 5,
    "RunSettings.reports": "@Reports()",
}
RUN = """
run.task = @pretrain
pretrain.corpus = @Corpus()
pretrain.architecture = @Architecture()
pretrain.config = @TrainConfig()
pretrain.settings = @RunSettings()
"""


def start(dataset, run_dir, *flags, devices=2, **bindings) -> subprocess.Popen:
    gin_file = run_dir.parent / "run.gin"
    gin_file.write_text(RUN)
    places = {"Corpus.datasets": f"'{dataset}'", "pretrain.run_dir": f"'{run_dir}'"}
    command = [sys.executable, "-m", "seqrec_jax.main", f"--gin_file={gin_file}", *flags]
    command += [f"--gin_bindings={name} = {value}" for name, value in (places | BINDINGS | bindings).items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def start_hosts(dataset, run_dir, n=2, **bindings) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        start(dataset, run_dir, address, f"--num_processes={n}", f"--process_id={process}", **bindings)
        for process in range(n)
    ]


def records(run_dir) -> dict:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {(r["kind"], r["step"]): r["metrics"] for r in map(json.loads, lines)}


def test_two_hosts_are_one_run(shop_folder, tmp_path):
    hosts = start_hosts(shop_folder, tmp_path / "two", **{"RunSettings.model_axis": 2})
    printed = [host.communicate(timeout=200)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], printed
    assert "Results" in printed[0]
    assert "Results" not in printed[1]  # one of them tells
    one = start(shop_folder, tmp_path / "one", devices=1)
    assert one.wait(200) == 0, one.communicate()
    ours, theirs = records(tmp_path / "two"), records(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 9 + 6 + 1  # lines of steps, epochs, and the test
    for at, metrics in theirs.items():
        for name, value in metrics.items():
            if name in ("step/loss", "train/train_loss"):
                assert ours[at][name] == pytest.approx(value, rel=1e-5)
            if name.startswith(("valid/", "test/")):
                assert ours[at][name] == value
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["test"] == json.loads((tmp_path / "one" / "results.json").read_text())["test"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_host_dies_the_other_says_so(shop_folder, tmp_path, victim):
    hosts = start_hosts(shop_folder, tmp_path / "run", **{"TrainConfig.epochs": 10_000})
    for line in hosts[0].stdout:
        if "loss" in line and " of " in line:
            break
    hosts[victim].kill()
    died = time.monotonic()
    printed, _ = hosts[1 - victim].communicate(timeout=100)
    assert time.monotonic() - died < 60
    assert hosts[1 - victim].returncode == 1
    assert f"error: process {1 - victim}: another host was lost" in printed
    hosts[victim].communicate()


@pytest.mark.slow
def test_a_coordinator_that_cannot_be_reached_is_said_within_a_minute(shop_folder, tmp_path):
    started = time.monotonic()
    flags = ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1")
    printed, _ = (host := start(shop_folder, tmp_path / "run", *flags)).communicate(timeout=100)
    assert time.monotonic() - started < 60
    assert host.returncode == 2
    assert "error: --coordinator=127.0.0.1:9 could not be reached within 45 seconds; start the process" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--process_id=1"], "--num_processes and --process_id need --coordinator=host:port"),
        (["--coordinator=here:1"], "--coordinator=here:1 wants host:port, and --num_processes and --process_id below"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(shop_folder, tmp_path, flags, words):
    printed, _ = (host := start(shop_folder, tmp_path / "run", *flags)).communicate(timeout=100)
    assert host.returncode == 2
    assert words in printed
