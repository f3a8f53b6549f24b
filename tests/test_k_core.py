import numpy as np
import pyarrow as pa

from etl.arrow_files import read_table, write_batches
from etl.k_core import items_of_core, keep_core


def plain_core(log: set, user_core: int, item_core: int) -> set:
    """The definition: drop whatever has too few, until nothing does."""
    while True:
        users, items = ([row[side] for row in log] for side in (0, 1))
        left = {row for row in log if users.count(row[0]) >= user_core and items.count(row[1]) >= item_core}
        if left == log:
            return log
        log = left


def test_the_core_is_that_of_the_definition(tmp_path):
    rng = np.random.default_rng(5)
    pairs = {
        (int(user), int(item)) for user, item in zip(rng.integers(0, 60, 260), rng.zipf(1.5, 260) % 40, strict=True)
    }
    log = {(user, item, order) for order, (user, item) in enumerate(sorted(pairs))}
    paths = []
    for part in range(3):
        users = [user for user in range(60) if user % 3 == part]
        lists = [[item for who, item, _ in sorted(log, key=lambda row: row[2]) if who == user] for user in users]
        held = pa.record_batch(
            [
                pa.array([str(user) for user in users]),
                pa.array(np.arange(len(users), dtype=np.uint64)),
                pa.array(lists, pa.large_list(pa.int32())),
                pa.array([[10 * item for item in items] for items in lists], pa.large_list(pa.int64())),
            ],
            ["user_id", "user_hash", "items", "timestamps"],
        )
        paths.append(tmp_path / f"users{part}.arrow")
        write_batches(paths[-1], held.schema, [held])
    for user_core, item_core in ((2, 2), (3, 4), (5, 5), (50, 50)):
        expected = plain_core(log, user_core, item_core)
        stays, rounds = items_of_core(paths, 40, user_core, item_core)
        np.save(tmp_path / "stays.npy", stays)
        found, counted = set(), 0
        for path in paths:
            counts = keep_core(tmp_path / "core.arrow", path, tmp_path / "stays.npy", user_core)
            counted += counts["rows"]
            for row in read_table(tmp_path / "core.arrow").to_pylist():
                assert row["timestamps"] == [10 * item for item in row["items"]]
                found |= {(int(row["user_id"]), item) for item in row["items"]}
        assert found == {(user, item) for user, item, _ in expected}
        assert counted == len(found)
        assert rounds >= 1
