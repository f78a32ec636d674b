"""The command line of every program: settings from YAML files and dotted overrides, subcommands, exit statuses.

Precedence of settings: defaults < file < command line.
"""

import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from palenka.ground.errors import UserError
from palenka.ground.settings import Settings, read_yaml

SettingsType = TypeVar("SettingsType", bound=Settings)

USER_MISTAKE = 2
INTERRUPTED = 130


def parse(schema: type[SettingsType], arguments: Sequence[str], program: str) -> SettingsType:
    """Settings from ``--config FILE.yaml`` and overrides such as ``--objective.logit 0.3``.

    Precedence: defaults < file < command line, wherever ``--config`` stands. A mapping or a list is written as in YAML
    and replaces what the file has. ``--help`` is made from the fields' descriptions.

    Raises:
        UserError: for an unreadable file, an unknown key, or a value that a field refuses.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help(schema, program)
    files = _files(arguments)
    content: dict[str, object] = {}
    try:
        options = _options(arguments)
        for file in files:
            read = read_yaml(Path(file))
            _check_file(schema, file, read)
            content = _merged(content, read)
        for option, value in options:
            if option != "config":
                content = _with(content, option.split("."), _plain(value))
        return schema.model_validate(content)
    except ValidationError as error:
        mistake = _first_mistake(error, schema)
    except _NotAnOptionError as error:
        mistake = str(error)
    where = f"configuration {', '.join(files)}; " if files else ""
    raise UserError(f"{mistake} ({where}see {program} --help)")


def parse_file(schema: type[SettingsType], arguments: Sequence[str], program: str) -> tuple[SettingsType, Path]:
    """Settings as `parse` has them, and their file, beside which the files lie that they name.

    Raises:
        UserError: as `parse`; or without a file.
    """
    settings = parse(schema, arguments, program)
    if not (files := _files(arguments)):
        raise UserError(f"{program} finds other files beside its own; give it as --config FILE.yaml")
    return settings, Path(files[-1])


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None) -> int:
    """Run a command for its exit status; 2, with one sentence on standard error, for a user's mistake."""
    try:
        return command(sys.argv[1:] if arguments is None else arguments) or 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_MISTAKE
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"error: cannot read or write{where}: {error.strerror or error}; fix that and run it again\n")
        return USER_MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again: what is finished is kept\n")
        return INTERRUPTED


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
    if name in ("-h", "--help"):
        lines = [f"usage: {program} COMMAND [--help]", "", *(f"  {key:<10} {text}" for key, text in commands.items())]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.exit(0)
    if name not in commands:
        found = f"'{name}' is not a command of {program}" if name else f"{program} needs a command"
        raise UserError(f"{found}; choose from {', '.join(commands)}")
    return name, arguments[1:]


class _NotAnOptionError(Exception):
    """Something on the command line that is no option with a value; the first word is what."""


def _print_help(schema: type[BaseModel], program: str) -> NoReturn:
    """All options with their descriptions, types and defaults, nested ones dotted."""
    parser = ArgumentParser(prog=program, description=schema.__doc__)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_class_arguments(schema, None)
    parser.print_help()
    sys.exit(0)


def _files(arguments: Sequence[str]) -> list[str]:
    """The files of ``--config``, wherever they stand."""
    return [file for option, file in _options(arguments, strict=False) if option == "config"]


def _options(arguments: Sequence[str], strict: bool = True) -> list[tuple[str, str]]:
    """Pairs of an option's dotted name and its value, from ``--name value`` and ``--name=value``.

    Raises:
        _NotAnOptionError: for anything else, if strict.
    """
    options: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        is_option = argument.startswith("--") and bool(name)
        has_value = bool(equals) or (bool(rest) and not rest[0].startswith("--"))
        if is_option and has_value:
            options.append((name, value if equals else rest.pop(0)))
        elif strict:
            raise _NotAnOptionError(f"{argument} needs a value" if is_option else f"{argument} is not an option")
    return options


