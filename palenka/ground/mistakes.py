"""Mistakes in settings as sentences: the option, its value and the rule, or the option that was probably meant."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from palenka.ground.options import NAME, fields_of, groups_of, locate, options_of, types_of, value_of
from palenka.ground.settings import Settings

_LONGEST = 200
"""Characters of a value that are shown."""
_GROUP_TYPES = ("model_type", "dict_type", "model_attributes_type")
"""Types of errors where a group of options is expected."""
SUFFIXES = (".yaml", ".yml", ".json")
"""Suffixes of files of options."""
_ALIKE = 0.6
"""Minimum similarity of a name to suggest it."""
_IN_PLACE = 0.1
"""Bonus for an option in the same group as the mistaken name."""


def first_mistake(error: ValidationError, schema: type[Settings]) -> str:
    """The mistake to fix first: a wrong name or value, or else everything that is missing."""
    found = error.errors()
    if wrong := [entry for entry in found if entry["type"] != "missing"]:
        return sentence_of(wrong, schema)
    missing = [name for entry in found for name in _required_by(schema, ".".join(map(str, entry["loc"])))]
    return f"these options are missing: {', '.join(missing)}; give them in a file or as --{missing[0]} VALUE"


def sentence_of(found: Sequence[ErrorDetails], schema: type[Settings]) -> str:
    """The first of some mistakes, in the form of all errors of this project."""
    first = next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])
    option = _option(first)
    if first["type"] == "extra_forbidden":
        hint = _nearest(schema, option)
        return f"{option or '--'} is not an option" + (f"; did you mean '{hint}'?" if hint else "")
    if first["type"] == "invalid_key":
        return f"{_shown(first['input'])} is not the name of an option; names are text"
    if first["type"] == "value_error":
        said = first["msg"].removeprefix("Value error, ")
        return f"{option}: {said}" if option else said
    if first["type"] in _GROUP_TYPES and (no_file := taken_for_file(schema, option, first["input"])):
        return no_file
    # For a union, each type reports its own requirement.
    rules = dict.fromkeys(_rule(entry) for entry in found if _option(entry) == option)
    return f"{option} is {_shown(first['input'])}, but it should be {' or '.join(rules)}"


def taken_for_file(schema: type[Settings], option: str, value: object) -> str | None:
    """The remedy if a group of options was given the name of a file; None for any other value."""
    kinds = [kind for kind in types_of(locate(schema, option)[1]) if kind is not type(None)]
    is_group = kinds and all(groups_of(kind) or value_of(kind) is not None for kind in kinds)
    if not is_group or not isinstance(value, str) or Path(value).suffix not in SUFFIXES:
        return None
    last = option.rpartition(".")[2]
    return (
        f"{option} is {_shown(value)}, but no file is taken there; write its options, as --{option}.OPTION VALUE, or "
        f"give a file that has them beneath `{last}:` as --config FILE"
    )


def _shown(value: object) -> str:
    """A value as given, on one short line."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)  # true, as in files
    text = text if text.isprintable() and text.strip() else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _option(found: ErrorDetails) -> str:
    """The dotted option of a mistake, without pydantic's list indices and type names."""
    parts = [part for part in found["loc"] if isinstance(part, str)]
    if found["type"] == "extra_forbidden":
        return ".".join(parts)
    return ".".join(part for part in parts if not re.search(r"[\[(]|^(str|int|float|bool|path|none)$", part))


def _rule(found: ErrorDetails) -> str:
    """The rule for a value, in a few words."""
    if found["type"] in _GROUP_TYPES:
        return "a mapping {...}"
    if found["type"] == "path_type":
        return "a path"
    if found["type"] in ("tuple_type", "list_type"):
        return "a list [...]"
    return found["msg"].removeprefix("Input should be ").split(", unable to")[0]


def _required_by(schema: type[Settings], option: str) -> list[str]:
    """A missing option; for a missing group its options without default."""
    for _, group in groups_of(locate(schema, option)[1]):
        return [f"{option}.{name}" for name, field in fields_of(group).items() if field.is_required()]
    return [option]


def _nearest(schema: type[Settings], mistaken: str) -> str | None:
    """The option that was probably meant: similar in name or initials, preferably in the same group."""
    *place, last = mistaken.split(".")

    def likeness(name: str) -> float:
        end = name.rpartition(".")[2]
        initials = "".join(word[:1] for word in end.split("_"))
        return 1.0 if last == initials else difflib.SequenceMatcher(None, last, end).ratio()

    names = dict.fromkeys(_placed(option.name.removesuffix(f".{NAME}"), place) for option in options_of(schema))
    alike = [name for name in names if likeness(name) >= _ALIKE]
    return max(alike, key=lambda name: likeness(name) + _IN_PLACE * (name.split(".")[:-1] == place), default=None)


def _placed(name: str, place: list[str]) -> str:
    """An option with the user's own names instead of NAME, if it belongs to the same group."""
    parts = name.split(".")
    filled = [given if part == NAME else part for part, given in zip(parts, place, strict=False)]
    return ".".join([*filled, *parts[len(filled) :]]) if filled == place else name
