"""What the tables say beside the numbers."""

import io

import pytest
from rich.console import Console

from seqrec_jax.studies.tables import rows_table
from seqrec_jax.tasks.tables import on_test, plain, recommendations_table, results_table, slices_table

HOSTILE = {
    "Phone case [/b] black": "Phone case [/b] black",
    "[red]red[/red] [link=x]here[/link]": "[red]red[/red] [link=x]here[/link]",
    "\x1b[2J\x1b]0;title\x07gone": r"\x1b[2J\x1b]0;title\x07gone",
    "left \u202eright\u2066": r"left \u202eright\u2066",
    "a\tb\r\nc\0": r"a\tb\r\nc\x00",
    "Größe, हिन्दी, 日本": "Größe, हिन्दी, 日本",
}


def printed(table) -> str:
    file = io.StringIO()
    Console(file=file, width=400, force_terminal=True, color_system=None).print(table)
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_the_users_are_texts(text):
    rows, of = [{"item": text, "title": text, "score": "1.00"}], {"targets": 0}
    metrics = {f"{name}_at_5": 0.5 for name in ("recall", "ndcg", "mrr")}
    for table in (
        recommendations_table(text, rows, rows), slices_table({text: of}, 5), rows_table(text, [{text: text, "n": 1}]),
        results_table({text: metrics}, (5,), title=text),
    ):  # fmt: skip
        shown = printed(table)
        assert HOSTILE[text].replace("_", " ") in shown
        assert not any(ord(character) < 32 and character != "\n" for character in shown)
        assert "\u202e" not in shown


def test_a_long_text_is_cut_to_a_line():
    assert len(plain("x" * 1_000_000)) == 200


def test_a_title_tells_the_order_of_ties_of_each_dataset():
    beauty = {"order": "file", "neighbours": 77, "of": 176}
    random = {"order": "random", "seed": 7, "neighbours": 1, "of": 3}
    assert on_test({"beauty": beauty}) == "Results on test (ties: as in the file, 44 % of neighbours)"
    assert on_test({"beauty": beauty, "shop": random}) == (
        "Results on test (ties: beauty as in the file, 44 % of neighbours; shop in random order, 33 % of neighbours)"
    )
    one_each = {"order": "file", "neighbours": 0, "of": 0}
    assert on_test({"shop": one_each}) == "Results on test (ties: as in the file, 0 % of neighbours)"
