"""Three hundred faults over everything that writes: each ends in the same bytes, or in a line that tells the truth.

A fault strikes while a command runs, or what it has written before it is killed; then the same command runs again.
"""

import csv
import dataclasses
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ARCHITECTURE = [
    "Architecture.hidden_size = 8", "Architecture.n_layers = 1", "Architecture.n_heads = 1",
    "Architecture.inner_size = 8", "Architecture.embedding_size = 8", "Architecture.max_length = 10",
]  # fmt: skip
TRAINING = [
    "TrainConfig.train_batch_size = 200",
    "EPOCHS = 4",
    "sampled_softmax.n_negatives = 20",
    "Tracker.uri = None",
]
OFTEN = ["Checkpoints.every_steps = 3", "TrainConfig.eval_every = 1"]
MEASURED = ("seconds", "per_second", "hours", "made", "time", "targets_per_second", "peak", "memory", "bytes")
LONGEST = 300


def without_measured(value):
    """Results without what a clock or a machine says."""
    if isinstance(value, dict):
        kept = {name: of for name, of in value.items() if not any(word in name for word in MEASURED)}
        kept.pop("sha256", None)  # of what was measured as well
        return {name: without_measured(of) for name, of in kept.items()}
    return [without_measured(of) for of in value] if isinstance(value, list) else value


def results_of(*names: str) -> Callable[[Path], dict]:
    """What the results of a run say."""
    return lambda output: {name: without_measured(json.loads((output / name).read_text())) for name in names}


def files_of(output: Path) -> dict:
    """The bytes of all files but hidden ones and the report, which holds times."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    shown = [
        path for path in files if path.name != "etl_report.json" and "/." not in str(path.relative_to(output.parent))
    ]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in shown}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command, and what must be the same in the end."""

    module: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]
    folder: str  # the binding of what it writes
    outcome: Callable[[Path], dict]
    faults: int

    def start(self, output: Path, limit: int | None = None) -> subprocess.Popen:
        """Starts it; `limit` is the most bytes of a file that it may write, as on a full disk."""
        bindings = [*self.bindings, f"{self.folder} = '{output}'"]
        command = [sys.executable, "-m", self.module, *(f"--gin_file={of}" for of in self.gin_files)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}

        def limited() -> None:
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [*command, *(f"--gin_bindings={binding}" for binding in bindings)], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace", env=environment, preexec_fn=limited, cwd=output.parent,
        )  # fmt: skip


