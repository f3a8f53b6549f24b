"""Raw files in the formats of Amazon's product data, of any size: for benchmarks, tests, and trying the ETL out.

What is real about them: the fields, the length of a record (about 4 KB of JSON an item), the order of the ratings
file (by item), how many ratings users and items have (heavy-tailed, 5.4 a user on average), and the kinds of bad rows.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from isal import igzip

RATINGS = "all_csv_files.csv"
METADATA = "All_Amazon_Meta.json.gz"
REVIEWS = {"beauty": "reviews_Beauty_5.json.gz", "sports": "reviews_Sports_and_Outdoors_5.json.gz"}

_ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
_SYLLABLES = [
    "ba",
    "co",
    "di",
    "fu",
    "ge",
    "hi",
    "ja",
    "ko",
    "lu",
    "me",
    "no",
    "pa",
    "qui",
    "ro",
    "su",
    "ta",
    "ve",
    "wo",
    "xi",
    "yo",
    "zu",
    "ster",
    "ton",
    "mark",
    "line",
    "pro",
    "mat",
    "ic",
    "al",
    "ex",
]
_ROWS_PER_WRITE = 2_000_000
_FIRST_SECOND, _LAST_SECOND = 946_684_800, 1_538_352_000  # 2000-01-01 and 2018-10-01


def _codes(prefix: bytes, numbers: np.ndarray, length: int) -> np.ndarray:
    """Distinct upper-case codes for distinct numbers below 36^6: [n, length] uint8."""
    mixed = (numbers.astype(np.uint64) * np.uint64(1_500_450_271)) % np.uint64(36**6)  # a prime: one to one
    codes = np.empty((len(numbers), length), np.uint8)
    codes[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    for column in range(length - 1, len(prefix) - 1, -1):
        codes[:, column] = _ALPHABET[mixed % np.uint64(36)]
        mixed //= np.uint64(36)
    return codes


def item_codes(numbers: np.ndarray) -> np.ndarray:
    """ASINs: [n, 10] uint8."""
    return _codes(b"B00", numbers, 10)


def user_codes(numbers: np.ndarray) -> np.ndarray:
    """Reviewer ids of 13, 14 or 21 characters, padded with 0: [n, 21] uint8."""
    codes = np.zeros((len(numbers), 21), np.uint8)
    codes[:, :14] = _codes(b"A", numbers, 14)
    codes[numbers % 4 == 0, 13] = 0
    long = numbers % 100 == 1
    codes[long, 14:] = codes[long, 7:14]
    return codes


def _rating_rows(users: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> bytes:
    """Lines `item,user,rating,timestamp`."""
    n = len(users)
    rows = np.zeros((n, 10 + 1 + 21 + 1 + 3 + 1 + 10 + 1), np.uint8)
    rows[:, [10, 32, 36]] = ord(",")
    rows[:, :10] = item_codes(items)
    rows[:, 11:32] = user_codes(users)
    rows[:, 33:36] = np.frombuffer(b"5.0", np.uint8)
    rows[:, 33] = ord("1") + rng.choice(5, n, p=[0.1, 0.05, 0.1, 0.15, 0.6])
    rest = rng.integers(_FIRST_SECOND, _LAST_SECOND, n) // 86_400 * 86_400  # as in the source: midnights
    for column in range(46, 36, -1):
        rows[:, column] = ord("0") + rest % 10
        rest //= 10
    rows[rows[:, 37] == ord("0"), 37] = 0  # no leading zero before September 2001
    rows[:, 47] = ord("\n")
    return rows[rows != 0].tobytes()


def write_ratings(path: Path, n_ratings: int, n_items: int, bad_rows: int = 0, seed: int = 0) -> None:
    """Writes `all_csv_files.csv`: n_ratings good rows, ordered by item, and bad ones spread among them."""
    rng = np.random.default_rng(seed)
    n_users = max(1, int(n_ratings / 5.4))
    activity = np.minimum((1 - rng.random(n_users)) ** (-1 / 1.2), 5_000.0)
    per_user = rng.poisson(activity * (n_ratings / activity.sum()))
    users = np.repeat(np.arange(n_users, dtype=np.int32), per_user)
    users = np.append(users, rng.integers(0, n_users, max(0, n_ratings - len(users)), np.int32))
    rng.shuffle(users)
    users = users[:n_ratings]
    popularity = np.minimum((1 - rng.random(n_items)) ** -1.0, 20_000.0)
    per_item = rng.multinomial(n_ratings, popularity / popularity.sum())
    items = np.repeat(np.arange(n_items, dtype=np.int32), per_item)
    bad = [b"B00BAD0001,ABAD,5.0\n", b"B00BAD0002,ABAD,5.0,1400000000,x\n", b"B00BAD0003,ABAD,5.0,soon\n"]
    bad_at = (
        set(np.linspace(0, n_ratings, bad_rows, endpoint=False).astype(int) // _ROWS_PER_WRITE) if bad_rows else set()
    )
    left = bad_rows
    with path.open("wb") as file:
        for first in range(0, n_ratings, _ROWS_PER_WRITE):
            block = slice(first, first + _ROWS_PER_WRITE)
            file.write(_rating_rows(users[block], items[block], rng))
            if first // _ROWS_PER_WRITE in bad_at:
                here = min(left, -(-bad_rows // len(bad_at)))
                file.write(b"".join(bad[i % len(bad)] for i in range(here)))
                left -= here


class _Texts:
    """What records are made of: words by frequency, brands, running text, categories."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.vocabulary = np.array(_words(rng, 20_000))
        share = 1 / np.arange(1, len(self.vocabulary) + 1)
        self.share = share / share.sum()
        self.brands = [f"{word.title()} {i % 97}" for i, word in enumerate(_words(rng, 5_000))]
        self.running = " ".join(rng.choice(self.vocabulary, 200_000, p=self.share)) + ' "quoted" & <b>caf\u00e9</b> '
        self.categories = [f"{word.title()} & {word} things" for word in _words(rng, 300)]


