"""The help of a command, made from its settings: every option with its type, default and description."""

import inspect
import json
import textwrap
import typing
from pathlib import Path
from typing import Literal

from pydantic_core import PydanticUndefined, to_jsonable_python

from palenka.ground.options import (
    Annotation,
    Option,
    Value,
    fields_of,
    is_list,
    options_of,
    origin_of,
    shorthand_of,
    types_of,
    value_of,
)
from palenka.ground.registry import NameIn
from palenka.ground.settings import Command

WIDTH = 80
"""Maximum columns of help."""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
_CONFIG = Option("config", Path, "YAML file with any of the options below; what the command line says wins.")


def help_of(schema: type[Command], program: str) -> str:
    """The text of ``--help``, at most `WIDTH` columns wide; nested options are dotted."""
    usage = ["usage:", program, *(_word(schema, name) for name in schema.positional), "[--OPTION VALUE ...]"]
    lines = wrapped(" ".join(usage), "", "  ")
    for paragraph in inspect.cleandoc(schema.__doc__ or "").split("\n\n"):
        lines += ["", *wrapped(paragraph)]
    lines.append("")
    for option in [_CONFIG, *options_of(schema)]:
        lines += _heading(option) if option.is_group else _entry(option)
    return "\n".join(lines) + "\n"


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """The lines of a text, with a prefix for the first line and one for the others."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _word(schema: type[Command], name: str) -> str:
    """A positional word in the usage."""
    if name == "config":
        return "[FILE.yaml]"
    field = fields_of(schema)[name]
    word = f"{name.upper()} ..." if any(map(is_list, types_of(field.annotation))) else name.upper()
    return word if field.is_required() else f"[{word}]"


def _heading(option: Option) -> list[str]:
    shorthand = shorthand_of(option.annotation)
    notes = [option.choice, f"a value alone is its {shorthand}" if shorthand else ""]
    title = " ".join([option.name, *(f"({note})" for note in notes if note)])
    return ["", *wrapped(f"{title}: {option.about}", "", "  ")]


def _entry(option: Option) -> list[str]:
    is_missing = option.default is PydanticUndefined
    default = "required" if is_missing else f"default: {_text(option.default)}"
    said = "" if option is _CONFIG else f" ({default})"
    may_be_null = type(None) in types_of(option.annotation) and option.default is not None
    kind = f"{_kind(option.annotation)} or null" if may_be_null else _kind(option.annotation)
    return [*wrapped(f"--{option.name} {kind}{said}", "  ", "    "), *wrapped(option.about, "      ", "      ")]


def _text(default: Value) -> str:
    """A default as a user would write it."""
    if default is None or default in ("", (), [], {}):
        return "none"
    plain = to_jsonable_python(default)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _kind(annotation: Annotation, is_plural: bool = False) -> str:
    """The type of a value, in plain words."""
    kinds = [kind for kind in types_of(annotation) if kind is not type(None)]
    return " or ".join(_kind_of_one(kind, is_plural) for kind in kinds) or "null"


def _kind_of_one(kind: Annotation, is_plural: bool) -> str:
    if isinstance(kind, NameIn) or origin_of(kind) is Literal:
        names = list(kind.registry) if isinstance(kind, NameIn) else [str(name) for name in typing.get_args(kind)]
        return f"choice of {', '.join(names)}" if len(names) > 1 and not is_plural else ", ".join(names)
    if is_list(kind):
        return f"list{'s' * is_plural} of {_kind(typing.get_args(kind)[0], is_plural=True)}"
    if (value := value_of(kind)) is not None:
        return f"mapping{'s' * is_plural} of {_kind(value, is_plural=True)}"
    return _KINDS.get(kind, "value") + "s" * is_plural
