"""The command line of every program: settings from YAML files and dotted overrides, subcommands, exit statuses.

Precedence of settings: defaults < file < command line.
"""

import argparse
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from pydantic import BaseModel, ValidationError

from configs.errors import UserError
from configs.settings import Settings, read_yaml

SettingsType = TypeVar("SettingsType", bound=Settings)

USER_MISTAKE = 2
INTERRUPTED = 130


def parse(schema: type[SettingsType], arguments: Sequence[str], program: str) -> SettingsType:
    """Settings from ``--config FILE.yaml`` and overrides such as ``--objective.logit 0.3``.

    Precedence: defaults < file < command line, wherever ``--config`` stands. ``--help`` is made from the fields'
    descriptions.

    Raises:
        UserError: for an unreadable file, an unknown key, or a value that a field refuses.
    """
    parser = ArgumentParser(prog=program, description=schema.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_class_arguments(schema, None)
    files: list[str] = []
    try:
        files, overrides = _split_off_files(arguments)
        for file in files:
            _check_file(schema, file)
        namespace = parser.parse_args([*(f"--config={file}" for file in files), *overrides])
        del namespace["config"]
        return schema.model_validate(parser.instantiate(namespace).as_dict())
    except (ArgumentError, ValidationError) as error:
        read = f"configuration {', '.join(files)}; " if files else ""
        raise UserError(f"{_one_sentence(str(error), schema)} ({read}see {program} --help)") from None


def parse_file(schema: type[SettingsType], arguments: Sequence[str], program: str) -> tuple[SettingsType, Path]:
    """Settings as `parse` has them, and their file, beside which the files lie that they name.

    Raises:
        UserError: as `parse`; or without a file.
    """
    settings = parse(schema, arguments, program)
    if not (files := _split_off_files(arguments)[0]):
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
        sys.stderr.write(f"error: cannot read or write{where}: {error.strerror or error}; mend that and run it again\n")
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


def _split_off_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of ``--config``, and the other arguments: the command line wins wherever the files stand in it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    known, others = parser.parse_known_args(list(arguments))
    return known.config, others


def _check_file(schema: type[BaseModel], file: str) -> None:
    """Refuse a file with unknown keys or wrong values; what it lacks may still come from the command line."""
    content = read_yaml(Path(file))
    try:
        schema.model_validate(content)
    except ValidationError as error:
        for found in error.errors():
            option = ".".join(str(part) for part in found["loc"])
            if found["type"] == "extra_forbidden":
                raise UserError(f"configuration {file}: {option} is not an option{_nearest(option, schema)}") from None
            if found["type"] not in ("missing", "value_error"):
                raise UserError(f"configuration {file}: {_refused(option, found['input'], found['msg'])}") from None


def _one_sentence(message: str, schema: type[BaseModel]) -> str:
    """A nested, many-line message of jsonargparse or pydantic as one sentence that names the option."""
    text = " ".join(message.split())
    text = re.sub(r"Problem with given class_path '[^']*': |\d+ validation errors? for \S+ |Value error, ", "", text)
    text = re.sub(r" \[type=[^\]]*\]( For further information visit https?://\S+?(?=\.? |\.?$))?", "", text)
    while (nested := re.sub(r'Parser key "([^"]+)": Parser key "([^"]+)"', r'Parser key "\1.\2"', text)) != text:
        text = nested
    if unknown := re.search(r"ption '([^']+)'( is not accepted|$)|unrecognized arguments: (?:--)?([^\s=]+)", text):
        option = unknown[1] or unknown[3]
        return f"{option} is not an option{_nearest(option, schema)}"
    if missing := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"these options are missing: {missing[1]}; give them in a file or as --{missing[1].split(',')[0]} VALUE"
    if wrong := re.search(r'.*Parser key "([^"]+)": (.*?)\.? Got value: (.*)', text):
        return _refused(wrong[1], wrong[3], wrong[2])
    if group := re.search(r"Parser key \"([^\"]+)\": Unable to load config '(.*?)' - ", text):
        return _refused(group[1], group[2], "should be a mapping {...}")
    return re.sub(r'Parser key "([^"]+)"', r"option \1", text)


def _refused(option: str, value: object, rule: str) -> str:
    """A sentence about a value, from what pydantic or jsonargparse say of the rule that refused it."""
    rule = re.sub(r"Expected an? typing\.Literal\[(.*)\]", r"should be one of \1", rule)
    rule = rule.replace("Expected a <class 'tuple'>", "should be a list [...]")
    rule = re.sub(r"Expected a <class 'dict'>|Input should be a valid dictionary.*", "should be a mapping {...}", rule)
    return f"{option} is {value}, but it {rule.removeprefix('Input ').split(', unable to')[0]}"


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
