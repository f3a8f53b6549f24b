"""Turns flags into a checked Gin configuration and runs it; shared by `seqrec_jax.main` and `etl.main`."""

import difflib
import inspect
import logging as std_logging
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import gin
from absl import app, flags, logging
from gin import config_parser

from seqrec_jax.describe import check_seed, fits, misfit, shown
from seqrec_jax.errors import InputError, Interrupted

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Gin file that names the task; repeatable, later ones win.")
_ALLOW_IMPORTS = flags.DEFINE_bool("allow_imports", False, "Let Gin files and bindings import Python modules.")
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "Gin binding that overrides the files; repeatable.")

_PACKAGE = Path(__file__).resolve().parent
_OUR_FOLDERS = (_PACKAGE, _PACKAGE.parent / "etl")

Moved = Mapping[str, str | None]  # new names of bindings of earlier versions, by their old ones; None if gone


def config_root() -> Path:
    """The folder that holds `gin/`: the package in an installed wheel, the repository in a checkout."""
    return _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent


def available_gin_files() -> list[str]:
    """Names of the Gin files that travel with the package, as typed after `--gin_file=`."""
    return sorted(f"gin/{path.name}" for path in (config_root() / "gin").glob("*.gin"))


def _nearest(word: str, known: Iterable[str], moved: Moved = MappingProxyType({})) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {(moved.get(matches[0]) or matches[0])!r}?" if matches else ""


def _target(configurable: Any) -> Callable:
    """The function or class that a Gin name stands for."""
    return inspect.unwrap(configurable.wrapped)


def _moved_line(name: str, moved: Moved) -> str | None:
    """What became of a binding of an earlier version; None for any other."""
    if name not in moved:
        return None
    return f"{name} is now {moved[name]}" if moved[name] else f"{name} is gone; see CHANGELOG.md"


