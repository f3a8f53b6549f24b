"""Tokenizers for datasets: trained on texts, or read from a file, a dataset or a run."""

import errno
import io
import os
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from seqrec_jax.errors import InputError
from seqrec_jax.items.tokenizer import UNKNOWN, Tokenizer, normalize, words

__all__ = ["UNKNOWN", "Tokenizer", "file_of", "load", "normalize", "train", "words"]


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
    if not (model := file.read_bytes()):
        raise InputError(
            f"{file}: is empty, as of a dataset without text; bind TOKENIZER to a SentencePiece .model file"
        )
    return Tokenizer(model, str(file))


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
        if os.strerror(errno.EAGAIN) in str(error):  # There is no memory for a thread, whatever the size.
            raise
        raise InputError(
            f"VOCAB_SIZE = {vocab_size}: no tokenizer of so many pieces can be trained on these texts "
            f"({' '.join(str(error).split())[-160:]}); bind another"
        ) from error
    return Tokenizer(out.getvalue())
