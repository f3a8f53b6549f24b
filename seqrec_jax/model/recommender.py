"""The recommender: what it is, its numbers, and what it has counted; a value that is never changed."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from seqrec_jax.data.format import TOKENIZER
from seqrec_jax.data.store import Dataset
from seqrec_jax.errors import InputError
from seqrec_jax.items.features import read_features
from seqrec_jax.items.item_id import ITEM_ID
from seqrec_jax.items.text import TextTokens
from seqrec_jax.model.graph import Graph
from seqrec_jax.model.parameters import Knob, Params, check_finite
from seqrec_jax.model.spec import Architecture, Spec

if TYPE_CHECKING:
    import seqrec_jax
    from seqrec_jax.data.corpus import Corpus

ROWS = f"item_encoder/tables/{ITEM_ID}"
CHANGEABLE = (
    "item_encoder", "repeat_offset", "transitions", "lexical_size", "hidden_dropout", "attention_dropout",
    "id_dropout", "token_dropout", "attention",
)  # fmt: skip
"""Fields of Architecture that trained parameters allow to change."""


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """A sequential recommender.

    Attributes:
        spec: Its architecture, and what it reads of an item.
        params: Its parameters by name.
        statistics: By score term what it has counted in the training log, such as transitions.
        tokenizer: The SentencePiece model whose tokens it knows, serialized.
        trained_with: Corpus.settings of what it was trained on; empty where it was not trained.
    """

    spec: Spec
    params: Params
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: bytes = b""
    trained_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        corpus: "Corpus",
        architecture: Architecture | None = None,
        seed: int = 2020,
        max_tokens: Mapping[str, int] | None = None,
    ) -> "Recommender":
        """A freshly initialised recommender for what is to be trained on.

        Args:
            corpus: Gives the tokenizer, the text features, and the items that get rows.
            architecture: Its shape; None for the defaults.
            seed: Of the initialisation.
            max_tokens: Text features to read and the most tokens of each; None reads all. An InputError where the
                datasets lack them.
        """
        spec = Spec.of(architecture or Architecture(), corpus.data, max_tokens)
        tokenizer = (corpus.datasets[0].folder / TOKENIZER).read_bytes()
        return cls(spec, spec.graph().init(seed), tokenizer=tokenizer)

    @property
    def architecture(self) -> Architecture:
        """Its shape."""
        return self.spec.architecture

    @functools.cached_property
    def graph(self) -> Graph:
        """Its structure; see Graph."""
        return self.spec.graph()

    def replace(self, **changes: Any) -> "Recommender":
        """A copy with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def check(self, data: Dataset) -> None:
        """Refuses, by an InputError, a dataset of another tokenizer, or of another catalog where the model has rows.

        So are parameters that do not fit the spec, or are not finite.
        """
        _check_dataset(data)
        self.graph.check(self.params)
        check_finite(self.params)
        self._check_texts(data)
        rows = self.spec.catalog_sha256, self.spec.table_rows.get(ITEM_ID)
        if self.spec.has_rows and rows != (data.catalog_sha256(), data.n_items + 1):
            raise InputError(
                f"{data.folder}: has another catalog than the checkpoint's, which has a row for each item of its own "
                f"(Architecture.item_encoder = {self.architecture.item_encoder!r}); give the dataset it was trained on"
            )

    def _check_texts(self, data: Dataset) -> None:
        """Refuses, by an InputError, a dataset of another tokenizer than the model's, or of tokens without a row."""
        if self.spec.texts and self.spec.tokenizer_sha256 != data.tokenizer_sha256:
            raise InputError(
                f"{data.folder}: was made with another tokenizer than the model's; make it again with "
                "python -m etl.main --gin_file=gin/etl_recbole.gin "
                "--gin_bindings=\"TOKENIZER='RUN_DIR'\", the folder of the model's run, and your SOURCE, OUTPUT"
            )
        rows = min((feature.rows for feature in self.spec.texts), default=data.vocab_size)
        if rows < data.vocab_size:
            raise InputError(
                f"{data.folder}: has a vocabulary of {data.vocab_size:,}, but the model, of the same tokenizer, tables "
                f"of {rows:,} rows; one of the two is damaged"
            )

    def features(self, data: Dataset, starts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What the model reads of a catalog: per feature [n_items + 1, ...].

        `starts` are those of the catalogs that the dataset joins (Corpus.item_starts); None for one.
        """
        return read_features(self.spec.features, data, starts)

    def statistics_for(self, data: Dataset) -> dict[str, Any]:
        """The statistics that were counted on the same catalog as the dataset's; says what is left out."""
        if not self.statistics:
            return {}
        catalog, n_rows = data.catalog_sha256(), data.n_items + 1
        fitting = {name: of for name, of in self.statistics.items() if of.catalog_sha256 == catalog}
        for name in self.statistics.keys() - fitting.keys():
            logging.warning("%s: has another catalog than the model's, so its %s are left out", data.folder, name)
        for name, of in fitting.items():
            if of.n_rows != n_rows:
                raise InputError(
                    f"{data.folder}: the model's {name} are of {of.n_rows:,} rows, but this catalog, which has their "
                    f"checksum, of {n_rows:,}; the model is damaged"
                )
        return fitting

    def adapt(self, data: Dataset, changes: Mapping[str, Any] | None = None, seed: int = 2020) -> "Recommender":
        """The model laid over another dataset: parameters are kept where the new model has them.

        Rows that are new beside texts begin at 0, and so do knobs, so that a model of texts begins as it was. Text
        features of the dataset that the model does not know are read with the first one's tokens, so that no parameter
        changes its shape; those of a dataset that it was trained on stay left out.

        Args:
            data: The dataset, of the model's tokenizer.
            changes: Fields of Architecture to change; an InputError for those that are not CHANGEABLE.
            seed: Of what is new besides.
        """
        _check_dataset(data)
        architecture = _changed(self.architecture, changes or {})
        if architecture.item_encoder != "id":
            self._check_texts(data)
        texts = self._texts_on(data) if architecture.item_encoder != "id" else ()
        tokenizer = self.spec.tokenizer_sha256 if texts else data.tokenizer_sha256
        spec = Spec.from_texts(architecture, texts, data, tokenizer)
        same_catalog = spec.catalog_sha256 is not None and self.spec.catalog_sha256 == spec.catalog_sha256
        if self.spec.has_rows and not same_catalog:
            logging.info("%s: has another catalog, so the checkpoint's item rows are left behind", data.folder)
        known = self.tokenizer if texts else (data.folder / TOKENIZER).read_bytes()
        params = self.restored_in(spec, seed, same_catalog)
        return self.replace(spec=spec, params=params, statistics={}, tokenizer=known)

    def _texts_on(self, data: Dataset) -> tuple[TextTokens, ...]:
        """The model's text features, with those that are new in the dataset appended to the first. In a dataset that it
        was trained on none is new: what it does not read there was left out."""
        texts = self.spec.texts
        known = {name for feature in texts for name in feature.columns()}
        new = [name for name in data.features if texts and name not in known]
        same_catalog = self.spec.has_rows and self.spec.catalog_sha256 == data.catalog_sha256()
        if not new or same_catalog or data.digest() in self.trained_with.get("datasets", ()):
            return texts
        logging.info("%s: the model does not know %s; read as more words of %s", data.folder, ", ".join(new),
                     texts[0].name)  # fmt: skip
        more = tuple((name, data.tokens(name).shape[1]) for name in new)
        return (dataclasses.replace(texts[0], appended=texts[0].appended + more), *texts[1:])

    def restored_in(self, spec: Spec, seed: int = 0, same_catalog: bool = False) -> Params:
        """Parameters of another spec of the same widths: this model's where they have a place, else zeros or new.

        Item rows are kept only where both have the same catalog.
        """
        graph = spec.graph()
        kept = {name: array for name, array in self.params.items() if name in graph.shapes}
        if not same_catalog:
            kept.pop(ROWS, None)
        missing = graph.shapes.keys() - kept.keys()
        zeros = {name for name in missing if graph.kinds[name] is Knob and graph.shapes[name].ndim == 0}
        if spec.texts:
            zeros |= missing & {ROWS}
        fresh = graph.init(seed) if missing - zeros else {}
        new = {name: jnp.zeros_like(graph.shapes[name]) if name in zeros else fresh[name] for name in missing}
        params = dict(sorted((kept | new).items()))
        graph.check(params)
        return params

    def average(self, other: "Recommender", share: float) -> "Recommender":
        """The average with a share, from 0 to 1, of another model of its spec (WiSE-FT, Wortsman et al., CVPR 2022)."""
        if not 0 <= share <= 1:
            raise InputError(f"Recommender.average: share = {share} is not in [0, 1]")
        self.graph.check(other.params)
        params = jax.tree.map(lambda mine, theirs: mine + share * (theirs - mine), self.params, other.params)
        return self.replace(params=params)

    def index(self, data: Dataset) -> "seqrec_jax.Index":
        """The model laid over a catalog, to recommend with; see Index."""
        import seqrec_jax

        return seqrec_jax.Index(self, data)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load` reads; an InputError where it holds a model or cannot be written."""
        import seqrec_jax

        seqrec_jax.save(folder, self)


def _check_dataset(data: Any) -> None:
    """Refuses, by an InputError, what is no dataset, or a damaged one."""
    if not isinstance(data, Dataset):
        raise InputError(f"expected a Dataset, as open_dataset gives it; got a {type(data).__name__}")
    _ = data.checked


def _changed(architecture: Architecture, changes: Mapping[str, Any]) -> Architecture:
    """An architecture with what its parameters allow to change."""
    for name in changes:
        if name not in CHANGEABLE:
            raise InputError(
                f"changes names {name!r}; what a checkpoint's parameters allow to change is {', '.join(CHANGEABLE)}"
            )
    if "text" in str(changes.get("item_encoder")) and architecture.item_encoder == "id":
        raise InputError(
            f"changes = {dict(changes)!r}: the checkpoint's model has rows for its items and reads no text; train one "
            "with Architecture.item_encoder = 'text' first"
        )
    if changes.get("item_encoder") == "id":
        changes = {"lexical_size": 0, **changes}
    return dataclasses.replace(architecture, **changes)
