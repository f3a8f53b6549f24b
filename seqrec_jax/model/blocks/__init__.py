"""Transformer blocks by the name that `Architecture.block` gives; each is a file of its own."""

from seqrec_jax.model.blocks.ligr import LigrBlock
from seqrec_jax.model.blocks.srt import SrtBlock

BLOCKS = {"srt": SrtBlock, "ligr": LigrBlock}
