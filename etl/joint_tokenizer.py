"""One tokenizer over several sources, so that a model can be pre-trained on all of them and transferred among them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gin
import numpy as np
from absl import logging

from etl import output_folder, tokenizer
from etl.raw import atomic_files
from etl.recbole import MAX_TOKENS, read_items
from etl.running.failures import in_one_line
from seqrec_jax.data import format
from seqrec_jax.data.store import open_dataset
from seqrec_jax.errors import InputError
from seqrec_jax.files import write_bytes


def _columns(source: Path, features: Sequence[str]) -> Iterator[list[str]]:
    """Raw texts of a dataset folder, or of a folder with an `.item` file."""
    if (source / format.MANIFEST).is_file():
        table = open_dataset(source, verify=True).items_table
        names = [name for name in features if name in table.column_names]
        if not names:
            raise InputError(f"{source}: has none of the text features {', '.join(features)}")
        yield from ([text or "" for text in table[name].slice(1).to_pylist()] for name in names)
        return
    texts = read_items(atomic_files.find(source, ".item"), dict.fromkeys(features, 1))[1]
    yield from texts.values()


@gin.configurable
def train_tokenizer(
    sources: Sequence[str] = gin.REQUIRED,
    output: str = gin.REQUIRED,
    vocab_size: int = 30_000,
    features: Sequence[str] = tuple(MAX_TOKENS),
    texts_of_each: int = 1_000_000,
    seed: int = 42,
) -> tokenizer.Tokenizer:
    """Trains a SentencePiece model on the items' texts of several sources.

    Args:
        sources: dataset folders, or folders of RecBole's atomic files.
        output: `.model` file to write, which TOKENIZER may then be bound to.
        vocab_size: pieces.
        features: text columns to read, of those that a source has.
        texts_of_each: most texts of each column of a source, drawn at random.
        seed: of the draw.

    Raises:
        InputError: a source is missing or has no text, or the output is there and no tokenizer; nothing is written.
    """
    if not sources:
        raise InputError("SOURCES = [] names no source")
    with in_one_line(output, "nothing was written"):
        target = _target(Path(output))
        texts: list[str] = []
        for ordinal, source in enumerate(sources):
            for column in _columns(Path(source), features):
                kept = np.random.default_rng([seed, ordinal]).permutation(len(column))[:texts_of_each]
                texts += [tokenizer.normalize(column[row]) for row in np.sort(kept)]
        logging.info("tokenizer: training on %d texts of %d sources", len(texts), len(sources))
        model = tokenizer.train(texts, vocab_size)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, model.model)
    logging.info("%s: %d pieces", target, model.vocab_size)
    return model


def _target(output: Path) -> Path:
    """The file to write; an InputError where it would take the place of anything but a tokenizer."""
    if output.is_dir():
        raise InputError(f"{output}: is a folder; bind OUTPUT to a file such as 'tokenizer.model'")
    target = output_folder.real_path(output)
    if target.exists():
        try:
            tokenizer.load(target)
        except InputError as error:
            raise InputError(f"{output}: is there and is no tokenizer; bind OUTPUT to another file") from error
    return target
