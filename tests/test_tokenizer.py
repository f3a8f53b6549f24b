import re

import numpy as np
import pytest

from etl import tokenizer
from seqrec_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("WAWO 15-Color, Eyeshadow!", "wawo 15 color eyeshadow"),
        ("  L'Oréal   Paris\t", "l oréal paris"),
        ("☕ ... ", "unknown"),
        ("", "unknown"),
        ("snake_case", "snake_case"),
    ],
)
def test_normalize(text, normal):
    assert tokenizer.normalize(text) == normal


def test_the_quick_way_for_ascii_finds_the_same_words():
    every_character = "".join(map(chr, range(128)))
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list(every_character), 40))
        assert tokenizer.words(text) == (re.findall(r"\w+", text.lower()) or ["unknown"])


def test_training_is_deterministic_and_0_is_padding():
    texts = [f"word{i} red hat number {i % 7}" for i in range(300)]
    first, second = (tokenizer.train(texts, 120) for _ in range(2))
    assert first.model == second.model
    tokens = first.encode(["red hat", "unseen ☕"], 3)
    assert all(1 <= token < first.vocab_size for text in tokens for token in text)
    assert max(map(len, tokens)) <= 3


def test_fewer_pieces_where_the_texts_hold_no_more():
    assert tokenizer.train(["red hat"] * 5, 30_000).vocab_size < 60


def test_a_vocabulary_below_the_alphabet_is_refused():
    with pytest.raises(InputError, match="VOCAB_SIZE = 3"):
        tokenizer.train(["the quick brown fox"] * 5, 3)
