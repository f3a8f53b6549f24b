"""Parameters of a run under the reference's names, so that its MLflow databases and ours read alike."""

from typing import Any

import gin
from flax import nnx

from seqrec_jax.data.store import Dataset
from seqrec_jax.model import parameters
from seqrec_jax.training import flops
from seqrec_jax.training.model_record import ModelRecord


def _operative() -> dict[str, str]:
    """Every parameter that a configured function was called with so far, defaults included, as Gin prints it."""
    lines = (line.split(" = ", 1) for line in gin.operative_config_str().splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


def reference_params(
    dataset: Dataset,
    record: ModelRecord,
    params: nnx.State,
    n_targets: int,
    train_batch_size: int,
    task: str = "pretrain",
) -> dict[str, Any]:
    """Parameters for MLflow (DESIGN section 8); `forward_flops` and `total_flops` in the reference's unit.

    Args:
        dataset: trained on.
        record: of the model.
        params: of the model.
        n_targets: of an epoch; the reference calls it n_inters.
        train_batch_size: targets of a step.
        task: whose bindings say the rest.
    """
    a, n_features = record.architecture, len(record.max_tokens)
    bound = _operative()
    loss = bound.get(f"{task}.loss", "@sampled_softmax").removeprefix("@")
    n_negatives = int(bound.get(f"{loss}.n_negatives", dataset.n_items))  # the full softmax takes them all
    shared = bound.get(f"{loss}.negatives", "@local") != "@local"
    return {
        "dataset": dataset.name,
        "n_users": dataset.n_users,
        "n_items": dataset.n_items,
        "n_inters": n_targets,
        "n_layers": a.n_layers,
        "n_heads": a.n_heads,
        "hidden_size": a.hidden_size,
        "inner_size": a.inner_size,
        "embedding_size": a.embedding_size or a.hidden_size,
        "hidden_dropout_prob": a.hidden_dropout,
        "attn_dropout_prob": a.attention_dropout,
        "MAX_ITEM_LIST_LENGTH": a.max_length,
        "pooling_mode": a.pooling,
        "selected_features": list(record.vocab_sizes),
        "train_batch_size": train_batch_size,
        "weight_decay": bound.get("adamw.weight_decay", bound.get("adam.weight_decay")),
        "loss": loss,
        "item_encoder": a.item_encoder,
        "nce_sampling_strategy": bound.get(f"{task}.proposal", "@popularity").removeprefix("@"),
        "nce_num_negatives": n_negatives,
        "nce_global_negatives": shared,
        "nce_temperature": bound.get(f"{loss}.temperature"),
        "nce_label_smoothing": bound.get(f"{loss}.label_smoothing"),
        "model_total_params": parameters.count(params),
        "model_non_emb_params": parameters.count(params, with_tables=False),
        "forward_flops": flops.forward_multiply_adds(a, n_features, train_batch_size),
        "total_flops": flops.total_multiply_adds(a, n_features, train_batch_size, n_negatives, shared),
    }
