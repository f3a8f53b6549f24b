"""Opens mutants, one after the other: reads {"kind", "path", "check"} a line, answers with what became of it.

Started by test_mutations.py with a dataset and the originals, whose figures are what a mutant's are compared with.
"""

import json
import os
import re
import sys
import time
import traceback
from pathlib import Path

import numpy as np

import seqrec_jax as sr
from seqrec_jax import fsck
from seqrec_jax.errors import InputError
from seqrec_jax.files import read_arrays
from seqrec_jax.model import parameters, storage
from seqrec_jax.model.exchange import import_safetensors
from seqrec_jax.model.terms.transitions import Transitions
from seqrec_jax.scaling.run_table import read_runs

METRIC = "valid/ndcg_at_5"
storage.SECONDS_BETWEEN_TRIES = 0.0


def recommended(model: sr.Recommender, data: sr.Dataset) -> list:
    users = data.interactions_table["user_id"].slice(0, 5).to_pylist()
    return model.index(data).recommend(users=users, k=5).to_pylist()


class Opener:
    """What is made of each kind of file: figures, as JSON."""

    def __init__(self, dataset: str, bundle: str, evaluates: bool):
        self.evaluates, self.data, self.model = evaluates, sr.open_dataset(dataset).checked, storage.load(bundle)

    def dataset(self, path: Path) -> list:
        """What is trained on, what is predicted, and what is recommended."""
        corpus = sr.Corpus(str(path))
        split = [np.asarray(of).tolist() for of in (corpus.train.counts, *corpus.division.test, *corpus.division.valid)]
        shown = recommended(self.model, corpus.data)
        if not self.evaluates:
            return [split, shown]
        report = sr.evaluate(self.model, corpus, ranking=sr.Ranking(ks=(10,)), draws=100).to_json()
        ties = list(report.pop("dataset")["ties"].values())  # but for the folder's name
        return [split, shown, ties, report]

    def bundle(self, path: Path) -> list:
        """What a recommender recommends."""
        return recommended(sr.load(path), self.data)

    run = bundle

    def npz(self, path: Path) -> list:
        """Transitions, and what they prepare for histories."""
        found = Transitions.read(path)
        if found.n_rows != self.data.n_items + 1:
            raise InputError("of another catalog")
        return [of.tolist() for of in found.prepare(np.array([3, 5, 4, 7], np.int32), np.array([1, 3]))]

    def arrays(self, path: Path) -> list:
        """Arrays, whatever they are of."""
        try:
            return [[name, array.tolist()] for name, array in sorted(read_arrays(path).items())]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error

    def safetensors(self, path: Path) -> list:
        """The parameters, and the model itself."""
        model = import_safetensors(path, self.data)
        return [parameters.sha256(model.params), model.spec.to_json()]

    def runs(self, path: Path) -> list:
        """The curves of a database, or of a folder of runs."""
        return [[of.name, of.epochs.tolist(), of.values.tolist()] for of in read_runs(str(path), METRIC).curves]

    def fsck(self, path: Path) -> list:
        """What a full check finds, which names its own paths."""
        for line in fsck.problems(path):
            raise InputError(line)
        return []


def peak_memory() -> int:
    """The most bytes that the process has held since the peak was forgotten."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def attempt(opener: Opener, kind: str, path: Path) -> tuple[str, object]:
    try:
        return "figures", getattr(opener, kind)(path)
    except InputError as error:
        line = str(error)
        return ("refused", line[:300]) if "\n" not in line and len(line) < 5000 else ("no line", line[:2000])
    except Exception:
        return "traceback", traceback.format_exc()[-3000:]


def main(dataset: str, originals: dict[str, str], evaluates: bool) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    opener = Opener(dataset, originals["bundle"], evaluates)
    figures = {kind: json.dumps(getattr(opener, kind)(Path(path))) for kind, path in originals.items()}
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        Path("/proc/self/clear_refs").write_text("5")
        before, started = peak_memory(), time.process_time()
        outcome, said = attempt(opener, order["as"], Path(order["path"]))
        if outcome == "figures":
            same = order["as"] == "fsck" or json.dumps(said) == figures.get(order["kind"])
            outcome = "same" if same else "other"
            said = ""
        taken = {"seconds": time.process_time() - started, "bytes": peak_memory() - before}
        print(json.dumps({"outcome": outcome, "said": said} | taken), file=answers)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), "run" in json.loads(sys.argv[2]))
