"""What the tables say beside the numbers."""

import io

import pytest
from rich.console import Console

from seqrec_jax.studies.tables import forecast_table, rows_table
from seqrec_jax.tasks.tables import on_test, plain, print_tables, recommendations_table, results_table, slices_table

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
    assert on_test({"beauty": beauty}) == "Results on test (interactions at equal times, 44 %: in file order)"
    assert on_test({"beauty": beauty, "shop": random}) == (
        "Results on test (interactions at equal times, beauty 44 %: in file order; shop 33 %: in random order)"
    )
    one_each = {"order": "file", "neighbours": 0, "of": 0}
    assert on_test({"shop": one_each}) == "Results on test (interactions at equal times, 0 %: in file order)"


def test_a_forecast_has_columns_of_the_joint_law_where_there_is_one():
    of = {"metric": 0.05, "low": 0.04, "high": 0.06}
    joint = {"metric": 0.044, "low": 0.043, "high": 0.045}
    came = {"best": 0.04, "end": 0.04, "frontier_error": 0.25, "joint_error": 0.1}
    rows = [
        {"run": "wide", "compute": 1e12, "frontier": of, "joint": joint, **came},
        {"run": "wider", "compute": 2e12, "frontier": of, "joint": joint, "best": None, "end": None},
    ]
    forecast = {"metric": "valid/ndcg_at_10", "made": "2020", "runs": 12, "law": "power", "law_error": 0.05,
                "joint_law_error": 0.02, "forecasts": rows}  # fmt: skip
    table = forecast_table(forecast)
    assert {str(column.header): list(map(str, column.cells)) for column in table.columns} == {
        "run": ["wide", "wider"],
        "compute": ["1e+12", "2e+12"],
        "best, by power (± 5.0%)": ["0.0500 (0.0400 to 0.0600)"] * 2,
        "came": ["0.04", "–"],
        "error": ["+25.0%", "–"],
        "end, by the joint law (± 2.0%)": ["0.0440 (0.0430 to 0.0450)"] * 2,
        "came ": ["0.04", "–"],
        "error ": ["+10.0%", "–"],
    }
    alone = forecast_table(forecast | {"forecasts": [row | {"joint": None} for row in rows]})
    assert [column.header for column in alone.columns] == [column.header for column in table.columns[:5]]


def test_headings_of_two_lines_are_broken_not_escaped(capsys):
    metrics = {f"{name}_at_5": 0.5 for name in ("recall", "ndcg", "mrr")}
    print_tables(results_table({"a": metrics}, (5,), {"a": {"ndcg_at_5": (0.4, 0.6)}}, title="t"), width=100)
    first, second = capsys.readouterr().out.splitlines()[2:4]
    assert "95 % interval " in first
    assert "of NDCG@5 " in second
