"""Datasets of any size from raw logs and item tables of any size: in bounded memory, resumable, reproducible."""

import errno
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
from absl import logging

from etl.plan import Plan
from etl.raw.download import download
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.running.report import StepReport, print_report, write_report
from etl.running.workers import PeakMemory, affordable_processes, open_executor
from etl.running.workspace import Workspace, open_workspace
from etl.steps import STEPS, Build
from seqrec_jax.errors import InputError
from seqrec_jax.host_memory import memory_bytes

_ITEM_TABLE_SHARE = {True: 50, False: 250}
"""Bytes of an item file, by whether it is compressed, for one byte of the table of ids: 16 for an item of 4 KB."""


@gin.configurable
def build_datasets(
    source: str = gin.REQUIRED,
    output: str = gin.REQUIRED,
    name: str = gin.REQUIRED,
    items: ItemFiles = gin.REQUIRED,
    interactions: InteractionFiles = gin.REQUIRED,
    domains: Mapping[str, InteractionFiles] | None = None,
    sizes: Sequence[int] = (),
    whole_catalog: bool = False,
    drop_without_metadata: bool = False,
    user_core: int = 1,
    item_core: int = 1,
    tokenizer_from: str | None = None,
    vocab_size: int = 30_000,
    tokenizer_items: int = 1_000_000,
    max_bad_rows: float = 0.001,
    seed: int = 42,
    urls: Mapping[str, str] | None = None,
    checksums: Mapping[str, str] | None = None,
    memory_limit: str | int | float = "4GB",
    processes: int | None = None,
    executor: str | None = None,
    step: str = "all",
) -> None:
    """Makes the dataset folders `NAME-full`, one for each size, and one for each domain, below the output folder.

    Interactions with items that the items' files lack are left out, then the users of the domains, then users and
    items with too few interactions. What became of every row is printed and written to `etl_report.json`. The same
    files and bindings give the same bytes, whatever the memory, the number of processes and the executor. A run that
    was interrupted goes on from its last finished part; a changed binding redoes what depends on it.

    Args:
        source: folder of the raw files.
        output: folder to write to.
        name: first part of the datasets' names.
        items: the items' files.
        interactions: the log's files.
        domains: logs of single domains, by name. Each becomes a dataset of its own, and its users are left out of all
            the others, so that a model can be pre-trained on these and fine-tuned on it.
        sizes: interactions to expect in samples of the users, such as 100_000; a smaller sample lies in a larger one.
        whole_catalog: have every item in `NAME-full`, not only those that occur in it, unless there is an item_core.
        drop_without_metadata: leave items without metadata or title out of the domains too.
        user_core: fewest interactions of a user.
        item_core: fewest interactions of an item; above 1, users and items are dropped in turn until all have enough.
        tokenizer_from: a SentencePiece model, or a dataset or run that holds one; None trains one on the items.
        vocab_size: pieces of a tokenizer trained here.
        tokenizer_items: about how many items it is trained on.
        max_bad_rows: largest share of rows that cannot be read; above it, the run ends.
        seed: of the samples.
        urls: where to fetch files that the source lacks, by name.
        checksums: SHA-256 of these files, by name, where known.
        memory_limit: of all processes together, such as '4GB' or '1.5GB'; decides how many there are.
        processes: most worker processes; None for one a core.
        executor: address of a Dask scheduler whose workers see the same files, such as 'tcp://host:8786'; None for
            processes on this machine.
        step: 'all', or one of download, metadata, tokenizer, tokenize, ratings, scale, downstream.

    Raises:
        InputError: bad input or bindings. Nothing that was finished is lost.
    """
    if step not in ("all", "download", *STEPS):
        raise InputError(f"--step={step}: no such step; one of all, download, {', '.join(STEPS)}")
    if not 0 <= max_bad_rows <= 1:
        raise InputError(f"MAX_BAD_ROWS = {max_bad_rows}: must be a share, from 0 to 1")
    for size in sizes:
        if size < 1:
            raise InputError(f"SIZES: {size} is no number of interactions")
    for binding, core in (("user_core", user_core), ("item_core", item_core)):
        if core < 1:
            raise InputError(f"Gin binding build_datasets.{binding} = {core}: must be 1 or more")
    plan = Plan(
        source=Path(source).absolute(),  # Workers may be in another folder.
        output=Path(output).absolute(),
        name=name,
        items=items,
        interactions=interactions,
        domains=dict(domains or {}),
        sizes=sorted(set(sizes)),
        whole_catalog=whole_catalog,
        drop_without_metadata=drop_without_metadata,
        user_core=user_core,
        item_core=item_core,
        tokenizer_from=None if tokenizer_from is None else Path(tokenizer_from).absolute(),
        vocab_size=vocab_size,
        tokenizer_items=tokenizer_items,
        max_bad_rows=max_bad_rows,
        seed=seed,
        urls=dict(urls or {}),
        checksums=dict(checksums or {}),
    )
    with open_workspace(plan.output, plan.name) as workspace:
        try:
            reports = _run(plan, workspace, step, memory_bytes(memory_limit), processes, executor)
        except KeyboardInterrupt:
            logging.warning("%s: the same command goes on from what is finished", plan.output)
            raise
        except FileNotFoundError as error:
            raise InputError(f"{error}; if it was removed, remove {workspace.folder} too, to begin afresh") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InputError(
                f"{plan.output}: no space is left on the disk; free some and run the same command again, it goes on "
                "from what is finished"
            ) from error
    print_report(reports)


def _run(
    plan: Plan, workspace: Workspace, step: str, limit: int, processes: int | None, executor: str | None
) -> list[StepReport]:
    """Fetches what is missing, then runs one step or all, keeping `etl_report.json` up to date."""
    memory, reports = PeakMemory(), []
    if step in ("all", "download"):
        reports.append(_download(plan, memory))
        if step == "download":
            return reports
    found = plan.raw_files()
    logging.info("%d raw files, %.1f GB", len(found), sum(path.stat().st_size for path in found) / 1e9)
    workers = affordable_processes(processes, limit, _item_table_bytes(plan.items, plan.source))
    with open_executor(workers, executor) as (pool, at_a_time):
        build = Build(plan, workspace, pool, at_a_time, memory)
        for name in STEPS if step == "all" else (step,):
            reports.append(build.run(name))
            write_report(plan.output, reports)
    return reports


def _download(plan: Plan, memory: PeakMemory) -> StepReport:
    """Fetches the raw files that are missing."""
    started = time.monotonic()
    fetched = download(plan.source, plan.urls, plan.checksums)
    size = sum((plan.source / name).stat().st_size for name in fetched)
    return StepReport("download", 0, 0, {}, [], time.monotonic() - started, size, memory.bytes)


def _item_table_bytes(items: ItemFiles, source: Path) -> int:
    return sum(path.stat().st_size // _ITEM_TABLE_SHARE[path.suffix == ".gz"] for path in items.find(source))