def _words(rng: np.random.Generator, n: int) -> list[str]:
    return ["".join(rng.choice(_SYLLABLES, length)) for length in rng.integers(1, 4, n)]


def _record(
    asin: str, ordinal: int, title: str, brand: str, related: list[str], text: str, categories: list[str]
) -> str:
    image = f"https://images.example.com/images/I/{related[0]}L._SS40_.jpg"
    return json.dumps(
        {
            "category": categories,
            "tech1": "",
            "description": [text[: 700 + ordinal % 700]],
            "fit": "",
            "title": title,
            "also_buy": related[: 30 + ordinal % 30],
            "image": [image],
            "tech2": "",
            "brand": brand,
            "feature": [text[k * 90 : k * 90 + 85] for k in range(5)],
            "rank": f"{ordinal * 37 % 900_000:,} in Sports & Outdoors (",
            "also_view": related[10 : 35 + ordinal % 25],
            "details": {"\n    Product Dimensions: \n    ": "10 x 8 x 1 inches", "Shipping Weight:": "1.2 pounds"},
            "main_cat": "Sports & Outdoors",
            "similar_item": "",
            "date": "June 12, 2014",
            "price": f"${ordinal % 90}.99",
            "asin": asin,
            "imageURL": [image] * 3,
            "imageURLHighRes": [image.replace("_SS40_.", "")] * 3,
        }
    )


