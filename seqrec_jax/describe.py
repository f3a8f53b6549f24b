"""Settings: whether they are of their types, and as JSON, by which a run is compared when it goes on."""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import numbers
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrec_jax.errors import InputError

_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's controls, formats, halves of pairs, and ends of lines
_JOINERS = "\u200c\u200d"
_NUMBERS = {int: numbers.Integral, float: numbers.Real}


def _is_finite(value: Any) -> bool:
    """Whether a setting is neither NaN nor infinite; whole numbers may be too large for `math.isfinite`."""
    return not isinstance(value, float | np.floating) or math.isfinite(value)


def fits(value: Any, hint: Any, stand_in: type | tuple[()] = ()) -> bool:
    """Whether a setting is of an annotated type; a `stand_in` is, and whatever `isinstance` cannot tell.

    NaN and infinity fit no type.
    """
    kind, members = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return any(fits(value, member, stand_in) for member in members)
    if hint is Any or isinstance(value, stand_in) or not isinstance(kind, type):
        return True
    if kind is tuple and members and members[-1] is not Ellipsis:
        same = isinstance(value, tuple | list) and len(value) == len(members)
        return same and all(fits(element, member, stand_in) for element, member in zip(value, members, strict=True))
    if kind in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(fits(element, members[0], stand_in) for element in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(fits(element, members[1], stand_in) for element in value.values())
    if kind not in _NUMBERS:
        return isinstance(value, kind)
    return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool) and _is_finite(value)


def type_name(hint: Any) -> str:
    """An annotated type as a message names it: `int`, `Sequence[float] | None`."""
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", name)


def misfit(value: Any, hint: Any) -> str:
    """What a message says of a setting that does not fit: `is no int`, or `is not finite` of NaN and infinity."""
    if not _is_finite(value):
        return "is not finite"
    return f"is no {type_name(hint)}"


def check_types(settings: Any) -> None:
    """An InputError where a field is not of its type, such as `TrainConfig.epochs = '3' is no int`."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not fits(value, hint):
            raise InputError(f"{type(settings).__name__}.{name} = {value!r} {misfit(value, hint)}")
        if name == "seed":
            check_seed(f"{type(settings).__name__}.{name}", value)


def check_seed(name: str, seed: int) -> None:
    """An InputError where a seed is negative, or has more bits than JAX takes, which would make two seeds one."""
    if not 0 <= seed < 1 << 32:
        raise InputError(f"{name} = {seed}: must be a whole number, from 0 to 2^32 - 1")


def _function(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A function's name and its arguments: those given, and the defaults of the others."""
    if isinstance(function, functools.partial):
        return _function(function.func, {**function.keywords, **given})
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {"name": function.__name__} | {name: describe(value) for name, value in (defaults | dict(given)).items()}


def describe(value: Any) -> Any:
    """Settings as what `json` can write, equal for equal settings; a TypeError for what is none.

    Settings are numbers, texts and None; lists, tuples, mappings and dataclasses of settings; and functions, or a
    `functools.partial` of one, which become their name and arguments, defaults included.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if callable(value):
        return _function(value, {})
    raise TypeError(f"{value!r} is no setting")


def shown(text: str, most: int | None = None, kept: str = "") -> str:
    r"""A text as a terminal may be given it: control characters, and what turns the direction of writing, as `\x1b`.

    All but those `kept`, and the joiners that scripts need. A text of more than `most` characters is cut.
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    harmless = kept + _JOINERS
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _ACTING and c not in harmless else c
        for c in text
    )


def identity_of(config: Mapping[str, Any]) -> str:
    """SHA-256 of a run's configuration, as JSON: equal for equal ones, and written into all that the run keeps."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