def _plain(value: str) -> object:
    """A value of the command line: lists, mappings and null as in YAML; anything else is the field's to read."""
    if value in ("null", "~"):
        return None
    if value[:1] not in ("[", "{"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _merged(content: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    """Two files' options: groups are joined, and of two values the later one wins."""
    merged = dict(content)
    for name, value in other.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _with(content: Mapping[str, object], path: Sequence[str], value: object) -> dict[str, object]:
    """The same options with one of them changed, however deep it lies."""
    if len(path) > 1:
        inner = content.get(path[0])
        value = _with(inner if isinstance(inner, Mapping) else {}, path[1:], value)
    return {**content, path[0]: value}


def _check_file(schema: type[BaseModel], file: str, content: Mapping[str, object]) -> None:
    """Refuse a file with unknown keys or wrong values; what it lacks may still come from the command line."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        # What a validator of ours refuses may be the combination with what the command line still changes.
        wrong = [found for found in error.errors() if found["type"] not in ("missing", "value_error")]
        if wrong:
            raise UserError(f"configuration {file}: {_sentence(wrong, schema)}") from None


def _first_mistake(error: ValidationError, schema: type[BaseModel]) -> str:
    """What to fix first: a name or a value that is wrong, or else everything that is missing."""
    found = error.errors()
    wrong = [entry for entry in found if entry["type"] != "missing"]
    if wrong:
        return _sentence(wrong, schema)
    missing = [name for entry in found for name in _required(schema, [str(part) for part in entry["loc"]])]
    return f"these options are missing: {', '.join(missing)}; give them in a file or as --{missing[0]} VALUE"


def _sentence(found: Sequence[ErrorDetails], schema: type[BaseModel]) -> str:
    """The first of some mistakes, in the form that all errors of this project have."""
    first = next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])
    option = _option(first)
    if first["type"] == "extra_forbidden":
        return f"{option} is not an option{_nearest(option, schema)}"
    if first["type"] == "value_error":
        return f"{option}: {first['ctx']['error']}" if option else str(first["ctx"]["error"])
    # Of a choice between types each says what it wants.
    rules = dict.fromkeys(_rule(entry) for entry in found if _option(entry) == option)
    return f"{option} is {first['input']}, but it should be {' or '.join(rules)}"


def _option(found: ErrorDetails) -> str:
    """The dotted option that a mistake is in; places in lists and names of types, which pydantic adds, are left out."""
    parts = [part for part in found["loc"] if isinstance(part, str)]
    return ".".join(part for part in parts if not re.search(r"[\[(]|^(str|int|float|bool|path|none)$", part))


def _rule(found: ErrorDetails) -> str:
    """What a value should be, in a few words."""
    if found["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return "a mapping {...}"
    if found["type"] in ("tuple_type", "list_type"):
        return "a list [...]"
    return found["msg"].removeprefix("Input should be ").split(", unable to")[0]


def _required(schema: type[BaseModel], path: list[str]) -> list[str]:
    """A missing option, or the options of a missing group that have no default."""
    field: Any = schema
    for part in path:
        fields = getattr(field, "model_fields", {})
        field = fields[part].annotation if part in fields else None
    if isinstance(field, type) and issubclass(field, BaseModel):
        return [".".join([*path, name]) for name, inner in field.model_fields.items() if inner.is_required()]
    return [".".join(path)]


def _nearest(option: str, schema: type[BaseModel]) -> str:
    """A hint at the name that an unknown part of a dotted option may stand for, or nothing."""
    names = sorted(set(_field_names(schema)))
    near = [name for part in option.split(".") if part not in names for name in difflib.get_close_matches(part, names)]
    return f"; did you mean '{near[0]}'?" if near else ""


def _field_names(annotation: object) -> Iterator[str]:
    """The names of all fields of a settings class and of the classes inside it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield name
            yield from _field_names(field.annotation)
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _field_names(argument)
