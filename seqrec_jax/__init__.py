"""seqrec_jax: sequential recommenders in JAX, pre-trained on large logs and transferred to smaller catalogs.

    import seqrec_jax as sr

    data = sr.open_dataset("datasets/shop")
    corpus = sr.Corpus([data], split=sr.leave_one_out)
    model = sr.Recommender.create(corpus, sr.Architecture(hidden_size=64), seed=1)
    fitted = sr.fit(model, corpus, sr.TrainConfig(epochs=20, learning_rate=1e-3), run_dir="runs/shop")
    fitted.model.index(data).recommend(users=["u3"], k=10)

The names are loaded when they are first used: importing the package takes milliseconds and starts no device.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "data.store": ("open_dataset", "Dataset"),
    "data.split": ("leave_one_out", "by_ratio", "global_cut"),
    "data.corpus": ("Corpus",),
    "errors": ("InputError",),
    "model.spec": ("Architecture", "Spec"),
    "model.recommender": ("Recommender",),
    "model.storage": ("load", "save"),
    "inference.index": ("Index",),
    "evaluation.ranking": ("Ranking",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.compare": ("compare",),
    "losses.full_softmax": ("full_softmax",),
    "losses.sampled_softmax": ("sampled_softmax",),
    "losses.pairwise": ("bce", "bpr", "gbce"),
    "losses.negatives": ("local", "shared"),
    "losses.proposals.by_count": ("uniform", "popularity", "log_popularity"),
    "losses.proposals.co_counts": ("co_counts",),
    "losses.proposals.in_batch": ("similarity", "positive_mixing"),
    "losses.proposals.knn": ("knn",),
    "training.optimizers": ("adam", "adamw", "layerwise"),
    "training.schedules": ("one_cycle", "warmup_cosine", "constant"),
    "training.config": ("TrainConfig",),
    "training.fit": ("fit",),
    "runs.settings": ("RunSettings", "Checkpoints", "Reports", "Tracking"),
    "finetuning.config": ("FinetuneConfig",),
    "finetuning.methods": (
        "full", "only_embeddings", "progressive", "head_first", "low_rank", "from_scratch", "untrained",
    ),
    "finetuning.penalties": ("l2_sp", "ewc"),
    "finetuning.finetune": ("finetune",),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _PLACES.items() for name in names}
__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'seqrec_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"seqrec_jax.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})
