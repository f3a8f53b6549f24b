"""Every block of Python in the documentation runs as it stands, on the tiny shop in place of the quick start's."""

import re
import textwrap
from pathlib import Path

import pytest

from seqrec_jax.items.features import FEATURES
from seqrec_jax.model.blocks import BLOCKS

ROOT = Path(__file__).resolve().parents[1]


def blocks_of(path):
    """Fenced blocks of Python, and the README's indented one."""
    text = path.read_text()
    fenced = re.findall(r"```python\n(.*?)```", text, re.S)
    indented = re.findall(r"(?m)^    import seqrec_jax as sr\n(?:(?:    .*)?\n)*", text)
    return [*fenced, *map(textwrap.dedent, indented)] if path.name == "README.md" else fenced


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, shop_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(FEATURES), dict(BLOCKS)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "dataset").symlink_to(shop_folder)
    try:
        for code in blocks_of(page):
            exec(compile(code, str(page), "exec"), {"__name__": "docs"})
    finally:
        for registry, known in zip((FEATURES, BLOCKS), before, strict=True):
            registry.clear()
            registry.update(known)


def test_the_extensions_have_their_pages():
    pages = {page.stem for page in (ROOT / "docs" / "extending").glob("*.md")}
    assert pages >= {"loss", "proposal", "block", "item_feature", "score_term"}
