import re
import unicodedata

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
        ("दिन, दीन! दूना", "दिन दीन दूना"),  # vowel signs
        ("İstanbul IĞDIR", "i\u0307stanbul iğdir"),  # lower() of the first letter ends in a combining dot
        ("Cafe\u0301, e\u0308tage", "café ëtage"),
        ("x\u030cy \u0301 z", "x\u030cy z"),  # a mark that no letter is precomposed with, and one alone
        ("น้ำปลา ที่ดี", "น้ำปลา ที่ดี"),
        ("கொடி (পাখি)", "கொடி পাখি"),
        ("كِتَابٌ، שָׁלוֹם־רב", "كِتَابٌ שָׁלוֹם רב"),
        ("한글 \u1112\u1161\u11ab\u1100\u1173\u11af", "한글 한글"),  # syllables, and the same in letters
        ("１２３ ＡＢ", "１２３ ａｂ"),
        ("क्\u200cष क्\u200dष র\u200d্য", "क्ष क्ष র্য"),  # joiners that only shape the letters
        ("کتاب\u200cها", "کتاب ها"),  # and one that parts a word from its ending
        ("葛\U000e0100城 5\ufe0f\u20e3 ❤\ufe0f", "葛城 5"),
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


def test_latin_letters_make_the_words_that_they_made_without_marks():
    letters = [chr(code) for code in range(128, 0x20000) if unicodedata.category(chr(code))[0] == "L"]
    latin = [letter for letter in letters if "LATIN" in unicodedata.name(letter, "") and letter != "İ"]
    assert len(latin) > 1_000
    for letter in latin:
        text = f"{letter} x{letter}Y-{letter}{letter}."
        assert tokenizer.words(text) == re.findall(r"\w+", text.lower())


def test_every_normal_form_of_a_text_has_the_same_words():
    letters = (chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000)
    for letter in letters:
        text = f"a{letter}b"
        if not unicodedata.is_normalized("NFD", text):
            assert tokenizer.words(text) == tokenizer.words(unicodedata.normalize("NFD", text))


def test_marks_survive_in_the_tokens():
    words = ["दिन", "दीन", "दान", "दाना", "दूना", "เท", "เท่", "كِتَاب", "كُتَّاب"]
    tokens = tokenizer.train([tokenizer.normalize(word) for word in words] * 9, 200).encode(words, 9)
    assert len(set(map(tuple, tokens))) == len(words)


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
