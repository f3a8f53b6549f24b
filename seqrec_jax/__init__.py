"""seqrec_jax: pre-train text-based sequential recommenders in JAX and transfer them to smaller domains."""

__version__ = "0.1.0"
