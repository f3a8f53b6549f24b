"""The ETL on raw files of Amazon's formats, and its ratings job beside Polars and DuckDB, in one process tree.

    python benchmarks/etl.py --ratings 60000000 --items 2000000 [--memory-limit 4GB] [--json FILE]

Makes the raw files (kept with --folder, and used again), runs the pipeline step by step, and then the same ratings job
in each peer: read the CSV, keep rows of items with metadata, leave out held-out users and users with fewer than 5,
group by user, sort by time, write. All end with the same users and interactions, which is checked. Wall time and
resident memory are those of each job's whole process tree. Opening the largest sample and its batches come last.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.pop(0)  # This script's folder, where it would hide the package of the same name.

CORE = 5
PEERS = ("polars", "duckdb")


def polars(source: str, items: str, held_out: str, output: str) -> tuple[int, int]:
    """The ratings job in Polars' lazy engine; every thread that the machine has."""
    import polars as pl

    schema = {"item": pl.String, "user": pl.String, "rating": pl.Float32, "timestamp": pl.Int64}
    log = pl.scan_csv(source, has_header=False, schema=schema, truncate_ragged_lines=True, ignore_errors=True)
    users = (
        log.drop_nulls()
        .join(pl.scan_parquet(items), on="item", how="semi")
        .join(pl.scan_parquet(held_out), on="user", how="anti")
        .sort("timestamp", maintain_order=True)
        .group_by("user")
        .agg("item", "timestamp", "rating")
        .filter(pl.col("item").list.len() >= CORE)
        .collect()
    )
    users.write_ipc(output)
    return users.height, int(users["item"].list.len().sum())


def duckdb(source: str, items: str, held_out: str, output: str) -> tuple[int, int]:
    """The ratings job in DuckDB."""
    import duckdb as db

    columns = "{'item': 'VARCHAR', 'user': 'VARCHAR', 'rating': 'FLOAT', 'timestamp': 'BIGINT'}"
    job = f"""
        SELECT "user", list(item ORDER BY timestamp) AS items, list(timestamp ORDER BY timestamp) AS timestamps,
               list(rating ORDER BY timestamp) AS ratings
        FROM read_csv('{source}', header = false, columns = {columns}, ignore_errors = true)
        WHERE item IN (SELECT item FROM '{items}') AND "user" NOT IN (SELECT "user" FROM '{held_out}')
        GROUP BY "user" HAVING count(*) >= {CORE}"""
    connection = db.connect()
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(f"COPY ({job}) TO '{output}' (FORMAT parquet)")
    users, interactions = connection.execute(
        f"SELECT count(*), sum(len(items)) FROM read_parquet('{output}')"
    ).fetchall()[0]
    return users, int(interactions)


def watched(command: list[str]) -> tuple[float, int, str]:
    """Runs a command; returns its seconds, the peak resident bytes of its process tree, and what it printed."""
    os.sync()  # What was written before is not to slow this down.
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as printed:
        process = psutil.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            total = 0
            for each in [process, *process.children(recursive=True)]:
                try:
                    total += each.memory_info().rss
                except psutil.Error:  # It ended meanwhile.
                    continue
            peak = max(peak, total)
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        printed.seek(0)
        text = printed.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{text}")
    return seconds, peak, text


