"""Settings as JSON."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

import seqrec_jax as sr
from seqrec_jax.describe import describe, fits, identity_of, misfit, shown


def test_functions_are_their_names_and_all_of_their_settings():
    expected = {"name": "by_ratio", "valid": 0.1, "test": 0.2}
    assert describe(functools.partial(sr.by_ratio, test=0.2)) == expected
    assert describe(functools.partial(functools.partial(sr.by_ratio, test=0.3), test=0.2)) == expected
    assert describe(sr.leave_one_out) == {"name": "leave_one_out"}
    assert describe(sr.sampled_softmax)["negatives"] == {"name": "local"}


def test_settings_of_a_run_can_be_written():
    config = sr.TrainConfig(loss=functools.partial(sr.sampled_softmax, n_negatives=7), proposal=sr.uniform)
    written = json.loads(json.dumps(describe(config)))
    assert written == describe(config)
    assert written["loss"]["n_negatives"] == 7
    assert written["proposal"] == {"name": "uniform"}
    assert written["ranking"]["mode"] == "full"
    assert describe(dataclasses.replace(config)) == describe(config)


def test_numbers_paths_and_lists():
    given = {"a": np.float32(0.5), "b": (1, Path("x")), "c": None}
    assert describe(given) == {"a": 0.5, "b": [1, "x"], "c": None}
    with pytest.raises(TypeError, match="is no setting"):
        describe(np.zeros(3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_nan_and_infinity_fit_no_type(value):
    assert not fits(value, float)
    assert not fits((1.0, value), tuple[float, ...])
    with pytest.raises(sr.InputError, match=r"TrainConfig\.learning_rate = .*(nan|inf).* is not finite"):
        sr.TrainConfig(learning_rate=value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"), ("Größe 日本 हिन्दी", "Größe 日本 हिन्दी"), ("\x1b[31m", r"\x1b[31m"),
        ("a\u200fb", r"a\u200fb"),
        ("two\nlines", r"two\nlines"), ("\x9b1m", r"\x9b1m"), ("\U000e0041", r"\U000e0041"), ("x\x7f", r"x\x7f"),
        ("क्\u200dष\xa0x", "क्\u200dष\xa0x"), ("\u2028", r"\u2028"),
    ],
)  # fmt: skip
def test_what_a_terminal_may_be_given(text, expected):
    assert shown(text) == expected


def test_a_text_is_cut_and_its_line_breaks_kept_where_asked():
    assert shown("abcdef", 4) == "abc…"
    assert shown("a\n\tb\x07", kept="\n\t") == "a\n\tb\\x07"


def test_the_identity_of_a_configuration_is_that_of_its_values():
    assert (
        identity_of({"a": 1, "b": [1, 2]}) == identity_of({"b": [1, 2], "a": 1}) != identity_of({"a": 1, "b": [2, 1]})
    )


def test_a_whole_number_may_be_of_any_size():
    assert fits(10**400, int)
    assert misfit(10**400, str) == "is no str"
