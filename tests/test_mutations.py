"""Ten thousand mutants of what strangers may give: never a crash, a traceback, a hang, a bomb, or a changed figure.

A mutant is refused with one line, or gives the figures of the original. Where the checksums are made to fit what it
holds it may also be another that is whole, and give other figures.
"""

import dataclasses
import json
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import mutants
import numpy as np
import pytest
from scaling_runs import MadeRun, params_of, write_database

import seqrec_jax as sr
from seqrec_jax.model.exchange import export_safetensors

SECONDS, BYTES = 10.0, 1 << 30  # of the processor, as other work may go on beside
WAITS, STARTS = 120.0, 600.0  # seconds that a mutant, or a start, may take in all
WORKER = Path(__file__).with_name("mutant_worker.py")
BAD = ("no line", "traceback", "crash", "hang", "memory", "changed")


@dataclasses.dataclass(frozen=True)
class Species:
    """Mutants of one kind of file.

    Attributes:
        kind: Of the original.
        mutate: Makes one of a copy.
        fits: Whether other figures are no fault, as checksums are made to fit, or there are none.
        share: Of all mutants.
    """

    kind: str
    mutate: Callable[[Path, random.Random], None]
    fits: bool
    share: float


def suffix(kind: str) -> str:
    return {"npz": ".npz", "arrays": ".npz", "safetensors": ".safetensors"}.get(kind, "")


FIT_DATASET = mutants.both(mutants.mutate_tree, mutants.fit_dataset)
FIT_TABLES = mutants.both(mutants.mutate_table, mutants.fit_dataset)
FIT_MODEL = mutants.both(mutants.mutate_tree, mutants.fit_checkpoints)
FIT_STORE = mutants.both(mutants.mutate_store, mutants.fit_checkpoints)
SPECIES = {
    "dataset": Species("dataset", mutants.mutate_tree, False, 0.12),
    "dataset, checksums made to fit": Species("dataset", FIT_DATASET, True, 0.2),
    "dataset, tables written anew": Species("dataset", FIT_TABLES, True, 0.15),
    "bundle": Species("bundle", mutants.mutate_tree, False, 0.10),
    "bundle, checksums made to fit": Species("bundle", FIT_MODEL, True, 0.12),
    "bundle, its store and checksums made to fit": Species("bundle", FIT_STORE, True, 0.08),
    "run": Species("run", mutants.mutate_tree, False, 0.05),
    "run, checksums made to fit": Species(
        "run", mutants.both(mutants.mutate_tree, mutants.fit_checkpoints), True, 0.05
    ),
    "npz": Species("npz", mutants.mutate_file, False, 0.06),
    "npz, checksums made to fit": Species("npz", mutants.mutate_npz, True, 0.06),
    "safetensors": Species("safetensors", mutants.mutate_file, True, 0.03),
    "safetensors, header made to fit": Species("safetensors", mutants.mutate_header, True, 0.03),
    "database": Species("runs", mutants.mutate_file, True, 0.03),
    "packed database": Species("runs", mutants.mutate_packed, True, 0.01),
    "folder of runs": Species("folder", mutants.mutate_tree, True, 0.01),
}


