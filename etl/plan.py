"""What to make of which raw files, and what each step's result depends on."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from etl import tokenizer
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.raw.text_blocks import BLOCK_BYTES
from etl.running.workspace import Workspace, key_of
from seqrec_jax.data import format


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make of which raw files; the arguments of `build_datasets`."""

    source: Path
    output: Path
    name: str
    items: ItemFiles
    interactions: InteractionFiles
    domains: Mapping[str, InteractionFiles]
    sizes: Sequence[int]
    whole_catalog: bool
    drop_without_metadata: bool
    user_core: int
    item_core: int
    tokenizer_from: Path | None
    vocab_size: int
    tokenizer_items: int
    max_bad_rows: float
    seed: int
    urls: Mapping[str, str]
    checksums: Mapping[str, str]

    def raw_files(self) -> list[Path]:
        """Every raw file of the plan; all must be there."""
        logs = [self.interactions, *self.domains.values()]
        return [*self.items.find(self.source), *(path for files in logs for path in files.find(self.source))]

    def dataset_name(self, size: int | None) -> str:
        """`amazon-100K`, `amazon-1M`, ..., `amazon-full` for all users."""
        if size is None:
            return f"{self.name}-full"
        for unit, letter in ((1_000_000, "M"), (1_000, "K")):
            if size % unit == 0:
                return f"{self.name}-{size // unit}{letter}"
        return f"{self.name}-{size}"


class Keys:
    """The keys of a plan's steps: hashes of the raw files, the parameters, and the steps before, that each depends on.

    Args:
        plan: whose steps.
        workspace: keeps the raw files' hashes.
        executor: computes them.
    """

    def __init__(self, plan: Plan, workspace: Workspace, executor: Executor):
        self._plan = plan
        workspace.fingerprints(plan.raw_files(), executor)  # Of all at once, as fast as the workers read.
        self.items = workspace.fingerprints(plan.items.find(plan.source), executor)
        self.interactions = workspace.fingerprints(plan.interactions.find(plan.source), executor)
        self.domains = {
            name: workspace.fingerprints(files.find(plan.source), executor) for name, files in plan.domains.items()
        }

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """All raw files, as a manifest has them."""
        return [*self.items, *self.interactions, *(record for domain in self.domains.values() for record in domain)]

    @property
    def metadata(self) -> str:
        """Of the items and their texts."""
        files = dataclasses.asdict(self._plan.items)
        del files["max_tokens"]
        return key_of("metadata", files, self.items, BLOCK_BYTES)

    @property
    def tokenizer(self) -> str:
        """Of the tokenizer."""
        if self._plan.tokenizer_from is not None:
            return key_of("tokenizer", format.sha256_of(tokenizer.file_of(self._plan.tokenizer_from)))
        return key_of("tokenizer", self.metadata, self._plan.vocab_size, self._plan.tokenizer_items)

    @property
    def tokenize(self) -> str:
        """Of the texts' tokens."""
        return key_of("tokenize", self.metadata, self.tokenizer, dict(self._plan.items.max_tokens))

    def domain(self, name: str) -> str:
        """Of a domain's log."""
        return key_of("domain", dataclasses.asdict(self._plan.domains[name]), self.domains[name])

    @property
    def ratings(self) -> str:
        """Of the interactions by user."""
        domains = {name: self.domain(name) for name in self.domains}
        files = dataclasses.asdict(self._plan.interactions)
        cores = (self._plan.user_core, self._plan.item_core)
        return key_of("ratings", self.metadata, files, self.interactions, domains, cores, BLOCK_BYTES)
