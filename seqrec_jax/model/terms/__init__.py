"""Score terms, each a file of its own, and what validation weighs of them."""

from seqrec_jax.model.terms.interface import ScoreTerm
from seqrec_jax.model.terms.lexical import LexicalTerm
from seqrec_jax.model.terms.repeat import RepeatOffset
from seqrec_jax.model.terms.transitions import TransitionWeight

TERMS: tuple[type[ScoreTerm], ...] = (LexicalTerm, RepeatOffset, TransitionWeight)

STEPS = {f"terms/{term.name}/{knob}": step for term in TERMS for knob, step in term.steps.items()}
"""Parameters that are moved on validation, and the step of each."""
GRIDS = {f"terms/{term.name}/{knob}": values for term in TERMS for knob, values in term.grids.items()}
"""Parameters that are given one of several values on validation."""
