"""Parameters of a run under the reference's names, so that its MLflow databases and ours read alike."""

from collections.abc import Mapping
from typing import Any

from seqrec_jax.runs import flops


def reference_params(
    model: Any, corpus: Any, config: Mapping[str, Any], n_targets: int, batch_size: int
) -> dict[str, Any]:
    """Parameters for MLflow (DESIGN section 8); `forward_flops` and `total_flops` in the reference's unit.

    `model` (a Recommender) is trained on `corpus` with `config`, a TrainConfig as describe() has it; `n_targets` are
    those of an epoch, which the reference calls n_inters, `batch_size` those of a step.
    """
    a, data, loss, n_texts = model.spec.architecture, corpus.data, config["loss"], len(model.spec.texts)
    names = [of.get("name") if isinstance(of, Mapping) else of for of in (config["proposal"], loss.get("negatives"))]
    n_negatives = loss.get("n_negatives", data.n_items)  # a loss without negatives encodes the whole catalog, once
    shared = "n_negatives" not in loss or names[1] == "shared"
    sizes = {name: array.size for name, array in model.params.items()}
    return {
        "dataset": data.name, "n_users": data.n_users, "n_items": data.n_items, "n_inters": n_targets,
        "n_layers": a.n_layers, "n_heads": a.n_heads, "hidden_size": a.hidden_size, "inner_size": a.inner_size,
        "embedding_size": a.embedding_size or a.hidden_size, "hidden_dropout_prob": a.hidden_dropout,
        "attn_dropout_prob": a.attention_dropout, "MAX_ITEM_LIST_LENGTH": a.max_length, "pooling_mode": a.pooling,
        "selected_features": list(model.spec.table_rows), "train_batch_size": batch_size,
        "weight_decay": config["optimizer"].get("weight_decay"), "loss": loss["name"], "item_encoder": a.item_encoder,
        "nce_sampling_strategy": names[0], "nce_num_negatives": n_negatives, "nce_global_negatives": shared,
        "nce_temperature": loss.get("temperature"), "nce_label_smoothing": loss.get("label_smoothing"),
        "model_total_params": sum(sizes.values()),
        "model_non_emb_params": sum(size for name, size in sizes.items() if name not in model.graph.tables),
        "forward_flops": flops.forward_multiply_adds(a, n_texts, batch_size),
        "total_flops": flops.total_multiply_adds(a, n_texts, batch_size, n_negatives, shared),
    }  # fmt: skip