@pytest.fixture(scope="module")
def subjects(shop_folder, tmp_path_factory) -> dict[str, Subject]:
    """Everything that writes."""
    folder = tmp_path_factory.mktemp("subjects")
    raw, rng = folder / "raw", random.Random(0)
    raw.mkdir()
    with (raw / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title"), *((f"i{i}", f"lamp number {i % 37}") for i in range(300))])
    rows = [(f"u{rng.randrange(200)}", f"i{rng.randrange(300)}", 1_500_000_000 + n) for n in range(4000)]
    with (raw / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    base = folder / "base"
    pretrain = Subject(
        "seqrec_jax.main", ("gin/beauty.gin",),
        (f"DATASET = '{shop_folder}'", "EPOCHS = 4", "Tracker.uri = None", *ARCHITECTURE, *TRAINING, *OFTEN),
        "RUN_DIR", results_of("results.json"), 90,
    )  # fmt: skip
    assert pretrain.start(base).wait(LONGEST) == 0
    trial = folder / "trial.gin"
    trial.write_text(
        "include 'gin/beauty.gin'\n" + "\n".join([*ARCHITECTURE, *TRAINING[:1], TRAINING[2], *OFTEN]) + "\n"
    )
    tuning = (f"CHECKPOINT = '{base}'", f"DATASET = '{shop_folder}'", "Tracker.uri = None")
    finetuning = ("TrainConfig.train_batch_size = 200", "EPOCHS = 2", *OFTEN)
    methods = {"a +b": ["gin/finetune_full.gin"], "a -b": ["gin/finetune_full.gin", "TrainConfig.learning_rate = 1e-4"]}
    return {
        "etl": Subject(
            "etl.main", ("gin/etl_interactions.gin",), (f"SOURCE = '{raw}'", "VOCAB_SIZE = 100", "PROCESSES = 1"),
            "OUTPUT", files_of, 110,
        ),
        "pretrain": pretrain,
        "finetune": Subject(
            "seqrec_jax.main", ("gin/finetune.gin",), (*tuning, *finetuning, "HEAD_EPOCHS = 1"), "RUN_DIR",
            results_of("results.json"), 50,
        ),
        "transfer study": Subject(
            "seqrec_jax.main", ("gin/transfer_study.gin",),
            (*tuning, f"METHODS = {methods}", "SCRATCH = []", "SHARES = [1.0]", "SEEDS = [1]", "PROCESSES = 1",
             f"BINDINGS = {list(finetuning)}"),
            "RUN_DIR", results_of("transfer_study.json"), 20,
        ),
        "sweep": Subject(
            "seqrec_jax.main", ("gin/sweep.gin",),
            (f"DATASET = '{shop_folder}'", f"BASE = '{trial}'", "BINDINGS = ['EPOCHS = 2']", "TRIALS = 2",
             "SPACE = {'TrainConfig.learning_rate': ('log', 1e-3, 1e-2)}", "Tracker.uri = None"),
            "RUN_DIR", results_of("sweep.json"), 20,
        ),
        "scaling study": Subject(
            "seqrec_jax.main", ("gin/scaling_study.gin",),
            (f"DATASETS = ['{shop_folder}']", f"BASE = '{trial}'", "WIDTHS = [4, 8, 16]", "DEPTHS = [1]",
             "SHARES = [1.0]", "EPOCHS = [2]", "BINDINGS = ['Architecture.n_heads = 1']", "OF_WIDTH = {}",
             "HELD = 0", "PROCESSES = 1",
             "Tracker.uri = None"),
            "RUN_DIR", results_of("scaling_study.json"), 10,
        ),
    }  # fmt: skip


def damage(output: Path, how: str, rng: random.Random) -> str | None:
    """Damages a file of the output; returns its name, or None where there is none."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.stat().st_size]
    if not files:
        return None
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "truncate":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    elif how == "clock":
        for of in files:
            os.utime(of, (rng.choice([0, 4e9]),) * 2)
    else:
        path.unlink()
    return str(path.relative_to(output))


FAULTS = ("kill", "term", "flip", "truncate", "zeros", "delete", "clock", "full disk", "rename")


def strike(subject: Subject, output: Path, seconds: float, rng: random.Random) -> str:
    """Starts the command and has a fault strike; returns which."""
    fault = rng.choice(FAULTS)
    process = subject.start(output, rng.choice([1 << 10, 1 << 14, 1 << 17]) if fault == "full disk" else None)
    try:
        process.communicate(timeout=LONGEST if fault == "full disk" else rng.uniform(0, 1.1 * seconds))
        if fault == "full disk":
            return fault
    except subprocess.TimeoutExpired:
        assert fault != "full disk", "hangs on a full disk"
    if fault == "rename" and output.exists():
        output.rename(output.with_name("away"))
        time.sleep(1)
    process.send_signal(signal.SIGTERM if fault == "term" else signal.SIGKILL)
    process.communicate(timeout=LONGEST)
    time.sleep(0.5)  # in which its children end
    if fault == "rename" and (output.parent / "away").exists():
        if output.exists():  # what was written there meanwhile
            shutil.rmtree(output)
        (output.parent / "away").rename(output)
    if fault in ("flip", "truncate", "zeros", "delete", "clock"):
        return f"{fault} {damage(output, fault, rng) if output.exists() else None}"
    return fault


def again(subject: Subject, output: Path, expected: dict) -> str:
    """Runs the command again: `same` where it ends as an undisturbed one, `told` where it says what is wrong."""
    process = subject.start(output)
    _, printed = process.communicate(timeout=LONGEST)
    if process.returncode == 0:
        return "same" if subject.outcome(output) == expected else "other figures"
    last = printed.strip().splitlines()[-1] if printed.strip() else ""
    if "Traceback" in printed or process.returncode != 2 or not last.startswith("error: "):
        return f"status {process.returncode}: {last}"
    return f"told: {last}" if str(output) in last else f"names no place: {last}"


NAMES = ("etl", "pretrain", "finetune", "transfer study", "sweep", "scaling study")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_fault_ends_in_the_same_bytes_or_in_a_line(subjects, name, tmp_path):
    subject, rng = subjects[name], random.Random(name)
    undisturbed = tmp_path / "undisturbed" / "output"
    undisturbed.parent.mkdir()
    started = time.monotonic()
    assert subject.start(undisturbed).wait(LONGEST) == 0
    seconds, expected = time.monotonic() - started, subject.outcome(undisturbed)
    ends, wrong = Counter[str](), []
    n = int(os.environ.get("FAULTS", "100")) * subject.faults // 100
    for number in range(n):
        output = tmp_path / f"{number}" / "output"
        output.parent.mkdir()
        fault = strike(subject, output, seconds, rng)
        end = again(subject, output, expected)
        print(f"{name}, {number}: {fault}: {end}", flush=True)
        ends[end.split(":")[0]] += 1
        if end.split(":")[0] not in ("same", "told"):
            wrong.append(f"{fault}: {end}")
        else:
            shutil.rmtree(output.parent)
    print(f"{name}: {n} faults, {dict(ends)}")
    assert wrong == []
