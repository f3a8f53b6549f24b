"""Text to token ids: SRT's normalisation and a SentencePiece BPE model."""

import re
from collections.abc import Sequence

import sentencepiece

from seqrec_jax.errors import InputError

UNKNOWN = "unknown"
_WORDS = re.compile(r"\w+")
_ASCII_WORDS = str.maketrans({chr(i): chr(i).lower() if _WORDS.match(chr(i)) else " " for i in range(128)})


def words(text: str) -> list[str]:
    """Lower-cased `\\w+` words; `unknown` where there is none."""
    if text.isascii():  # The same, several times as fast.
        return text.translate(_ASCII_WORDS).split() or [UNKNOWN]
    return _WORDS.findall(text.lower()) or [UNKNOWN]


def normalize(text: str) -> str:
    """Lower-cased `\\w+` words joined by blanks; `unknown` where none is left."""
    return " ".join(words(text))


class Tokenizer:
    """A SentencePiece model, serialized, whose token id 0 is padding; an InputError where it is none.

    A model trained elsewhere may give id 0 to a real piece; all its ids are then raised by one.
    """

    def __init__(self, model: bytes, source: str = "tokenizer"):
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
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