@pytest.fixture(scope="module")
def originals(shop_folder, tmp_path_factory) -> dict[str, Path]:
    """What is mutated, by kind."""
    place = tmp_path_factory.mktemp("originals")
    model = mutants.whole_model(shop_folder)
    model.save(place / "bundle")
    export_safetensors(model, place / "model.safetensors")
    params = params_of(64, 2, 100_000, 10)
    runs = [MadeRun(params | {"seed": seed}, {epoch: 0.1 + epoch / 100 for epoch in range(1, 5)}) for seed in range(9)]
    write_database(place / "runs.sqlite", runs)
    record = {"kind": "epoch", "step": 1, "epoch": 1, "time": 0, "metrics": {"valid/ndcg_at_5": 0.1}}
    for name in ("a", "b"):
        (place / "folder" / name).mkdir(parents=True)
        (place / "folder" / name / "results.json").write_text(json.dumps({"params": params}))
        (place / "folder" / name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return {
        "dataset": shop_folder, "bundle": place / "bundle", "npz": place / "bundle" / "transitions.npz",
        "safetensors": place / "model.safetensors", "runs": place / "runs.sqlite", "folder": place / "folder",
    }  # fmt: skip


def trained(shop_folder: Path, place: Path) -> Path:
    """A run's folder with several checkpoints."""
    config = sr.TrainConfig(
        epochs=2, train_batch_size=400, ranking=sr.Ranking(ks=(10,)), valid_metric="ndcg_at_10",
        loss=partial(sr.sampled_softmax, n_negatives=20),
    )  # fmt: skip
    corpus = sr.Corpus(str(shop_folder))
    model = sr.Recommender.create(corpus, sr.Architecture(n_layers=1, hidden_size=8, inner_size=8, max_length=6))
    sr.fit(model, corpus, config, place / "run")
    return place / "run"


class Worker:
    """A process that opens mutants, and that is started anew where it dies or has to be ended."""

    def __init__(self, originals: Mapping[str, Path]):
        self._command = [sys.executable, str(WORKER), str(originals["dataset"])]
        self._command.append(json.dumps({kind: str(path) for kind, path in originals.items() if kind != "folder"}))
        self._start()

    def _start(self) -> None:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        answer = self._answer(STARTS, None)
        assert answer.get("ready"), answer

    def _resident(self) -> int:
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _answer(self, seconds: float, most: int | None) -> dict:
        """What the process says; or that it crashed, hung, or took more memory than `most`, so that it was ended."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if select.select([self._process.stdout], [], [], 0.05)[0]:
                line = self._process.stdout.readline()
                return json.loads(line) if line else {"outcome": "crash", "said": f"ended by {self._process.wait()}"}
            if most is not None and self._resident() > most:
                return {"outcome": "memory", "said": f"more than {most:,} bytes"}
        return {"outcome": "hang", "said": f"more than {seconds} seconds"}

    def open(self, kind: str, path: Path, how: str) -> dict:
        """What becomes of a mutant."""
        order = json.dumps({"kind": kind, "path": str(path), "as": how}) + "\n"
        self._process.stdin.write(order.encode())
        self._process.stdin.flush()
        answer = self._answer(WAITS, self._resident() + 2 * BYTES)
        if answer["outcome"] in ("crash", "hang", "memory"):
            self.close()
            self._start()
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()


def copy(source: Path, target: Path) -> int:
    """A copy of a file or a folder; returns its bytes."""
    if source.is_file():
        shutil.copyfile(source, target)
        return source.stat().st_size
    shutil.copytree(source, target, symlinks=True)
    return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())


def judged(answer: dict, fits: bool, size: int) -> str:
    """The outcome, or what is wrong with it."""
    if answer["outcome"] in ("crash", "hang", "memory", "traceback", "no line"):
        return answer["outcome"]
    if answer["seconds"] > SECONDS:
        return "hang"
    if answer["bytes"] > max(BYTES, 2 * size):
        return "memory"
    return "changed" if answer["outcome"] == "other" and not fits else answer["outcome"]


def breed(
    originals: Mapping[str, Path], species: Mapping[str, Species], seeds: range, place: Path
) -> Iterator[tuple[str, int, str, dict]]:
    """Makes mutants and opens them: yields name, seed, outcome, and what the worker said."""
    worker = Worker(originals)
    names, shares = list(species), [of.share for of in species.values()]
    try:
        for seed in seeds:
            rng = random.Random(seed)
            name = rng.choices(names, shares)[0]
            of = species[name]
            folder = place / f"{seed}"
            folder.mkdir()
            path = folder / f"mutant{suffix(of.kind)}"
            size = copy(originals[of.kind], path)
            of.mutate(path, rng)
            checks = rng.random() < 0.1 and of.kind not in ("runs", "folder")
            answer = worker.open(of.kind, path, "fsck" if checks else {"folder": "runs"}.get(of.kind, of.kind))
            yield name, seed, judged(answer, of.fits, size), answer
            shutil.rmtree(folder)
    finally:
        worker.close()


def counted(found: Iterator[tuple[str, int, str, dict]]) -> tuple[dict[str, Counter], list[str]]:
    """Outcomes by name of the species, and a line for each that is bad."""
    counts: dict[str, Counter] = {}
    bad = []
    for name, seed, outcome, answer in found:
        counts.setdefault(name, Counter())[outcome] += 1
        if outcome in BAD:
            bad.append(f"{name}, seed {seed}: {outcome}: {answer}")
    return counts, bad


def table(counts: Mapping[str, Counter]) -> str:
    columns = ("refused", "same", "other", *BAD)
    rows = [("", *columns), *((name, *(str(of[column]) for column in columns)) for name, of in sorted(counts.items()))]
    total = sum(counts.values(), Counter())
    rows.append(("all", *(str(total[column]) for column in columns)))
    return "\n".join(
        "  ".join(cell.ljust(46) if not n else cell.rjust(9) for n, cell in enumerate(row)) for row in rows
    )


def test_fifty_mutants(originals, tmp_path):
    species = {name: of for name, of in SPECIES.items() if of.kind in originals}
    counts, bad = counted(breed(originals, species, range(50), tmp_path))
    assert not bad, "\n".join(bad)
    assert sum(sum(of.values()) for of in counts.values()) == 50
    assert sum(of["refused"] for of in counts.values()) > 25


def test_a_bomb_is_ended(tmp_path, originals):
    """The watch itself: what takes all memory, all time, or dies is seen."""
    np.savez(tmp_path / "a.npz", np.zeros(3))
    answer = {"outcome": "same", "seconds": 11.0, "bytes": 0}
    assert judged(answer, True, 10) == "hang"
    assert judged(answer | {"seconds": 1, "bytes": 2 << 30}, True, 10) == "memory"
    assert judged(answer | {"seconds": 1, "outcome": "other"}, False, 10) == "changed"


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_ten_thousand_mutants(originals, shop_folder, tmp_path):
    first, n = (int(os.environ.get(name, default)) for name, default in (("FIRST_MUTANT", 100), ("MUTANTS", 10_000)))
    seeds = originals | {"run": trained(shop_folder, tmp_path)}
    counts, bad = counted(breed(seeds, SPECIES, range(first, first + n), tmp_path))
    print(table(counts))
    print("\n".join(bad))
    assert not bad, "\n".join(bad)
    assert sum(sum(of.values()) for of in counts.values()) == n
