"""Turns flags into a checked Gin configuration and runs it; shared by `seqrec_jax.main` and `etl.main`."""

import difflib
import inspect
import logging as std_logging
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from absl import app, flags, logging

from seqrec_jax.errors import InputError, Interrupted

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Gin file that names the task; repeatable, later ones win.")
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "Gin binding that overrides the files; repeatable.")

_PACKAGE = Path(__file__).resolve().parent
_OUR_FOLDERS = (_PACKAGE, _PACKAGE.parent / "etl")
_MACRO_BINDING = re.compile(r"^\s*([A-Za-z_]\w*)\s*=")


def config_root() -> Path:
    """The folder that holds `gin/`: the package in an installed wheel, the repository in a checkout."""
    return _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent


def available_gin_files() -> list[str]:
    """Names of the Gin files that travel with the package, as typed after `--gin_file=`."""
    return sorted(f"gin/{path.name}" for path in (config_root() / "gin").glob("*.gin"))


def _nearest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _explain(error: Exception) -> str:
    """Gin's message in one line, with the nearest known name where a name is unknown."""
    text = " ".join(str(error).split())
    registry = gin.config._REGISTRY
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        names = [selector.split(".")[-1] for selector, _ in registry.items()]
        return f"unknown Gin name {match[1]!r}{_nearest(match[1].split('.')[-1], names)}"
    if match := re.search(r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text):
        function = registry.get_match(match[1]).wrapped
        parameters = [f"{match[1]}.{name}" for name in inspect.signature(function).parameters]
        return f"unknown Gin binding '{match[1]}.{match[2]}'{_nearest(f'{match[1]}.{match[2]}', parameters)}"
    return f"Gin configuration: {text}"


def _check_macros(bindings: list[str]) -> None:
    """Every macro that is used has a value; every macro bound on the command line is used."""
    config = gin.config._CONFIG
    macro = gin.get_configurable(gin.config.macro)
    used = {ref.config_key[0] for ref in gin.config.iterate_references(config, to=macro)}
    bound = {scope for scope, selector in config if selector == "gin.macro"}
    for name in sorted(used - bound):
        raise InputError(f"missing value for {name}: add --gin_bindings=\"{name}='...'\"")
    for binding in bindings:
        match = _MACRO_BINDING.match(binding)
        if match and match[1] not in used:
            raise InputError(f"unknown Gin binding {match[1]!r}{_nearest(match[1], sorted(used))}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a bound value is of an annotated type; annotations that Gin cannot write as literals always fit."""
    kind, members = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, member) for member in members)
    if hint is Any or isinstance(value, gin.config.ConfigurableReference) or not isinstance(kind, type):
        return True
    if kind in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(_fits(element, members[0]) for element in value)
    if kind is Mapping:
        return isinstance(value, dict) and all(_fits(element, members[1]) for element in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _check_types() -> None:
    """Every bound value is of the type that its parameter's annotation asks for."""
    for (_, selector), bindings in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        configurable = gin.config._REGISTRY.get_match(selector).wrapped
        hints = typing.get_type_hints(configurable.__init__ if inspect.isclass(configurable) else configurable)
        for parameter, value in bindings.items():
            name, hint = f"{selector.split('.')[-1]}.{parameter}", hints.get(parameter, Any)
            if isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == "gin.macro":
                macro = value.config_key[0]
                value, name = gin.query_parameter(f"{macro}/gin.macro.value"), f"{macro} ({name})"
            if not _fits(value, hint):
                wanted = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
                raise InputError(f"Gin binding {name} = {value!r} is no {wanted.replace('collections.abc.', '')}")


def configure(gin_files: list[str], gin_bindings: list[str]) -> None:
    """Parses and checks the Gin configuration.

    Args:
        gin_files: paths, looked up from the working folder, then beside the package.
        gin_bindings: `name.parameter = value` or `MACRO = value`; later ones win.

    Raises:
        InputError: a file is missing, a name unknown, a macro without a value, or a value of the wrong type.
    """
    if not gin_files:
        raise InputError(f"no --gin_file; one of: {', '.join(available_gin_files())}")
    gin.add_config_file_search_path(str(config_root()))
    try:
        for gin_file in gin_files:
            gin.parse_config_file(gin_file)
        for binding in gin_bindings:
            gin.parse_config(binding)
        _check_macros(gin_bindings)
        _check_types()
        gin.finalize()
    except OSError as error:
        missing = re.search(r"Unable to open file: (.*?)\. Searched", str(error))
        name = missing[1] if missing else ", ".join(gin_files)
        raise InputError(f"Gin file not found: {name}{_nearest(name, available_gin_files())}") from error
    except (ValueError, SyntaxError) as error:
        raise InputError(_explain(error)) from error


def _is_ours_or_an_error(record: std_logging.LogRecord) -> bool:
    """Keeps the log to what a user acts on: libraries' notes are left out, their errors kept, but Orbax's, which it
    raises as well."""
    path = Path(record.pathname).resolve()
    if any(path.is_relative_to(folder) for folder in _OUR_FOLDERS):
        return True
    return record.levelno >= std_logging.ERROR and "orbax" not in path.parts


def _first_line(error: Exception) -> str:
    """A message without what Gin appends to it: which configurables were being called."""
    return str(error).split("\n")[0]


def launch(run: Callable[[], None]) -> None:
    """Parses flags, configures Gin and calls `run`; bad input ends in one line and exit status 2.

    A run that was asked to stop ends with its own status.
    """

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.INFO)
        logging.use_absl_handler()
        logging.get_absl_handler().addFilter(_is_ours_or_an_error)
        try:
            if len(argv) > 1:
                raise InputError(f'unexpected argument {argv[1]!r}: bindings go in --gin_bindings="..."')
            configure(_GIN_FILE.value, _GIN_BINDINGS.value)
            run()
        except InputError as error:
            print(f"error: {_first_line(error)}", file=sys.stderr)
            sys.exit(2)
        except Interrupted as stopped:
            print(_first_line(stopped), file=sys.stderr)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except TypeError as error:
            if "required argument" not in str(error) and "Required bindings" not in str(error):
                raise
            print(f"error: {_explain(error)}", file=sys.stderr)
            sys.exit(2)

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)

    app.run(main, flags_parser=parse_flags)
