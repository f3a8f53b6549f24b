"""What a recommender is, but for its numbers: its architecture and what it reads of an item; JSON, versioned."""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from seqrec_jax.data.store import Dataset
from seqrec_jax.describe import check_types, shown
from seqrec_jax.errors import InputError, in_short
from seqrec_jax.items import features as item_features
from seqrec_jax.items.features import APPENDED, ItemFeature
from seqrec_jax.items.item_id import ITEM_ID, ItemId
from seqrec_jax.items.lexical import Lexical
from seqrec_jax.items.text import POOLINGS, TextTokens
from seqrec_jax.model.blocks import BLOCKS
from seqrec_jax.model.blocks.attention import ATTENTIONS
from seqrec_jax.model.graph import Graph

VERSION = 2
MOST, MOST_ROWS = 1 << 20, (1 << 31) - 1  # of a size of Architecture; of a table, whose rows are numbered by int32
MOST_PROJECTED = 1 << 30  # bytes of the directions of lexical vectors, which no parameter tells the size of
CHOICES: dict[str, Collection[str]] = {
    "block": BLOCKS, "pooling": POOLINGS, "item_encoder": ("text", "id", "text_and_id"), "attention": ATTENTIONS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The shape of a recommender; kept in every checkpoint.

    Attributes:
        n_layers: Transformer blocks.
        n_heads: Attention heads; hidden_size is a multiple of it.
        hidden_size: Width of item embeddings and of the transformer.
        inner_size: Width within the feed-forward maps.
        embedding_size: Width of the token tables; None for hidden_size.
        max_length: Most items of a history that the model reads.
        block: `srt`, post-LN with GELU, or `ligr`, pre-norm with gates and SwiGLU; see model.blocks.
        pooling: How an item's token embeddings become one: sum, mean or max.
        hidden_dropout: After the input, attention and feed-forward.
        attention_dropout: On the attention weights.
        item_encoder: `text`; `id`, a trained row for each item; or `text_and_id`, their sum.
        repeat_offset: Learn one number that is added to the scores of items that the history holds; see
            terms.repeat.
        transitions: Add the counts of what followed the history's items in training, by a weight that validation
            chooses; see terms.transitions.
        id_dropout: Share of the items whose own row is left out in a training step.
        token_dropout: Share of the vocabulary that the item encoder does not read in a training step, so that a model
            with a lexical term learns what to do where words are new.
        lexical_size: Of the fixed vectors of the items' words, by which the model also scores; see terms.lexical. 0 for
            none; 128 loses little. More costs time in proportion, as if hidden_size were as much larger.
        attention: `xla`, or `cudnn` for the fused kernel of NVIDIA GPUs, which takes 16-bit numbers and no dropout on
            the weights.
    """

    n_layers: int = 2
    n_heads: int = 2
    hidden_size: int = 64
    inner_size: int = 64
    embedding_size: int | None = None
    max_length: int = 50
    block: str = "srt"
    pooling: str = "sum"
    hidden_dropout: float = 0.5
    attention_dropout: float = 0.5
    item_encoder: str = "text"
    repeat_offset: bool = False
    transitions: bool = False
    id_dropout: float = 0.0
    token_dropout: float = 0.0
    lexical_size: int = 0
    attention: str = "xla"

    def __post_init__(self):
        check_types(self)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"Architecture.{name} = {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.attention == "cudnn" and self.attention_dropout:
            raise InputError(
                "Architecture.attention = 'cudnn' drops no weights; set Architecture.attention_dropout = 0.0"
            )
        for name in ("hidden_dropout", "attention_dropout", "id_dropout", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Architecture.{name} = {getattr(self, name)} is not in [0, 1)")
        sizes = "n_layers", "n_heads", "hidden_size", "embedding_size", "inner_size", "max_length", "lexical_size"
        for name in sizes:
            value, least = getattr(self, name), int(name != "lexical_size")
            if value is not None and value < least:
                raise InputError(f"Architecture.{name} = {value} is below {least}")
            if value is not None and value > MOST:
                raise InputError(f"Architecture.{name} = {value} is above {MOST:,}")
        if self.hidden_size % self.n_heads:
            width = f"Architecture.hidden_size = {self.hidden_size}"
            raise InputError(f"{width} is not divisible by Architecture.n_heads = {self.n_heads}")


def text_features(data: Dataset, max_tokens: Mapping[str, int] | None) -> tuple[TextTokens, ...]:
    """The text features of a dataset, each with a table; an InputError where it lacks those that are asked for."""
    if not data.features:
        raise InputError(
            f"Architecture.item_encoder reads text, but {data.folder} has none; bind Architecture.item_encoder = 'id'"
        )
    for name in max_tokens or ():
        if name not in data.features:
            raise InputError(f"max_tokens names {name!r}; {data.folder} has {', '.join(data.features)}")
    if max_tokens is not None and not max_tokens:
        raise InputError("max_tokens = {} names no text feature; None reads all")
    limits = dict.fromkeys(data.features) if max_tokens is None else max_tokens
    widths = {name: data.tokens(name, limits[name]).shape[1] for name in data.features if name in limits}
    return tuple(TextTokens(name, data.vocab_size, most) for name, most in widths.items())


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a recommender is; two of equal specs have parameters of the same names and shapes.

    Attributes:
        architecture: Its shape.
        features: What it reads of an item.
        tokenizer_sha256: Of the SentencePiece model whose tokens it knows.
        catalog_sha256: Of the catalog whose items it has rows for; None where it has none.
    """

    architecture: Architecture
    features: tuple[ItemFeature, ...]
    tokenizer_sha256: str
    catalog_sha256: str | None = None

    @classmethod
    def of(cls, architecture: Architecture, data: Dataset, max_tokens: Mapping[str, int] | None = None) -> "Spec":
        """The spec of a model that is to be trained on a dataset; see Recommender.create."""
        texts = () if architecture.item_encoder == "id" else text_features(data, max_tokens)
        return cls.from_texts(architecture, texts, data, data.tokenizer_sha256)

    @classmethod
    def from_texts(
        cls, architecture: Architecture, texts: tuple[TextTokens, ...], data: Dataset, tokenizer_sha256: str
    ) -> "Spec":
        """The spec of a model that reads these texts, with rows for a dataset's items if the architecture has them."""
        if architecture.lexical_size and not texts:
            raise InputError("Architecture.lexical_size reads text; bind Architecture.item_encoder = 'text_and_id'")
        features = _features_of(architecture, texts, data.n_items + 1)
        catalog = data.catalog_sha256() if architecture.item_encoder != "text" else None
        return cls(architecture, features, tokenizer_sha256, catalog)

    @property
    def texts(self) -> tuple[TextTokens, ...]:
        """The text features, in the order in which they are concatenated."""
        return tuple(feature for feature in self.features if isinstance(feature, TextTokens))

    @property
    def table_rows(self) -> dict[str, int]:
        """Rows of each feature's table, by the feature's name."""
        return {feature.name: rows for feature in self.features if (rows := feature.table_rows())}

    @property
    def has_rows(self) -> bool:
        """Whether items have rows of their own."""
        return any(feature.name == ITEM_ID for feature in self.features)

    @property
    def output_size(self) -> int:
        """Width of an item's embedding and of what is scored against it."""
        appended = (feature.width(self.architecture) for feature in self.features if feature.role == APPENDED)
        return self.architecture.hidden_size + sum(appended)

    def graph(self, rematerialize: bool = False, table_axis: str | None = None) -> Graph:
        """The network's structure; the same object for equal specs. See Network for the arguments."""
        return _graph(self.architecture, self.features, rematerialize, table_axis)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "version": VERSION,
            "architecture": dataclasses.asdict(self.architecture),
            "features": item_features.to_json(self.features),
            "tokenizer_sha256": self.tokenizer_sha256,
            "catalog_sha256": self.catalog_sha256,
        }

    @classmethod
    def from_json(cls, record: Any) -> "Spec":
        """The inverse of to_json; an InputError where another version wrote it, or it is damaged."""
        version = record.get("version") if isinstance(record, Mapping) else None
        if version != VERSION:
            raise InputError(
                f"the model was written in version {shown(repr(version), 40)} of its format, but this program reads "
                f"{VERSION}; train it again, or install the seqrec_jax that wrote it"
            )
        try:
            architecture, features = Architecture(**record["architecture"]), item_features.from_json(record["features"])
            spec = cls(architecture, features, record["tokenizer_sha256"], record["catalog_sha256"])
            spec._check()
        except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"what the model says of itself is damaged ({in_short(error)})") from error
        return spec

    def _check(self) -> None:
        """Raises a ValueError unless the features are those of the architecture, with sizes that can be."""
        a, texts, rows = self.architecture, self.texts, self.table_rows
        columns = [name for feature in texts for name in (feature.name, *(name for name, _ in feature.appended))]
        sizes = [*rows.values(), *(most for feature in texts for most in feature.columns().values())]
        if bool(texts) == (a.item_encoder == "id") or len(set(columns)) < len(columns):
            raise ValueError(f"its texts are {columns}")
        ours = tuple(feature for feature in self.features if isinstance(feature, TextTokens | Lexical | ItemId))
        if ours != _features_of(a, texts, rows.get(ITEM_ID, 0)):
            raise ValueError("its features are not those of its architecture")
        if not all(0 < size <= MOST_ROWS for size in sizes):
            raise ValueError(f"its features have sizes of {sizes}")
        has_catalog = isinstance(self.catalog_sha256, str)
        if not isinstance(self.tokenizer_sha256, str) or has_catalog != self.has_rows:
            raise ValueError("it names no tokenizer, or no catalog")

    def check(self, params: Mapping[str, Any]) -> None:
        """Refuses, by an InputError, arrays that are not the parameters: by name, shape and type.

        The structure of as many blocks as the spec says is made only where the arrays are of as many.
        """
        blocks = {name.split("/")[1] for name in params if name.startswith("blocks/")}
        if len(blocks) != self.architecture.n_layers:
            raise InputError(
                f"it says that it has {self.architecture.n_layers:,} blocks, and has parameters of {len(blocks):,}"
            )
        self.graph().check(params)
        size, rows = self.architecture.lexical_size, max((feature.rows for feature in self.texts), default=0)
        if 4 * size * rows > MOST_PROJECTED:
            raise InputError(f"lexical vectors of {size:,} numbers are too large for a vocabulary of {rows:,}")


def _features_of(architecture: Architecture, texts: tuple[TextTokens, ...], n_rows: int) -> tuple[ItemFeature, ...]:
    """All features of a model that reads these texts, whose catalog has n_rows, that of padding among them."""
    features: list[ItemFeature] = list(texts)
    if architecture.lexical_size:
        names = tuple(feature.name for feature in texts)
        features.append(Lexical(architecture.lexical_size, texts[0].rows, names))
    if architecture.item_encoder != "text":
        features.append(ItemId(n_rows))
    return tuple(features)


_graph = functools.lru_cache(maxsize=64)(Graph)
