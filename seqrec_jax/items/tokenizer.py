"""Text to token ids: SRT's normalisation and a SentencePiece BPE model."""

import functools
import re
import unicodedata
from collections.abc import Sequence

import sentencepiece

from seqrec_jax.errors import InputError

UNKNOWN = "unknown"
_ASCII_WORDS = str.maketrans({chr(i): chr(i).lower() if re.match(r"\w", chr(i)) else " " for i in range(128)})
_INVISIBLE = "\u034f\u180b-\u180d\u180f\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"  # joiners, variation selectors


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What to leave out of a text, and what is a word: `\\w`, which lacks combining marks, each with its marks.

    The zero-width non-joiner only shapes the letters of a word after a mark, as in Hindi; after a letter, as in
    Persian, it parts words.
    """
    marks = {code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc")}
    firsts, lasts = (sorted(code for code in marks if code + step not in marks) for step in (-1, 1))
    mark = "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))
    word = rf"\w+(?:(?![\0-\u02ff])[{mark}]+\w*)*"  # with a quick look ahead: below 0x300 is no mark
    return re.compile(rf"[{_INVISIBLE}]|\u200c(?<=[{mark}]\u200c)"), re.compile(word)


def words(text: str) -> list[str]:
    """Lower-cased words in NFC, the letters with their combining marks; `unknown` where there is none."""
    if text.isascii():  # The same, several times as fast.
        return text.translate(_ASCII_WORDS).split() or [UNKNOWN]
    invisible, word = _patterns()
    return word.findall(unicodedata.normalize("NFC", invisible.sub("", text).lower())) or [UNKNOWN]


def normalize(text: str) -> str:
    """Lower-cased words joined by blanks; `unknown` where none is left."""
    return " ".join(words(text))


class Tokenizer:
    """A SentencePiece model, serialized, whose token id 0 is padding; an InputError where it is none.

    A model trained elsewhere may give id 0 to a real piece; all its ids are then raised by one.
    """

    def __init__(self, model: bytes, source: str = "tokenizer"):
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._processor.encode("a")  # of what only looks like a model it is refused here
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{source}: is no SentencePiece model; bind TOKENIZER to a .model file") from error
        self._shift = 0 if self._processor.pad_id() == 0 else 1

    @property
    def vocab_size(self) -> int:
        """Token ids lie in [0, vocab_size)."""
        return self._processor.get_piece_size() + self._shift

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each normalised text, cut to max_tokens."""
        pieces = self._processor.encode(list(texts), out_type=int)
        return [[piece + self._shift for piece in text[:max_tokens]] for text in pieces]
