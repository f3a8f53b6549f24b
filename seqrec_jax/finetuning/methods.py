"""Methods of fine-tuning: what is trained, phase after phase (DESIGN section 9).

A method gives the phases for a model of so many blocks; what it is told in epochs is the most of them. Each phase has
an optimizer and a schedule of its own, and begins with the parameters that were best on validation in the one before.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from absl import logging

from seqrec_jax.errors import InputError
from seqrec_jax.model.recommender import ROWS
from seqrec_jax.model.terms import GRIDS, RepeatOffset
from seqrec_jax.training.tuning import everything, nothing

Names = Callable[[str], bool]


class Phase(NamedTuple):
    """A phase of fine-tuning."""

    name: str  # for folders and the log
    epochs: int  # at most
    trains: Names  # whether a parameter is trained, by its name
    adapts: Names = nothing  # whether a matrix gets a low-rank addition that is trained in its place
    rank: int = 0  # of the additions
    fresh: bool = False  # whether it begins with a freshly initialised model instead of the pre-trained one


Method = Callable[[int], Sequence[Phase]]


def with_something_to_train(phases: Sequence[Phase], names: Collection[str]) -> list[Phase]:
    """The phases that train any of the model's parameters, by their names; an InputError where of some none is left."""
    left = [phase for phase in phases if any(phase.trains(name) or phase.adapts(name) for name in names)]
    for name in [phase.name for phase in phases if phase not in left]:
        logging.info("phase %r is left out: the model has none of its parameters", name)
    if phases and not left:
        raise InputError("FinetuneConfig.method trains no parameter of the model; choose another")
    return left


def _block(name: str) -> int:
    """Number of the block that a parameter is of; -1 for none."""
    return int(name.split("/")[1]) if name.startswith("blocks/") else -1


def all_but_blocks(name: str) -> bool:
    """The item encoder, the positions, the first norm and the score terms."""
    return _block(name) < 0


def of_target(name: str) -> bool:
    """What a pre-trained model does not bring along: the items' own rows and the repeat offset."""
    return name == ROWS or name.startswith(f"terms/{RepeatOffset.name}/")


def top_blocks(n: int, n_layers: int) -> Names:
    """The top n blocks, and with them what is the target's alone; see of_target."""
    return lambda name: of_target(name) or _block(name) >= max(0, n_layers - n)


def head(name: str) -> bool:
    """The score terms, but for the weights that validation alone chooses."""
    return name.startswith("terms/") and name not in GRIDS


def _check(method: str, **at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{method}.{name} = {value} is below 1")


def from_scratch(n_layers: int, epochs: int = 30) -> list[Phase]:
    """The pre-trained architecture, trained on the target alone: what transfer is measured against."""
    _check("from_scratch", epochs=epochs)
    return [Phase("from_scratch", epochs, everything, fresh=True)]


def untrained(n_layers: int) -> list[Phase]:
    """Nothing is trained: the model as it is, its score terms weighed on validation."""
    return []


def full(n_layers: int, epochs: int = 30, freeze_embeddings: bool = False, unfreeze_n_layers: int = -1) -> list[Phase]:
    """Every parameter, or fewer: of the blocks the top unfreeze_n_layers, -1 for all.

    freeze_embeddings freezes the item encoder, the positions, the first norm and the score terms. Raises InputError
    where unfreeze_n_layers is above the model's blocks, or nothing is left to train.
    """
    _check("full", epochs=epochs)
    if not -1 <= unfreeze_n_layers <= n_layers:
        raise InputError(
            f"full.unfreeze_n_layers = {unfreeze_n_layers}, but the model has {n_layers} blocks; give a number from 0 "
            f"to {n_layers}, or -1 for all"
        )
    if freeze_embeddings and unfreeze_n_layers == 0:
        raise InputError("full.freeze_embeddings = True and full.unfreeze_n_layers = 0 leave nothing to train")
    blocks = top_blocks(n_layers if unfreeze_n_layers < 0 else unfreeze_n_layers, n_layers)
    return [Phase("full", epochs, lambda name: blocks(name) or (not freeze_embeddings and all_but_blocks(name)))]


def only_embeddings(n_layers: int, final_epochs: int = 30) -> list[Phase]:
    """All but the blocks, which are frozen."""
    _check("only_embeddings", final_epochs=final_epochs)
    return [Phase("only_embeddings", final_epochs, all_but_blocks)]


def progressive(n_layers: int, epochs_per_layer: int = 10, final_epochs: int = 50) -> list[Phase]:
    """The top block alone, then the top two, and so on to all blocks with the embeddings frozen; then everything."""
    _check("progressive", epochs_per_layer=epochs_per_layer, final_epochs=final_epochs)
    phases = [Phase(f"top_{n}", epochs_per_layer, top_blocks(n, n_layers)) for n in range(1, n_layers + 1)]
    return [*phases, Phase("everything", final_epochs, everything)]


def head_first(n_layers: int, head_epochs: int = 10, epochs: int = 30) -> list[Phase]:
    """The score terms alone, which find how far what was learnt before holds on the target; then everything (linear
    probing before fine-tuning, Kumar et al., ICLR 2022, for a model that scores by words, too)."""
    _check("head_first", head_epochs=head_epochs, epochs=epochs)
    return [Phase("head", head_epochs, head), Phase("everything", epochs, everything)]


def low_rank(n_layers: int, epochs: int = 30, rank: int = 8) -> list[Phase]:
    """Low-rank additions to the matrices of the blocks, the item encoder's projection and the score terms, in their
    place (LoRA, Hu et al., ICLR 2022); all else but what is the target's alone is frozen."""
    _check("low_rank", epochs=epochs, rank=rank)
    return [Phase("low_rank", epochs, of_target, lambda name: name.endswith("/kernel"), rank)]
