"""The command line of every program: settings from YAML files and options, subcommands, exit statuses.

Precedence of settings: defaults < files < command line.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from palenka.ground.console import console, tell
from palenka.ground.errors import UserError, system_error
from palenka.ground.help import help_of, wrapped
from palenka.ground.mistakes import first_mistake, sentence_of, taken_for_file
from palenka.ground.options import Annotation, Value, inner_of, locate, shorthand_of
from palenka.ground.registry import import_plugins
from palenka.ground.settings import Command, Settings, path_of, read_yaml
from palenka.ground.stopping import Stopped, stopped_at_once
from palenka.ground.words import NOTHING, split_words

SettingsType = TypeVar("SettingsType", bound=Command)

USER_MISTAKE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
"""Exit status if the reader of the output, such as `head`, has closed the pipe."""

_HELP = ("-h", "--help")


def parse(schema: type[SettingsType], arguments: Sequence[str], program: str) -> SettingsType:
    """Settings from a configuration and options: ``FILE.yaml --objective.logit 0.3 --seeds 0 1``.

    Precedence: defaults < files < command line, wherever ``--config`` stands. Words without an option are values of the
    options that the class declares as `positional`. Lists are several words, or as in YAML; a boolean option needs no
    word; a mapping is written as in YAML and replaces that of the file. ``plugins`` of files and options are imported
    first. ``--help`` prints all options.

    Raises:
        UserError: for an unreadable file, an unknown key, or a value that a field refuses.
    """
    return _parsed(schema, arguments, program)[0]


def parse_file(schema: type[SettingsType], arguments: Sequence[str], program: str) -> tuple[SettingsType, Path]:
    """Settings as from `parse`, and their file, to which the files that they name are relative.

    Raises:
        UserError: as `parse`; or without a file.
    """
    settings, files = _parsed(schema, arguments, program)
    if not files:
        raise UserError(f"{program} finds other files beside its own; give it as {program} FILE.yaml")
    return settings, Path(files[-1])


def read_settings(schema: type[SettingsType], file: str | Path, **changes: Value) -> SettingsType:
    """Settings from a file, for Python; changes are options as on the command line.

    A dotted option is ``**{"objective.logit": 0.3}``; a mapping replaces that of the file.

    Raises:
        UserError: for an unreadable file, an unknown key, or a value that a field refuses.
    """
    path = str(path_of(file))
    plugins = _import_named([path], changes.get("plugins"))
    return _validated(schema, [path], list(changes.items()), plugins, "the --help of its command")


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None) -> int:
    """Run a command for its exit status.

    It is 2, with one sentence on standard error, for a user's mistake and damaged data, and 130 or 143 after SIGINT or
    SIGTERM. A command itself returns 1 if a part of its work failed.
    """
    try:
        with stopped_at_once():
            status = command(sys.argv[1:] if arguments is None else arguments) or 0
            sys.stdout.flush()
            return status
    except UserError as error:
        _tell(f"error: {error}")
        return _failed(USER_MISTAKE)
    except BrokenPipeError:
        _flush_or_discard()
        return _failed(PIPE_CLOSED)
    except OSError as error:
        _tell(f"error: {system_error('cannot read or write', error)}")
        _flush_or_discard()
        return _failed(USER_MISTAKE)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again: what is finished is kept\n")
        return _failed(INTERRUPTED)
    except Stopped as stop:
        if str(stop):
            _tell(f"stopped by {stop.by.name}: {stop}")
        return _failed(stop.status)


def _failed(status: int) -> int:
    """The status of a command that did not end well; ends a process of a launch at once.

    Its destructors would run with the traceback, and that of gloo's process group can wait without end for processes
    that are gone. All files are written and all locks released by now.
    """
    if "LOCAL_RANK" in os.environ:
        _flush_or_discard()
        os._exit(status)
    return status


def _tell(sentence: str) -> None:
    """Print one sentence on one line, whatever names it contains."""
    tell(console(to_errors=True), " ".join(sentence.splitlines()))


def _flush_or_discard() -> None:
    """Write the rest of the output, or discard it: writing it at exit would fail again, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nothing:  # noqa: PTH123 - devnull is no path
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def subcommand(program: str, commands: Mapping[str, str], arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The subcommand that the arguments begin with, and the arguments after it; prints the list for ``--help``.

    Args:
        program: how the user calls the program.
        commands: one line about each subcommand, by name.
        arguments: the command line after the program's name.

    Raises:
        UserError: for no subcommand or an unknown one; names those that exist.
    """
    name = arguments[0] if arguments else ""
    if name in _HELP:
        lines = [f"usage: {program} COMMAND [--help]", ""]
        for key, text in commands.items():
            lines += wrapped(text, f"  {key:<10}  ", " " * 14)
        sys.stdout.write("\n".join(lines) + "\n")
        sys.exit(0)
    if name not in commands:
        found = f"'{name}' is not a command of {program}" if name else f"{program} needs a command"
        raise UserError(f"{found}; choose from {', '.join(commands)}")
    return name, arguments[1:]


class _MistakeError(Exception):
    """A mistake in the words of the command line."""


def _parsed(schema: type[SettingsType], arguments: Sequence[str], program: str) -> tuple[SettingsType, list[str]]:
    """Settings, and their files."""
    words = [word for word in arguments if word not in _HELP]
    plugins = _import_plugins(schema, words)
    if len(words) < len(arguments):
        sys.stdout.write(help_of(schema, program))
        sys.exit(0)
    files, options, left = split_words(schema, words)
    return _validated(schema, files, options, plugins, f"{program} --help", left), files


def _validated(
    schema: type[SettingsType],
    files: Sequence[str],
    options: Sequence[tuple[str, Value]],
    plugins: Sequence[str],
    help_from: str,
    left: Sequence[str] = (),
) -> SettingsType:
    """The settings that files and options make together.

    Args:
        schema: their class.
        files: later ones win.
        options: with their values; they win over all files.
        plugins: that were imported.
        help_from: the source of a list of options, for errors.
        left: words that are not options.

    Raises:
        UserError: for the first mistake.
    """
    content: dict[str, Any] = {}
    try:
        for file in files:
            read = _spelled_out(schema, read_yaml(Path(file)))
            _check_file(schema, file, read)
            content = _merged(content, read)
        if left:
            taken = f", and those without a name have values: {', '.join(schema.positional)}"
            raise _MistakeError(f"{left[0]} is not an option{'' if left[0].startswith('-') else taken}")
        for option, value in options:
            if said := taken_for_file(schema, option, value):
                raise _MistakeError(said)
        _refuse_dropped(schema, options)
        for option, value in options:
            content = _changed(schema, content, option, value)
        return schema.model_validate(content | ({"plugins": list(plugins)} if plugins else {}))
    except ValidationError as error:
        mistake = first_mistake(error, schema)
    except _MistakeError as error:
        mistake = str(error)
    where = f"configuration {', '.join(files)}; " if files else ""
    raise UserError(f"{mistake} ({where}see {help_from})")


def _import_plugins(schema: type[Command], words: Sequence[str]) -> list[str]:
    """Import the plugins that files and options name, before their additions are needed; returns their names."""
    files, options, _ = split_words(schema, words)
    return _import_named(files, *(value for option, value in options if option == "plugins"))


def _import_named(files: Sequence[str], *given: Value) -> list[str]:
    named = [*(read_yaml(Path(file)).get("plugins") for file in files), *given]
    listed = [name for names in named if isinstance(names, list) for name in names]
    if not all(isinstance(name, str) for name in listed):
        return []  # the schema refuses them
    plugins = list(dict.fromkeys(listed))
    import_plugins(plugins)
    return plugins


def _spelled_out(annotation: Annotation, value: Value) -> Value:
    """Options with shorthands expanded to mappings, so that these can be merged."""
    if isinstance(value, Mapping):
        return {name: _spelled_out(inner_of(annotation, str(name)), inner) for name, inner in value.items()}
    shorthand = shorthand_of(annotation)
    return {shorthand: value} if shorthand and isinstance(value, str | int | float) else value


def _merged(content: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two files' options: groups are joined, and of two values the later one wins."""
    merged = dict(content)
    for name, value in other.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _refuse_dropped(schema: type[Settings], options: Sequence[tuple[str, Value]]) -> None:
    """Refuse an option of a group that a later option replaces whole: it would be silently dropped."""
    for number, (whole, value) in enumerate(options):
        keeps_others = isinstance(_spelled_out(locate(schema, whole)[1], value), Mapping) and not isinstance(
            value, Mapping
        )
        for option, _ in () if keeps_others else options[:number]:
            if option.startswith(f"{whole}."):
                raise _MistakeError(f"--{whole} replaces --{option}, which is given before it; give --{whole} first")


def _changed(schema: type[Settings], content: Mapping[str, Any], option: str, value: Value) -> dict[str, Any]:
    """The same options with one of them changed, at any depth."""
    if value is NOTHING:
        raise _MistakeError(f"--{option} needs a value")
    path, annotation = locate(schema, option)
    spelled_out = _spelled_out(annotation, value)
    if isinstance(spelled_out, Mapping) and not isinstance(value, Mapping):
        ((shorthand, value),) = spelled_out.items()
        return _with(content, [*path, shorthand], value)
    return _with(content, path, spelled_out)


def _with(content: Mapping[str, Any], path: Sequence[str], value: Value) -> dict[str, Any]:
    if len(path) > 1:
        inner = content.get(path[0])
        if inner is not None and not isinstance(inner, Mapping):
            raise _MistakeError(f"{path[0]} is {inner}, which has no {'.'.join(path[1:])}; give one of the two")
        value = _with(inner or {}, path[1:], value)
    return {**content, path[0]: value}


def _check_file(schema: type[Settings], file: str, content: Mapping[str, Any]) -> None:
    """Refuse a file with unknown keys or wrong values; missing ones may still come from the command line."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        # Our validators may refuse a combination that the command line still changes.
        wrong = [found for found in error.errors() if found["type"] not in ("missing", "value_error")]
        if wrong:
            raise UserError(f"configuration {file}: {sentence_of(wrong, schema)}") from None
