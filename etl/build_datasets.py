"""Datasets of any size from raw logs and item tables of any size: in bounded memory, resumable, reproducible."""

import time
from pathlib import Path

import gin
from absl import logging

from etl.plan import Plan
from etl.raw.download import download
from etl.raw.item_files import ItemFiles
from etl.running.failures import in_one_line
from etl.running.report import StepReport, print_report, write_report
from etl.running.workers import PeakMemory, Workers
from etl.running.workspace import Workspace, open_workspace
from etl.steps import STEPS, Build
from seqrec_jax.errors import InputError

_ITEM_TABLE_SHARE = {True: 25, False: 100}
"""Bytes of an item file, by whether it is compressed, for one byte of the table of ids: 36 for an item of 3.6 KB."""


@gin.configurable
def build_datasets(plan: Plan = gin.REQUIRED, workers: Workers = gin.REQUIRED, step: str = "all") -> None:
    """Makes the dataset folders `NAME-full`, one for each size, and one for each domain, below the output folder.

    Interactions with items that the items' files lack are left out, then the users of the domains, then users and
    items with too few interactions. What became of every row is printed and written to `etl_report.json`. The same
    files and plan give the same bytes, whatever the workers. A run that was interrupted goes on from its last finished
    part; a changed binding redoes what depends on it.

    Args:
        plan: what to make of which raw files.
        workers: what computes it, and in how much memory.
        step: 'all', or one of download, metadata, tokenizer, tokenize, ratings, scale, downstream.

    Raises:
        InputError: bad input or bindings. Nothing that was finished is lost.
    """
    if step not in ("all", "download", *STEPS):
        raise InputError(f"--step={step}: no such step; one of all, download, {', '.join(STEPS)}")
    with (
        in_one_line(plan.output, "it goes on from what is finished"),
        open_workspace(plan.output_folder, plan.name) as workspace,
    ):
        try:
            reports = _run(plan, workspace, workers, step)
        except KeyboardInterrupt:
            logging.warning("%s: the same command goes on from what is finished", plan.output_folder)
            raise
    print_report(reports)


def _run(plan: Plan, workspace: Workspace, workers: Workers, step: str) -> list[StepReport]:
    """Fetches what is missing, then runs one step or all, keeping `etl_report.json` up to date."""
    memory, reports = PeakMemory(), []
    if step in ("all", "download"):
        reports.append(_download(plan, memory))
        if step == "download":
            return reports
    found = plan.raw_files()
    logging.info("%d raw files, %.1f GB", len(found), sum(path.stat().st_size for path in found) / 1e9)
    with workers.open(_item_table_bytes(plan.items, plan.source_folder)) as (pool, at_a_time):
        build = Build(plan, workspace, pool, at_a_time, memory)
        for name in STEPS if step == "all" else (step,):
            reports.append(build.run(name))
            write_report(plan.output_folder, reports)
    return reports


def _download(plan: Plan, memory: PeakMemory) -> StepReport:
    """Fetches the raw files that are missing."""
    started = time.monotonic()
    fetched = download(plan.source_folder, plan.urls, plan.checksums)
    size = sum((plan.source_folder / name).stat().st_size for name in fetched)
    return StepReport("download", 0, 0, {}, [], time.monotonic() - started, size, memory.bytes)


def _item_table_bytes(items: ItemFiles, source: Path) -> int:
    return sum(path.stat().st_size // _ITEM_TABLE_SHARE[path.suffix == ".gz"] for path in items.find(source))
