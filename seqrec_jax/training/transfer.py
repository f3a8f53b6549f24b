"""Methods of fine-tuning: what is trained, stage after stage (DESIGN section 9, and what came since).

A method gives the stages for a model of so many blocks. Each has an optimizer and a schedule of its own, and begins
with the parameters that were best on validation in the one before.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import gin

from seqrec_jax.errors import InputError
from seqrec_jax.training.tuning import nothing

Names = Callable[[str], bool]


def everything(name: str) -> bool:
    """Every parameter."""
    del name
    return True


class Stage(NamedTuple):
    """A stage of fine-tuning.

    Attributes:
        name: for folders and the log.
        epochs: at most.
        trains: whether a parameter is trained, by its name.
        adapts: whether a matrix gets a low-rank addition that is trained in its place.
        rank: of the additions.
        fresh: begins with a freshly initialised model instead of the checkpoint's.
    """

    name: str
    epochs: int
    trains: Names
    adapts: Names = nothing
    rank: int = 0
    fresh: bool = False


Method = Callable[[int], Sequence[Stage]]


def _block(name: str) -> int | None:
    match = re.match(r"blocks/(\d+)/", name)
    return None if match is None else int(match[1])


def _belongs_to_the_domain(name: str) -> bool:
    """What a pre-trained model does not bring along: the items' own rows and the repeat offset."""
    return name == "repeat" or name.endswith("tables/item_id")


def top_blocks(n: int, n_layers: int) -> Names:
    """The top n blocks; the rows of the domain's items and the repeat offset, where there are any, learn with them."""

    def trains(name: str) -> bool:
        block = _block(name)
        return _belongs_to_the_domain(name) if block is None else block >= n_layers - n

    return trains


def all_but_blocks(name: str) -> bool:
    """The item encoder, the positions and the first norm."""
    return _block(name) is None


def _linear_maps(name: str) -> bool:
    """Matrices of the blocks and of the item encoder's projection."""
    return name.endswith("/kernel")


def _check(**at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name.replace('__', '.')} = {value} is below 1")


@gin.configurable
def from_scratch(n_layers: int, epochs: int = 30) -> list[Stage]:
    """The checkpoint's architecture, trained on the small domain alone: what transfer is measured against."""
    del n_layers
    _check(from_scratch__epochs=epochs)
    return [Stage("from_scratch", epochs, everything, fresh=True)]


@gin.configurable
def untrained(n_layers: int) -> list[Stage]:
    """Nothing is trained: the checkpoint as it is, its transitions, words and repeats weighed on validation."""
    del n_layers
    return []


@gin.configurable
def full(n_layers: int, epochs: int = 30, freeze_embeddings: bool = False, unfreeze_n_layers: int = -1) -> list[Stage]:
    """Every parameter, or fewer.

    Args:
        n_layers: blocks of the model.
        epochs: at most.
        freeze_embeddings: freeze the item encoder, the positions and the first norm.
        unfreeze_n_layers: blocks to train, from the top; -1 for all.

    Raises:
        InputError: unfreeze_n_layers is above the model's blocks.
    """
    _check(full__epochs=epochs)
    if not -1 <= unfreeze_n_layers <= n_layers:
        raise InputError(
            f"full.unfreeze_n_layers = {unfreeze_n_layers}, but the checkpoint's model has {n_layers} blocks; bind a "
            f"number from 0 to {n_layers}, or -1 for all"
        )
    blocks = top_blocks(n_layers if unfreeze_n_layers < 0 else unfreeze_n_layers, n_layers)
    if freeze_embeddings and unfreeze_n_layers == 0:
        raise InputError("full.freeze_embeddings = True and full.unfreeze_n_layers = 0 leave nothing to train")
    return [Stage("full", epochs, lambda name: blocks(name) or (not freeze_embeddings and all_but_blocks(name)))]


@gin.configurable
def only_embeddings(n_layers: int, final_epochs: int = 30) -> list[Stage]:
    """The item encoder, the positions and the first norm; the blocks are frozen."""
    del n_layers
    _check(only_embeddings__final_epochs=final_epochs)
    return [Stage("only_embeddings", final_epochs, all_but_blocks)]


@gin.configurable
def progressive(n_layers: int, epochs_per_layer: int = 10, final_epochs: int = 50) -> list[Stage]:
    """The top block alone, then the top two, and so on to all blocks with the embeddings frozen; then everything.

    Args:
        n_layers: blocks of the model.
        epochs_per_layer: at most, of each of the first n_layers stages.
        final_epochs: at most, of the last.
    """
    _check(progressive__epochs_per_layer=epochs_per_layer, progressive__final_epochs=final_epochs)
    stages = [Stage(f"top_{n}", epochs_per_layer, top_blocks(n, n_layers)) for n in range(1, n_layers + 1)]
    return [*stages, Stage("everything", final_epochs, everything)]


def head(name: str) -> bool:
    """The lexical head, which weighs words against what is learnt, and the repeat offset."""
    return name.startswith("lexical/") or name == "repeat"


@gin.configurable
def head_first(n_layers: int, head_epochs: int = 10, epochs: int = 30) -> list[Stage]:
    """The lexical head alone, which finds how far what was learnt before holds in the domain; then everything.

    (Linear probing before fine-tuning, Kumar et al., ICLR 2022, for a model that scores by words, too.)

    Args:
        n_layers: blocks of the model.
        head_epochs: at most, of the first stage.
        epochs: at most, of the second.
    """
    del n_layers
    _check(head_first__head_epochs=head_epochs, head_first__epochs=epochs)
    return [Stage("head", head_epochs, head), Stage("everything", epochs, everything)]


@gin.configurable
def low_rank(n_layers: int, epochs: int = 30, rank: int = 8) -> list[Stage]:
    """Low-rank additions to the linear maps, in their place (LoRA, Hu et al., ICLR 2022); all else but what belongs to
    the domain is frozen."""
    del n_layers
    _check(low_rank__epochs=epochs, low_rank__rank=rank)
    return [Stage("low_rank", epochs, _belongs_to_the_domain, _linear_maps, rank)]


class Penalty(NamedTuple):
    """What holds the parameters near the pre-trained ones.

    Attributes:
        strength: of strength * sum of importance * (p - start)^2.
        fisher_batches: of pre-training, for the importance; 0 weighs all parameters alike.
    """

    strength: float
    fisher_batches: int = 0


def _check_strength(name: str, strength: float) -> None:
    if strength <= 0:
        raise InputError(f"{name}.strength = {strength} is not above 0; bind finetune.penalty = None for none")


@gin.configurable
def l2_sp(strength: float = 0.01) -> Penalty:
    """L2 towards the start (L2-SP, Li et al., ICML 2018)."""
    _check_strength("l2_sp", strength)
    return Penalty(strength)


@gin.configurable
def ewc(strength: float = 100.0, n_batches: int = 3000) -> Penalty:
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017), by the diagonal of the Fisher information.

    Args:
        strength: times the sum; without the factor 1/2, as the reference has it.
        n_batches: of pre-training, over which the squared gradient is averaged.
    """
    _check_strength("ewc", strength)
    _check(ewc__n_batches=n_batches)
    return Penalty(strength, n_batches)