def make_raw_files(folder: Path, n_ratings: int, n_items: int) -> Path:
    """Raw files of the size, made unless the folder has them."""
    from etl.synthetic_amazon import make_amazon

    raw = folder / f"raw-{n_ratings}-{n_items}"
    if not (raw / "made").exists():
        make_amazon(raw, n_ratings, n_items, bad_rows=n_ratings // 100_000)
        (raw / "made").touch()
    return raw


def run_pipeline(raw: Path, output: Path, memory_limit: str) -> list[dict]:
    """The pipeline's steps, each in a process tree of its own."""
    steps = []
    for step in ("metadata", "tokenizer", "tokenize", "ratings", "scale", "downstream"):
        seconds, peak, _ = watched(
            [
                *(sys.executable, "-m", "etl.main", "--gin_file=gin/etl_amazon.gin", f"--step={step}"),
                f"--gin_bindings=SOURCE='{raw}'",
                f"--gin_bindings=OUTPUT='{output}'",
                f"--gin_bindings=MEMORY_LIMIT='{memory_limit}'",
                "--gin_bindings=TIES='file'",  # which is what the peers do
            ]
        )
        reports = {each["step"]: each for each in json.loads((output / "etl_report.json").read_text())["steps"]}
        steps.append({**reports[step], "wall_seconds": seconds, "peak_rss_bytes": peak})
        print(f"{step}: {seconds:.1f} s, {peak / 1e9:.2f} GB", flush=True)
    return steps


def export_for_peers(raw: Path, output: Path, folder: Path) -> tuple[Path, Path]:
    """The ids of items with metadata and of held-out users, as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    from etl.arrow_files import read_table
    from etl.raw.text_blocks import text_blocks

    items, held_out = folder / "items.parquet", folder / "held_out.parquet"
    parts = sorted((output / ".etl" / "amazon" / "metadata").glob("*.arrow"))
    ids = pa.concat_tables([read_table(part, ["item_id"]) for part in parts])
    parquet.write_table(ids.rename_columns(["item"]), items)
    users = set()
    for path in raw.glob("reviews_*.json.gz"):
        for block in text_blocks(path):
            users |= {json.loads(line)["reviewerID"] for line in block.read().splitlines()}
    parquet.write_table(pa.table({"user": sorted(users)}), held_out)
    return items, held_out


def opening_and_batches(folder: Path) -> dict:
    """What opening a dataset costs, in a process of its own, and how fast an epoch's batches come."""
    from seqrec_jax.data.store import open_dataset

    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    dataset = open_dataset(folder)
    seconds, after = time.perf_counter() - started, psutil.Process().memory_info().rss

    from seqrec_jax.data.batches import training_batches
    from seqrec_jax.data.corpus import Corpus

    started = time.perf_counter()
    batches = training_batches(Corpus(dataset), batch_size=3_200, loss_positions="all", max_length=50, shards=1, seed=0)
    prepare_seconds, started = time.perf_counter() - started, time.perf_counter()
    targets = sum(float(batches.batch(step).weights.sum()) for step in range(batches.steps_per_epoch))
    return {
        "dataset": folder.name,
        "interactions": dataset.n_interactions,
        "open_seconds": seconds,
        "open_bytes": after - before,
        "process_bytes_after_opening": after,
        "prepare_seconds": prepare_seconds,
        "targets_per_second": targets / (time.perf_counter() - started),
        "fill": batches.packing.fill,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=60_000_000)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--folder", type=Path, help="keeps raw files and datasets; a temporary one by default")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        name, *paths = arguments.job
        print(json.dumps({"polars": polars, "duckdb": duckdb}[name](*paths)))
        return
    if arguments.open:
        print(json.dumps(opening_and_batches(arguments.open)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(arguments, (arguments.folder or Path(temporary)).resolve())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """Runs everything and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = make_raw_files(folder, arguments.ratings, arguments.items)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / "datasets"
        steps = {step["step"]: step for step in run_pipeline(raw, output, arguments.memory_limit)}
        items, held_out = export_for_peers(raw, output, Path(scratch))
        ours = steps["ratings"]
        users = json.loads((output / "amazon-full" / "manifest.json").read_text())["counts"]["users"]
        jobs = {"seqrec_jax": {"seconds": ours["wall_seconds"], "peak_rss_bytes": ours["peak_rss_bytes"]}}
        for peer in arguments.peers:
            job = [peer, str(raw / "all_csv_files.csv"), str(items), str(held_out), f"{scratch}/{peer}.out"]
            seconds, peak, printed = watched([sys.executable, __file__, "--job", *job])
            counts = json.loads(printed.splitlines()[-1])
            if counts != [users, ours["rows_out"]]:
                sys.exit(f"{peer} ends with {counts}, seqrec_jax with {[users, ours['rows_out']]}")
            jobs[peer] = {"seconds": seconds, "peak_rss_bytes": peak, "version": version(peer)}
        sizes = {path.parent.name: path for path in output.glob("amazon-*/manifest.json")}
        largest = max(
            (name for name in sizes if name.endswith("M")),
            key=lambda name: json.loads(sizes[name].read_text())["counts"]["interactions"],
        )
        _, _, printed = watched([sys.executable, __file__, "--open", str(output / largest)])
    opened = json.loads(printed.splitlines()[-1])
    show(arguments, steps, jobs, opened)
    return {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "ratings": arguments.ratings,
        "items": arguments.items,
        "memory_limit": arguments.memory_limit,
        "steps": list(steps.values()),
        "ratings_job": jobs,
        "largest_sample": opened,
    }


def show(arguments: argparse.Namespace, steps: dict, jobs: dict, opened: dict) -> None:
    """Prints what was measured."""
    print(f"\n{arguments.ratings:,} ratings, {arguments.items:,} items, MEMORY_LIMIT = '{arguments.memory_limit}'")
    print(f"\n{'step':<12}{'rows in':>14}{'rows out':>14}{'seconds':>9}{'rows/s':>13}{'peak memory':>14}")
    for step in steps.values():
        rate = step["rows_in"] / step["wall_seconds"]
        print(
            f"{step['step']:<12}{step['rows_in']:>14,}{step['rows_out']:>14,}{step['wall_seconds']:>9.1f}{rate:>13,.0f}"
            f"{step['peak_rss_bytes'] / 1e9:>11.2f} GB"
        )
    texts = [steps[name]["wall_seconds"] for name in ("metadata", "tokenizer", "tokenize")]
    read = steps["metadata"]["rows_in"]
    print(
        f"\nitems, from JSON to tokens: {read / (texts[0] + texts[2]):,.0f} a second; {read / sum(texts):,.0f} with "
        "the tokenizer's training"
    )
    print(f"\n{'ratings job':<18}{'seconds':>9}{'rows/s':>13}{'peak memory':>14}{'ours is faster by':>20}")
    for name, job in jobs.items():
        label = f"{name} {job.get('version', '')}".strip()
        print(
            f"{label:<18}{job['seconds']:>9.1f}{arguments.ratings / job['seconds']:>13,.0f}"
            f"{job['peak_rss_bytes'] / 1e9:>11.2f} GB{job['seconds'] / jobs['seqrec_jax']['seconds']:>20.2f}"
        )
    print(
        f"\n{opened['dataset']}, {opened['interactions']:,} interactions: opens in {opened['open_seconds'] * 1e3:.0f} "
        f"ms and {opened['open_bytes'] / 1e6:.0f} MB, after which the process has "
        f"{opened['process_bytes_after_opening'] / 1e6:.0f} MB;\n"
        f"an epoch's batches come at {opened['targets_per_second']:,.0f} targets a second"
    )


if __name__ == "__main__":
    main()
