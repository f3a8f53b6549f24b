"""Text to token ids: SRT's normalisation and a SentencePiece BPE model."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

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
    """A SentencePiece model whose token id 0 is padding.

    A model trained elsewhere may give id 0 to a real piece; all its ids are then raised by one.

    Args:
        model: the serialized SentencePiece model.

    Raises:
        InputError: it is no such model.
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


def file_of(path: Path) -> Path:
    """The file of a SentencePiece model, given itself or a dataset's or a run's folder.

    Raises:
        InputError: it is missing.
    """
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such tokenizer; bind TOKENIZER to a SentencePiece .model file")
    return file


def load(path: Path) -> Tokenizer:
    """Reads a SentencePiece model from a file, or from a dataset's or a run's folder.

    Raises:
        InputError: it is missing or no such model.
    """
    file = file_of(path)
    return Tokenizer(file.read_bytes(), str(file))


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains byte-pair encoding on normalised texts; fewer pieces come out where the texts do not hold so many.

    Args:
        texts: normalised.
        vocab_size: pieces, padding and the unknown token among them.

    Raises:
        InputError: vocab_size is too small for the texts' characters.
    """
    sentencepiece.set_min_log_level(2)
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            character_coverage=0.9995,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"VOCAB_SIZE = {vocab_size}: {' '.join(str(error).split())[-160:]}") from error
    return Tokenizer(out.getvalue())
