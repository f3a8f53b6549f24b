"""Jobs are processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.studies.engine import Job
from seqrec_jax.studies.transfer_study import Cell


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout[:1] not in "Z"


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.0])
def test_a_job_ends_with_its_parent_whenever_that_dies(tmp_path, seconds):
    """A parent that dies at once, while the job's Python starts, or while it imports."""
    job = Job("job", tmp_path / "run", "gin/quickstart.gin", ["RUN_DIR = 'run'", "Tracker.uri = None"])
    code = (
        "import subprocess, sys, time, os\n"
        "command = [sys.executable, '-m', 'seqrec_jax.child', str(os.getpid()), *sys.argv[2:]]\n"
        "print(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(seconds), *job.command[4:]]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    pid = int(parent.stdout.readline())
    assert parent.wait() == -signal.SIGKILL
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(pid)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_damaged_results_are_a_line(tmp_path):
    (tmp_path / "results.json").write_text("")
    with pytest.raises(InputError, match=r"results\.json: is damaged .*; remove it, and the same command"):
        Job("job", tmp_path, "gin/beauty.gin", []).results()


def test_two_methods_are_two_folders(tmp_path):
    names = ["full +l2", "full -l2", "full  l2", "a/b", "a_b", "..", "größe", "x*"]
    folders = {Cell(name, 1.0, 1).run_dir(tmp_path) for name in names}
    assert len(folders) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "runs"}
    assert not any(character in folder.name for folder in folders for character in "*?[")
