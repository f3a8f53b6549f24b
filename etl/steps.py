"""The steps from raw files to datasets, each resumable, each accounting for its rows."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from etl import by_user, catalog, datasets, k_core, tokenizer
from etl.ids import IdTable, id_table
from etl.plan import Keys, Plan
from etl.raw.bad_rows import BadRows
from etl.raw.interaction_files import InteractionFiles, read_rows
from etl.raw.text_blocks import BLOCK_BYTES
from etl.running.report import StepReport
from etl.running.task_runner import TaskRunner
from etl.running.workers import PeakMemory
from etl.running.workspace import PASSING, Step, Workspace, key_of
from etl.time_order import log_ties
from seqrec_jax.data import format
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_bytes, write_text
from seqrec_jax.host_memory import release_freed_memory

STEPS = ("metadata", "tokenizer", "tokenize", "ratings", "scale", "downstream")


class Build:
    """Runs the steps of a plan; a step that an earlier run has finished is not run again.

    Args:
        plan: what to make.
        workspace: where intermediate results lie.
        executor: runs the tasks.
        at_a_time: how many.
        memory: watches the processes' memory.
    """

    def __init__(self, plan: Plan, workspace: Workspace, executor: Executor, at_a_time: int, memory: PeakMemory):
        self._plan, self._workspace, self._memory = plan, workspace, memory
        self._runner = TaskRunner(executor, at_a_time)
        self._keys = Keys(plan, workspace, executor, at_a_time)
        self._steps: dict[str, Step] = {}
        self._started = 0.0

    def run(self, name: str) -> StepReport:
        """Runs a step; those before it must be finished."""
        release_freed_memory()
        self._memory.restart()
        self._started = time.monotonic()
        if name in ("scale", "downstream"):
            return self._scale() if name == "scale" else self._downstream()
        step = self._step(name)
        if step.is_done:
            logging.info("%s: is finished already", name)
        else:
            getattr(self, f"_{name}")(step)
        return step.report

    def _step(self, name: str) -> Step:
        """A step; where an earlier run has finished it, what it has left is verified once."""
        if name not in self._steps:
            step = self._workspace.step(name, getattr(self._keys, name), self._keys.raw.get(name, ()))
            if step.is_done and (path := step.damaged()) is not None:
                logging.warning("%s: is missing, or not as it was written; the step %r is run again", path, name)
                step.reopen()
            self._steps[name] = step
        return self._steps[name]

    def _finished(self, name: str) -> Step:
        """A step that must be finished by now."""
        step = self._step(name)
        if not step.is_done:
            raise InputError(f"--step: the step {name!r} must be run first, from the same files and bindings")
        return step

    def _metadata(self, step: Step) -> None:
        files, paths = self._plan.items, self._keys.item_paths
        bad, left_out, rows, parts, kept = BadRows(self._plan.max_bad_rows), Counter[str](), 0, [], []
        for path, result in self._runner.run_blocks(step, "", files, paths, catalog.catalog_block, (files,), bad):
            parts.append(path)
            left_out.update(result["left_out"])
            kept.append(result["kept"])
            rows += result["rows"]
        bad.finish()
        if not rows:
            raise InputError(f"{paths[0]}: has no rows that can be read")
        if not any(kept):
            raise InputError(f"{paths[0]}: no item is left of {rows:,}; check ItemFiles.texts and ItemFiles.required")
        starts, again = catalog.index_catalog(parts, kept, step.folder)
        left_out["item is listed again"] = again
        result = {"parts": [part.stem for part in parts], "starts": starts}
        self._finish(step, rows, sum(kept) - again, left_out, bad, result)

    def _tokenizer(self, step: Step) -> None:
        plan, n_texts = self._plan, 0
        if plan.tokenizer_from is not None:
            model = tokenizer.load(Path(plan.tokenizer_from))
        else:
            parts, n_items = self._texts()
            texts = list(catalog.sample_texts(parts, list(plan.items.texts), min(1.0, plan.tokenizer_items / n_items)))
            n_texts = len(texts)
            logging.info("tokenizer: training on %d texts", n_texts)
            model = tokenizer.train(texts, plan.vocab_size)
        write_bytes(step.folder / format.TOKENIZER, model.model)
        self._finish(step, n_texts, model.vocab_size, {}, None, None)

    def _tokenize(self, step: Step) -> None:
        parts, _ = self._texts()
        model, features = self._model(), dict(self._plan.items.max_tokens)
        tasks = [(part.stem, (step.path(part.stem), part, model, features)) for part in parts]
        rows, empty = 0, Counter[str]()
        for result in self._runner.run(step, catalog.tokenize_part, tasks, "tokenize"):
            rows += result["rows"]
            empty.update(result["empty"])
        for feature, count in empty.items():
            if count:
                logging.info("tokenize: %d items without %s, kept as %r", count, feature, tokenizer.UNKNOWN)
        self._finish(step, rows, rows, {}, None, None)

    def _ratings(self, step: Step) -> None:
        plan, files = self._plan, self._plan.interactions
        _, n_items = self._texts()
        held_out = self._write_held_out(step)
        paths = self._keys.interaction_paths
        bits = by_user.partition_bits(files.expected_rows(paths))
        bad, rejected, blocks, rows = BadRows(plan.max_bad_rows), Counter[str](), [], 0
        arguments = (files, self._finished("metadata").folder, bits, plan.time_order)
        for path, result in self._runner.run_blocks(
            step, PASSING, files, paths, by_user.partition_block, arguments, bad
        ):
            blocks.append(path)
            rows += result["rows"]
            rejected["item has no metadata"] += result["without_item"]
        bad.finish()
        if not rows:
            raise InputError(f"{paths[0]}: has no rows that can be read")
        names = [f"users-{partition:05d}" for partition in range(1 << bits)]
        grouping = (held_out, plan.user_core)
        tasks = [(name, (step.path(name), blocks, place, *grouping)) for place, name in enumerate(names)]
        kept = 0
        for result in self._runner.run(step, by_user.group_partition, tasks, "ratings: by user"):
            kept += result["rows"]
            rejected.update(result["rejected"])
        if plan.item_core > 1:
            names, left = self._k_core(step, names, n_items)
            rejected["not in the k-core"] = kept - left
            kept = left
        if not kept:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in rejected.items() if count)
            raise InputError(f"{paths[0]}: no interaction is left of {rows:,} ({reasons})")
        self._finish(step, rows, kept, rejected, bad, {"users": names, "rows": kept})

    def _write_held_out(self, step: Step) -> Path:
        """Writes the table of the domains' users, who are to be left out of everything else."""
        users = [pa.array([], pa.large_string())]
        for name, files in self._plan.domains.items():
            for path in self._keys.domain_paths[name]:
                for block in files.blocks(path, BLOCK_BYTES):
                    users.append(read_rows(block, files)[0].users.unique())
        folder = step.folder / "held_out"
        folder.mkdir(exist_ok=True)
        id_table(pa.concat_arrays(users).unique()).save(folder)
        return folder

    def _k_core(self, step: Step, users: Sequence[str], n_rows: int) -> tuple[list[str], int]:
        """Writes the users of the k-core; returns the files' names and how many interactions are left."""
        user_core, item_core = self._plan.user_core, self._plan.item_core
        stays, rounds = k_core.items_of_core([step.path(name) for name in users], n_rows, user_core, item_core)
        logging.info("k-core: %d items stay after %d rounds", stays.sum(), rounds)
        core = step.folder / "core_items.npy"
        np.save(core, stays, allow_pickle=False)
        names = [f"core-{name}" for name in users]
        tasks = [(to, (step.path(to), step.path(name), core, user_core)) for to, name in zip(names, users, strict=True)]
        return names, sum(result["rows"] for result in self._runner.run(step, k_core.keep_core, tasks, "k-core"))

    def _scale(self) -> StepReport:
        plan, ratings = self._plan, self._finished("ratings")
        n_interactions, users = ratings.result["rows"], [ratings.path(name) for name in ratings.result["users"]]
        texts = self._catalog()
        parameters = {
            "pipeline": plan.name,
            "user_core": plan.user_core,
            "item_core": plan.item_core,
            "vocab_size": plan.vocab_size,
            "trained_tokenizer": plan.tokenizer_from is None,
            "seed": plan.seed,
        }
        order, rejected = plan.time_order, ratings.report.rejected
        about = datasets.Provenance(self._model(), parameters, self._keys.inputs, rejected, order)
        every_item = (
            IdTable.load(self._finished("metadata").folder).first_rows
            if plan.whole_catalog and plan.item_core == 1
            else None
        )
        tasks = []
        for size in [*plan.sizes, None]:
            folder = plan.output_folder / plan.dataset_name(size)
            if size is not None and size >= n_interactions:
                logging.warning("%s: only %d interactions, so it has all users", folder, n_interactions)
            share = 1.0 if size is None else min(1.0, size / n_interactions)
            whose = dataclasses.replace(about, parameters={**parameters, "expected_interactions": size})
            whole = every_item if size is None else None
            arguments = (folder, users, texts, whole, share, plan.seed, whose)
            tasks.append((folder, (key_of(size, plan.seed, plan.whole_catalog), arguments)))
        key = key_of(self._keys.ratings, self._keys.tokenize)
        records, written = self._workspace.folder / "scale", 0
        check = self._workspace.check_unchanged
        for manifest in self._runner.run_datasets(records, key, datasets.sampled_dataset, tasks, check):
            written += sum(manifest["sizes"].values())
        log_ties(str(tasks[-1][0]), manifest["ties"])  # of all users; in the samples it is alike
        return self._report("scale", n_interactions, n_interactions, {}, [], written)

    def _downstream(self) -> StepReport:
        plan, texts, table = self._plan, self._catalog(), self._finished("metadata").folder
        order, tasks, bad, rows_in = plan.time_order, [], BadRows(plan.max_bad_rows), 0
        for name, files in plan.domains.items():
            before, paths = Counter(bad.counts), self._keys.domain_paths[name]
            rows_in += _check_log(files, paths, bad)
            parameters = {"pipeline": plan.name, "drop_without_metadata": plan.drop_without_metadata}
            inputs = [*self._keys.items, *self._keys.domains[name]]
            about = datasets.Provenance(self._model(), parameters, inputs, dict(bad.counts - before), order)
            folder = plan.output_folder / f"{plan.name}-{name}"
            arguments = (folder, files, paths, texts, table, plan.drop_without_metadata, about)
            tasks.append((folder, (key_of(self._keys.domain(name), plan.drop_without_metadata, order.rule), arguments)))
        bad.finish()
        records, key = self._workspace.folder / "downstream", self._keys.tokenize
        written, rows_out, rejected = 0, 0, Counter[str]()
        check = self._workspace.check_unchanged
        made = self._runner.run_datasets(records, key, datasets.domain_dataset, tasks, check)
        for (folder, _), manifest in zip(tasks, made, strict=True):
            log_ties(str(folder), manifest["ties"])
            written += sum(manifest["sizes"].values())
            rows_out += manifest["counts"]["interactions"]
            rejected.update(manifest["rejected"])
            if unknown := manifest.get("items_without_text"):
                logging.info("downstream: %d items without metadata or title, kept as %r", unknown, tokenizer.UNKNOWN)
        return self._report("downstream", rows_in, rows_out, rejected, bad.examples, written)

    def _texts(self) -> tuple[list[Path], int]:
        """The files of items and raw texts, and the number of their rows."""
        step = self._finished("metadata")
        return [step.path(part) for part in step.result["parts"]], step.result["starts"][-1]

    def _model(self) -> Path:
        return self._finished("tokenizer").folder / format.TOKENIZER

    def _catalog(self) -> catalog.Catalog:
        texts, tokens = self._finished("metadata"), self._finished("tokenize")
        parts = texts.result["parts"]
        return catalog.Catalog(
            [texts.path(part) for part in parts],
            [tokens.path(part) for part in parts],
            texts.result["starts"],
            dict(self._plan.items.max_tokens),
        )

    def _finish(
        self, step: Step, rows: int, rows_out: int, rejected: Mapping[str, int], bad: BadRows | None, result: Any
    ) -> None:
        """Records a finished step: good rows that it read, rows that it wrote, what it left out and why."""
        self._workspace.check_unchanged()
        counts, examples = Counter(bad.counts if bad else {}), bad.examples if bad else []
        if bad and bad.listed:
            listed = step.folder / "bad_rows.tsv"
            lines = (f"{path}\t{row.line}\t{row.reason}\t{row.text}" for path, row in bad.listed)
            write_text(listed, "\n".join(lines) + "\n")
            for reason, count in counts.items():
                first = next(example for example in examples if f": {reason}: " in example)
                logging.warning("%d rows left out, listed in %s; the first: %s", count, listed, first)
        written = sum(path.stat().st_size for path in step.folder.rglob("*") if path.is_file())
        total = {reason: count for reason, count in {**rejected, **counts}.items() if count}
        step.finish(
            self._report(step.folder.name, rows + sum(counts.values()), rows_out, total, examples, written), result
        )

    def _report(
        self,
        name: str,
        rows_in: int,
        rows_out: int,
        rejected: Mapping[str, int],
        examples: Sequence[str],
        written: int,
    ) -> StepReport:
        seconds = time.monotonic() - self._started
        return StepReport(name, rows_in, rows_out, dict(rejected), examples, seconds, written, self._memory.bytes)


def _check_log(files: InteractionFiles, paths: Sequence[Path], bad: BadRows) -> int:
    """Reads a domain's log through for its bad rows; returns how many rows it has, of which one must be good."""
    total = good = 0
    for path in paths:
        lines = 0
        for block in files.blocks(path, BLOCK_BYTES):
            rows, faulty, n_lines = read_rows(block, files)
            bad.add(str(path), lines, len(rows.times) + len(faulty), faulty)
            lines, good = lines + n_lines, good + len(rows.times)
            total += len(rows.times) + len(faulty)
    if not good:
        bad.finish()
        raise InputError(f"{paths[0]}: has no rows that can be read")
    return total
