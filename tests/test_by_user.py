import numpy as np
import pyarrow as pa
import pytest
from tables import with_the_hash_of

from etl.arrow_files import read_table
from etl.by_user import group_partition, order_by_user_and_time, partition_bits, partition_block
from etl.ids import hash_of, id_table
from etl.raw.interaction_files import InteractionFiles
from etl.time_order import TimeOrder

FILES = InteractionFiles(["log.csv"], "user", "item", "time", None, ["user", "item", "time"], "ms")


def save_table(folder, ids):
    folder.mkdir()
    id_table(pa.array(ids, pa.large_string())).save(folder)
    return folder


@pytest.fixture
def log(tmp_path):
    """A log of 40 users over 30 items, in a random order, many times alike; and what it holds."""
    rng = np.random.default_rng(3)
    rows = [
        (f"user{rng.integers(40)}", f"item{rng.integers(30)}", int(1.5e12 + rng.integers(50))) for _ in range(2_000)
    ]
    path = tmp_path / "log.csv"
    path.write_text("".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return path, rows


def grouped(tmp_path, path, bits, block_bytes, held_out, least, time_order=TimeOrder()):
    items = save_table(tmp_path / f"items{bits}-{block_bytes}", [f"item{i}" for i in range(25)])
    held = save_table(tmp_path / f"held{bits}-{block_bytes}", held_out)
    blocks = []
    for place, block in enumerate(FILES.blocks(path, block_bytes)):
        blocks.append(tmp_path / f"block{bits}-{block_bytes}-{place}.arrow")
        partition_block(blocks[-1], block, FILES, items, bits, time_order)
    tables, counts = [], []
    for partition in range(1 << bits):
        output = tmp_path / f"users{bits}-{block_bytes}-{partition}.arrow"
        counts.append(group_partition(output, blocks, partition, held, least))
        tables.append(read_table(output))
    return pa.concat_tables(tables), counts


@pytest.mark.parametrize(("bits", "block_bytes"), [(0, 1 << 20), (3, 5_000), (9, 700)])
def test_users_come_with_their_items_in_time_order_whatever_the_partitions(tmp_path, log, bits, block_bytes):
    path, rows = log
    table, counts = grouped(tmp_path, path, bits, block_bytes, ["user7", "nobody"], 40)
    expected = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # a stable sort: ties in the order of the log
        if int(item[4:]) < 25:
            expected.setdefault(user, []).append((int(item[4:]), 1_000_000 * time))
    few = sum(len(seen) for user, seen in expected.items() if len(seen) < 40 and user != "user7")
    assert sum(count["rejected"]["user is held out"] for count in counts) == len(expected["user7"])
    assert sum(count["rejected"]["user has fewer than 40 interactions"] for count in counts) == few > 0
    found = {row["user_id"]: list(zip(row["items"], row["timestamps"], strict=True)) for row in table.to_pylist()}
    assert found == {user: seen for user, seen in expected.items() if len(seen) >= 40 and user != "user7"}
    assert sum(count["rows"] for count in counts) == sum(map(len, found.values()))
    hashes = table["user_hash"].to_numpy()
    assert (np.diff(hashes.astype(object)) > 0).all()  # the order that does not depend on the partitions


def test_random_ties_depend_on_seed_user_and_item_alone(tmp_path, log):
    path, rows = log
    found = []
    for place, (bits, block_bytes, seed) in enumerate([(0, 1 << 20, 1), (3, 5_000, 1), (9, 700, 1), (3, 5_000, 2)]):
        folder = tmp_path / str(place)
        folder.mkdir()
        shuffled = folder / "log.csv"
        order = np.random.default_rng(place).permutation(len(rows))
        shuffled.write_text("".join("{},{},{}\n".format(*rows[row]) for row in order))
        table, _ = grouped(folder, shuffled, bits, block_bytes, ["nobody"], 1, TimeOrder("random", seed))
        found.append(table.to_pylist())
    assert found[0] == found[1] == found[2] != found[3]
    in_file_order, _ = grouped(tmp_path, path, 0, 1 << 20, ["nobody"], 1)
    for random, other_seed, in_file in zip(found[0], found[3], in_file_order.to_pylist(), strict=True):
        assert random["timestamps"] == other_seed["timestamps"] == in_file["timestamps"]
        pairs = [sorted(zip(row["timestamps"], row["items"], strict=True)) for row in (random, other_seed, in_file)]
        assert pairs[0] == pairs[1] == pairs[2]


def test_users_and_items_of_one_hash_are_told_apart(tmp_path):
    user, item = "A1B2C3D4E5F6G7", "B0000001AAAAAAAA"
    users, items = with_the_hash_of(user)[:3], with_the_hash_of(item)[:3]
    rows = [(user, item), (user, items[0]), (users[0], items[1]), (users[0], item), (users[1], items[2]), (user, item)]
    rows = [(*row, int(1.5e12) + place) for place, row in enumerate(rows)]
    path = tmp_path / "log.csv"
    path.write_text("".join(f"{user},{item},{time}\n" for user, item, time in rows))
    catalog = save_table(tmp_path / "items", [items[1], "other", item])
    held_out = save_table(tmp_path / "held", ["nobody", users[1], users[2]])
    (block,) = FILES.blocks(path, 1 << 20)
    counts = partition_block(tmp_path / "block.arrow", block, FILES, catalog, 0, TimeOrder())
    assert counts["without_item"] == 2
    found = group_partition(tmp_path / "users.arrow", [tmp_path / "block.arrow"], 0, held_out, 1)
    table = read_table(tmp_path / "users.arrow")
    assert dict(zip(*table.select(["user_id", "items"]).to_pydict().values(), strict=True)) == {
        user: [2, 2],
        users[0]: [0, 2],
    }
    assert found["rejected"]["user is held out"] == 0
    assert len(set(table["user_hash"].to_pylist())) == 1
    path.write_text(f"{users[1]},{item},1500000000000\n")
    (block,) = FILES.blocks(path, 1 << 20)
    partition_block(tmp_path / "block.arrow", block, FILES, catalog, 0, TimeOrder())
    found = group_partition(tmp_path / "users.arrow", [tmp_path / "block.arrow"], 0, held_out, 1)
    assert found["rejected"]["user is held out"] == 1


def test_the_quick_order_is_the_general_one():
    rng = np.random.default_rng(0)
    users = [rng.integers(0, 50, 3_000).astype(np.uint64)]
    times = rng.integers(0, 20, 3_000)
    hashes = hash_of(users)
    expected = np.lexsort((np.arange(3_000), times, hashes))
    np.testing.assert_array_equal(order_by_user_and_time(users, hashes, times), expected)
    # Hashes that only differ in their last bits, and two users of one hash: the general way.
    close = np.uint64(1 << 63) | users[0]
    np.testing.assert_array_equal(order_by_user_and_time(users, close, times), np.lexsort((times, close)))
    same = np.zeros(3_000, np.uint64)
    np.testing.assert_array_equal(order_by_user_and_time(users, same, times), np.lexsort((times, users[0])))
    # Times that span more than 40 bits.
    wide = times << 45
    np.testing.assert_array_equal(order_by_user_and_time(users, hashes, wide), expected)
    assert len(order_by_user_and_time([np.zeros(0, np.uint64)], np.zeros(0, np.uint64), np.zeros(0, np.int64))) == 0


def test_at_most_half_a_million_rows_lie_in_a_partition():
    assert [partition_bits(rows) for rows in (0, 500_000, 600_000, 60_000_000)] == [0, 0, 1, 7]
    assert partition_bits(10**12) == 10
