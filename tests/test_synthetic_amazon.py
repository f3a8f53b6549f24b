import gzip
import json

from etl.synthetic_amazon import make_amazon


def unzipped(path):
    return gzip.decompress(path.read_bytes()).splitlines()


def test_the_raw_files_are_of_the_real_formats(tmp_path):
    for folder in ("a", "b"):
        make_amazon(tmp_path / folder, 2_000, 500, bad_rows=6)
    lines = (tmp_path / "a" / "all_csv_files.csv").read_text().splitlines()
    assert len(lines) == 2_006
    assert sum(len(line.split(",")) == 4 and line.split(",")[3].isdigit() for line in lines) == 2_000
    items = [json.loads(line) for line in unzipped(tmp_path / "a" / "All_Amazon_Meta.json.gz")]
    assert len({item["asin"] for item in items}) == 500
    assert 3_000 < sum(len(json.dumps(item)) for item in items) / 500 < 5_000
    assert {"title", "brand", "category", "also_buy", "asin"} <= items[0].keys()
    rated = {line.split(",")[0] for line in lines}
    assert len(rated & {item["asin"] for item in items}) > 0.8 * len(rated)
    review = json.loads(unzipped(tmp_path / "a" / "reviews_Beauty_5.json.gz")[0])
    assert {"reviewerID", "asin", "overall", "unixReviewTime"} <= review.keys()
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
