"""What to make of which raw files, and what each step's result depends on."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import gin

from etl import tokenizer
from etl.raw.files import is_name
from etl.raw.interaction_files import InteractionFiles
from etl.raw.item_files import ItemFiles
from etl.raw.text_blocks import BLOCK_BYTES
from etl.raw.values import NANOSECONDS
from etl.running.workspace import Workspace, key_of
from etl.time_order import TimeOrder
from seqrec_jax.data import format
from seqrec_jax.errors import InputError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make of which raw files; see `build_datasets`. An InputError where a value is out of range.

    Attributes:
        source: folder of the raw files; it, output and tokenizer_from are kept as absolute paths, as workers may be
            elsewhere.
        output: folder to write to.
        name: first part of the datasets' names.
        items: the items' files.
        interactions: the log's files.
        domains: logs of single domains, by name. Each becomes a dataset of its own, and its users are left out of all
            the others, so that a model can be pre-trained on these and fine-tuned on it.
        sizes: interactions to expect in samples of the users, such as 100_000; a smaller sample lies in a larger one.
        whole_catalog: have every item in `NAME-full`, not only those that occur in it, unless there is an item_core.
        drop_without_metadata: leave items without metadata or title out of the domains too.
        user_core: fewest interactions of a user.
        item_core: fewest interactions of an item; above 1, users and items are dropped in turn until all have enough.
        tokenizer_from: a SentencePiece model, or a dataset or run that holds one; None trains one on the items.
        vocab_size: pieces of a tokenizer trained here.
        tokenizer_items: about how many items it is trained on.
        max_bad_rows: largest share of rows that cannot be read; above it, the run ends.
        ties: order of a user's interactions at the same time: 'file' or 'random', see `TimeOrder`.
        seed: of the samples and of the random order.
        urls: where to fetch files that the source lacks, by name.
        checksums: SHA-256 of these files, by name, where known.
    """

    source: str = gin.REQUIRED
    output: str = gin.REQUIRED
    name: str = gin.REQUIRED
    items: ItemFiles = gin.REQUIRED
    interactions: InteractionFiles = gin.REQUIRED
    domains: Mapping[str, InteractionFiles] = dataclasses.field(default_factory=dict)
    sizes: Sequence[int] = ()
    whole_catalog: bool = False
    drop_without_metadata: bool = False
    user_core: int = 1
    item_core: int = 1
    tokenizer_from: str | None = None
    vocab_size: int = 30_000
    tokenizer_items: int = 1_000_000
    max_bad_rows: float = 0.001
    ties: str = "file"
    seed: int = 42
    urls: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        TimeOrder(self.ties, self.seed)  # which checks them
        if not 0 <= self.max_bad_rows <= 1:
            raise InputError(f"MAX_BAD_ROWS = {self.max_bad_rows}: must be a share, from 0 to 1")
        for name in (self.name, *self.domains):
            if not is_name(name) or name.startswith("."):
                raise InputError(f"NAME = {name!r}: is no name of a folder in OUTPUT; leave out '/' and a leading '.'")
        for size in self.sizes:
            if size < 1:
                raise InputError(f"SIZES: {size} is no number of interactions")
        for name, core in (("user_core", self.user_core), ("item_core", self.item_core)):
            if core < 1:
                raise InputError(f"Gin binding Plan.{name} = {core}: must be 1 or more")
        object.__setattr__(self, "sizes", sorted(set(self.sizes)))
        for name in ("source", "output", "tokenizer_from"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(Path(path).absolute()))

    @property
    def source_folder(self) -> Path:
        """Folder of the raw files."""
        return Path(self.source)

    @property
    def output_folder(self) -> Path:
        """Folder to write to."""
        return Path(self.output)

    @property
    def time_order(self) -> TimeOrder:
        """How the interactions of a log are ordered."""
        return TimeOrder(self.ties, self.seed, NANOSECONDS)

    def raw_files(self) -> list[Path]:
        """Every raw file of the plan; all must be there."""
        tables: list[ItemFiles | InteractionFiles] = [self.items, self.interactions, *self.domains.values()]
        return [path for files in tables for path in files.find(self.source_folder)]

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
        at_a_time: how many.

    Attributes:
        item_paths: the items' files, found once, so that one that appears later belongs to the next run.
        interaction_paths: those of the log.
        domain_paths: those of each domain, by name.
        items: the items' files, as a manifest has them.
        interactions: those of the log.
        domains: those of each domain, by name.
        raw: the files that a step reads, by its name.
    """

    def __init__(self, plan: Plan, workspace: Workspace, executor: Executor, at_a_time: int):
        self._plan = plan
        source = plan.source_folder
        self.item_paths, self.interaction_paths = plan.items.find(source), plan.interactions.find(source)
        self.domain_paths = {name: files.find(source) for name, files in plan.domains.items()}
        logs = [*self.interaction_paths, *itertools.chain.from_iterable(self.domain_paths.values())]
        # Of all at once, as fast as the workers read.
        records = workspace.fingerprints([*self.item_paths, *logs], executor, at_a_time)
        self.items = [records[path] for path in self.item_paths]
        self.interactions = [records[path] for path in self.interaction_paths]
        self.domains = {name: [records[path] for path in paths] for name, paths in self.domain_paths.items()}
        self.raw = {"metadata": self.item_paths, "ratings": logs}

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
            return key_of("tokenizer", format.sha256_of(tokenizer.file_of(Path(self._plan.tokenizer_from))))
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
        cores, ties = (self._plan.user_core, self._plan.item_core), self._plan.time_order.rule
        return key_of("ratings", self.metadata, files, self.interactions, domains, cores, ties, BLOCK_BYTES)