def _explain(error: Exception, moved: Moved) -> str:
    """Gin's message in one line, with the new name of a binding that moved, or the nearest known name."""
    text = " ".join(str(error).split())
    registry = gin.config._REGISTRY
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", text):
        name = match[1].split("/")[-1]
        for parameter in re.findall(rf"\b{re.escape(name)}\.(\w+) *=", text):
            if line := _moved_line(f"{name}.{parameter}", moved):
                return line
        names = [selector.split(".")[-1] for selector, _ in registry.items()]
        return _moved_line(name, moved) or f"unknown Gin name {match[1]!r}{_nearest(name.split('.')[-1], names)}"
    if match := re.search(r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", text):
        name = f"{match[1]}.{match[2]}"
        known = [f"{match[1]}.{p}" for p in inspect.signature(_target(registry.get_match(match[1]))).parameters]
        return _moved_line(name, moved) or f"unknown Gin binding {name!r}{_nearest(name, [*known, *moved], moved)}"
    return f"Gin configuration: {text}"


def _check_moved(moved: Moved) -> None:
    """No binding has an earlier version's name that Gin would still take."""
    for (_, selector), bindings in gin.config._CONFIG.items():
        for parameter in bindings:
            if line := _moved_line(f"{selector.split('.')[-1]}.{parameter}", moved):
                raise InputError(line)


def _check_macros(bindings: Sequence[str]) -> None:
    """Every macro that is used has a value; every macro bound on the command line is used."""
    config = gin.config._CONFIG
    macro = gin.get_configurable(gin.config.macro)
    used = {ref.config_key[0] for ref in gin.config.iterate_references(config, to=macro)}
    for name in sorted(used - {scope for scope, selector in config if selector == "gin.macro"}):
        raise InputError(f"missing value for {name}: add --gin_bindings=\"{name}='...'\"")
    for binding in bindings:
        if (match := re.match(r"\s*([A-Za-z_]\w*)\s*=", binding)) and match[1] not in used:
            raise InputError(f"unknown Gin binding {match[1]!r}{_nearest(match[1], sorted(used))}")


def _check_types() -> None:
    """Every bound value is of the type that its parameter's annotation asks for."""
    for (_, selector), bindings in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        target = _target(gin.config._REGISTRY.get_match(selector))
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
        for parameter, value in bindings.items():
            name, hint = f"{selector.split('.')[-1]}.{parameter}", hints.get(parameter, Any)
            if isinstance(value, gin.config.ConfigurableReference) and value.config_key[1] == "gin.macro":
                macro = value.config_key[0]
                value, name = gin.query_parameter(f"{macro}/gin.macro.value"), f"{macro} ({name})"
            if not fits(value, hint, gin.config.ConfigurableReference):
                raise InputError(f"Gin binding {name} = {value!r} {misfit(value, hint)}")
            if parameter == "seed" and isinstance(value, int) and target.__module__.startswith("seqrec_jax."):
                check_seed(f"Gin binding {name}", value)


class _Blank(config_parser.ParserDelegate):
    """Stands for what a configuration refers to, where only its statements matter."""

    def configurable_reference(self, *_: Any) -> None:
        """A reference."""

    def macro(self, *_: Any) -> None:
        """A macro."""


def _check_imports(text: str, name: str, seen: set[Path]) -> None:
    """Refuses, by an InputError, what is no Gin and imports of modules, in a text and the files it includes."""
    try:
        statements = list(config_parser.ConfigParser(text, _Blank()))
    except (SyntaxError, ValueError) as error:
        line = re.search(r"line \d+", str(error)) if "\n" in text else None
        raise InputError(
            f"{name}{f', {line[0]}' if line else ''}: cannot be read; a value is one of Python's, written out, such as "
            "0.001, 'text', None or [1, 2], or a name, @name or %NAME"
        ) from error
    for statement in statements:
        if isinstance(statement, config_parser.ImportStatement):
            raise InputError(
                f"{name}: imports {statement.module}, which would run its code; take the line out, or give "
                "--allow_imports where you trust it"
            )
        if isinstance(statement, config_parser.IncludeStatement):
            _check_imports_of(statement.filename, seen)


def _check_imports_of(gin_file: str, seen: set[Path]) -> None:
    """The same of a file, found as Gin finds it; one that is missing is left to Gin."""
    for path in (Path(gin_file), config_root() / gin_file):
        if path.is_file():
            if path not in seen:
                seen.add(path)
                _check_imports(path.read_text(encoding="utf-8"), gin_file, seen)
            return


def configure(
    gin_files: Sequence[str], gin_bindings: Sequence[str], moved: Moved = MappingProxyType({}),
    allow_imports: bool = False,
) -> None:  # fmt: skip
    """Parses and checks the Gin configuration.

    InputError where a file is missing, a name is unknown or has moved, a macro has no value, a type is wrong, or a
    statement imports a module.

    Args:
        gin_files: Paths, looked up from the working folder, then beside the package.
        gin_bindings: `name.parameter = value` or `MACRO = value`; later ones win.
        moved: What became of bindings of earlier versions.
        allow_imports: Whether statements may import modules.
    """
    if not gin_files:
        raise InputError(f"no --gin_file; one of: {', '.join(available_gin_files())}")
    gin.add_config_file_search_path(str(config_root()))
    try:
        if not allow_imports:
            seen: set[Path] = set()
            for gin_file in gin_files:
                _check_imports_of(gin_file, seen)
            for binding in gin_bindings:
                _check_imports(binding, f"Gin binding {binding!r}", seen)
        for gin_file in gin_files:
            gin.parse_config_file(gin_file)
        for binding in gin_bindings:
            gin.parse_config(binding)
        _check_moved(moved)
        _check_macros(gin_bindings)
        _check_types()
        gin.finalize()
    except OSError as error:
        missing = re.search(r"Unable to open file: (.*?)\. Searched", str(error))
        name = missing[1] if missing else ", ".join(gin_files)
        raise InputError(f"Gin file not found: {name}{_nearest(name, available_gin_files())}") from error
    except (KeyError, ValueError, SyntaxError) as error:
        raise InputError(_explain(error, moved)) from error


def _is_ours_or_an_error(record: std_logging.LogRecord) -> bool:
    """Keeps the log to what a user acts on: our notes and libraries' errors, but Orbax's, which it raises as well."""
    path = Path(record.pathname).resolve()
    is_ours = any(path.is_relative_to(folder) for folder in _OUR_FOLDERS)
    return is_ours or (record.levelno >= std_logging.ERROR and "orbax" not in path.parts)


class _Formatter(logging.PythonFormatter):
    """Formats records as absl does, with what users' files hold made harmless for a terminal."""

    def format(self, record: std_logging.LogRecord) -> str:
        """See logging.Formatter."""
        return shown(super().format(record), kept="\n\t")


def _end(message: str, status: int) -> NoReturn:
    """Ends the process with the first line of a message; Gin appends which configurables were being called."""
    print(shown(message.split("\n")[0]), file=sys.stderr)
    sys.exit(status)


def launch(run: Callable[[], None], moved: Moved = MappingProxyType({})) -> None:
    """Parses flags, configures Gin and calls `run`; bad input ends in one line and exit status 2.

    A run that was asked to stop ends with its own status.
    """

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.INFO)
        logging.use_absl_handler()
        logging.get_absl_handler().addFilter(_is_ours_or_an_error)
        logging.get_absl_handler().setFormatter(_Formatter())
        try:
            if len(argv) > 1:
                raise InputError(f'unexpected argument {argv[1]!r}: bindings go in --gin_bindings="..."')
            configure(_GIN_FILE.value, _GIN_BINDINGS.value, moved, _ALLOW_IMPORTS.value)
            run()
        except InputError as error:
            _end(f"error: {error}", 2)
        except Interrupted as stopped:
            _end(str(stopped), stopped.status)
        except KeyboardInterrupt:
            _end("interrupted", 130)
        except (RuntimeError, TypeError) as error:
            if "Required bindings" not in str(error):
                raise
            _end(f"error: {error}", 2)

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            _end(f"error: {' '.join(str(error).split())}", 2)

    app.run(main, flags_parser=parse_flags)