def _records(first: int, n: int, n_items: int, seed: int) -> bytes:
    """Gzipped JSON lines of items first .. first + n - 1."""
    texts, rng = _Texts(seed), np.random.default_rng([seed, first])
    asins = [code.tobytes().decode() for code in item_codes(np.arange(first, first + n))]
    related = [code.tobytes().decode() for code in item_codes(rng.integers(0, n_items, n * 60))]
    lengths = np.clip(rng.lognormal(2.3, 0.5, n).astype(int), 1, 40)
    words = rng.choice(texts.vocabulary, int(lengths.sum()), p=texts.share)
    starts = rng.integers(0, len(texts.running) - 1_500, n)
    kind = rng.random(n)
    lines, at = [], 0
    for i, asin in enumerate(asins):
        title = " ".join(words[at : at + lengths[i]]).capitalize()
        at += lengths[i]
        if kind[i] < 0.02:
            title = ""
        elif kind[i] < 0.03:
            title = f"var aPageStart = (new Date()).getTime(); {title}"
        brand = texts.brands[int(kind[i] * 1e6) % len(texts.brands)] if i % 7 else ""
        text = texts.running[starts[i] : starts[i] + 1_500]
        categories = texts.categories[i % 40 : i % 40 + 1 + i % 6]
        lines.append(_record(asin, i, title, brand, related[i * 60 : i * 60 + 60], text, categories))
    return igzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=2, mtime=0)


def write_metadata(path: Path, n_items: int, rated_items: int | None = None, seed: int = 1) -> None:
    """Writes `All_Amazon_Meta.json.gz`: an object a line; of 100 titles two are empty and one is a page's script."""
    block = 20_000
    firsts = range(0, n_items, block)
    sizes = [min(block, n_items - first) for first in firsts]
    known, seeds = [rated_items or n_items] * len(sizes), [seed] * len(sizes)
    with path.open("wb") as file:
        if len(sizes) == 1:
            file.write(_records(0, sizes[0], known[0], seed))
            return
        with ProcessPoolExecutor() as pool:
            file.writelines(pool.map(_records, firsts, sizes, known, seeds))


def write_reviews(path: Path, n_users: int, first_user: int, n_items: int, seed: int) -> None:
    """Writes a file of 5-core reviews: an object a line, users first_user .. and 5 to 14 reviews each."""
    rng = np.random.default_rng(seed)
    catalog = rng.integers(0, int(n_items * 1.05) + 1, max(10, n_users // 2))
    lines = []
    for user in range(first_user, first_user + n_users):
        code = user_codes(np.array([user]))[0]
        reviewer = code[code != 0].tobytes().decode()
        items = item_codes(rng.choice(catalog, rng.integers(5, 15)))
        for item in items:
            record = {
                "reviewerID": reviewer,
                "asin": item.tobytes().decode(),
                "reviewerName": "A reader",
                "helpful": [0, 0],
                "reviewText": "Just what I was looking for. " * int(rng.integers(2, 25)),
                "overall": float(rng.integers(1, 6)),
                "summary": "Good",
                "unixReviewTime": int(rng.integers(_FIRST_SECOND, 1_405_987_200)) // 86_400 * 86_400,
                "reviewTime": "07 1, 2014",
            }
            lines.append(json.dumps(record) + "\n")
    path.write_bytes(igzip.compress("".join(lines).encode(), mtime=0))


def make_amazon(folder: str | Path, n_ratings: int, n_items: int, bad_rows: int = 0, seed: int = 0) -> None:
    """Writes the four raw files of `gin/etl_amazon.gin` into a folder.

    Args:
        folder: made if missing.
        n_ratings: good rows of the ratings file.
        n_items: items of the metadata; the ratings name 5 % more.
        bad_rows: rows of the ratings file with a column too few or too many, or a timestamp that is no number.
        seed: the same seed gives the same files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rated_items = int(n_items * 1.05) + 1
    write_ratings(folder / RATINGS, n_ratings, rated_items, bad_rows, seed)
    write_metadata(folder / METADATA, n_items, rated_items, seed + 1)
    for ordinal, name in enumerate(REVIEWS.values()):
        n_users = max(5, min(30_000, n_ratings // 10_000))
        write_reviews(folder / name, n_users, ordinal * n_users // 2, n_items, seed + 2 + ordinal)
