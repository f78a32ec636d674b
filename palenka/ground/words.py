"""The words of a command line: files, options with their values, and words that belong to none."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from palenka.ground.mistakes import SUFFIXES
from palenka.ground.options import Annotation, Value, is_list, locate, types_of
from palenka.ground.plain_yaml import load_yaml
from palenka.ground.settings import Command

NOTHING: Any = object()
"""Marks an option without the value that it needs."""
_TRUTHS = ("true", "false", "yes", "no", "on", "off")


def split_words(schema: type[Command], words: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]], list[str]]:
    """The files, the options with their values, and the words that belong to none."""
    files: list[str] = []
    given: dict[str, list[str]] = {}
    loose: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            loose.append(word)
            continue
        option, equals, value = word[2:].partition("=")
        annotation = _type_of(schema, option)
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and _takes(schema, annotation, len(values), rest[0]):
            values.append(rest.pop(0))
        if option == "config" and values:
            files += values
        else:
            # An option given twice: lists are joined; of other values the later one wins, in its place.
            earlier = given.pop(option, [])
            given[option] = earlier + values if _may_be_list(annotation) else values
    options = [(option, _value(_type_of(schema, option), values)) for option, values in given.items()]
    left = [word for word in loose if word.startswith("-")]
    unnamed = [word for word in loose if not word.startswith("-")]
    for name in schema.positional:
        if not unnamed or name in given or (name == "config" and files):
            continue
        if name == "config":
            files.append(unnamed.pop(0))
        elif _may_be_list(_type_of(schema, name)):
            options.append((name, unnamed))
            unnamed = []
        else:
            options.append((name, unnamed.pop(0)))
    return files, options, left + unnamed


def _type_of(schema: type[Command], option: str) -> Annotation:
    return Path if option == "config" else locate(schema, option)[1]


def _may_be_list(annotation: Annotation) -> bool:
    return any(map(is_list, types_of(annotation)))


def _takes(schema: type[Command], annotation: Annotation, count: int, word: str) -> bool:
    """Whether an option with `count` words takes another: a list takes all, a boolean a truth, others one."""
    if _may_be_list(annotation):
        return True
    kinds = types_of(annotation)
    if count or bool not in kinds or str in kinds:
        return count == 0
    # Where words without a name are files, one that is no file is a mistaken value.
    is_no_file = schema.positional == ("config",) and Path(word).suffix not in SUFFIXES and not Path(word).exists()
    return word.lower() in _TRUTHS or is_no_file


def _value(annotation: Annotation, words: Sequence[str]) -> Value:
    """The value of an option's words; their type is left to the field."""
    if not words:
        # For an option that does not exist, this is the lesser mistake.
        return True if annotation is None or bool in types_of(annotation) else NOTHING
    values = [_plain(annotation, word) for word in words]
    if not _may_be_list(annotation):
        return values[0]
    is_only_list = all(is_list(kind) for kind in types_of(annotation) if kind is not type(None))
    if len(values) == 1 and (not is_only_list or values[0] is None or isinstance(values[0], Mapping)):
        return values[0]
    return [inner for value in values for inner in (value if isinstance(value, list) else [value])]


def _plain(annotation: Annotation, word: str) -> Value:
    """A word's value: lists, mappings and null as in YAML; all of YAML if any type is allowed; else the word itself."""
    if word == "null":
        return None
    may_be_anything = any(Any in (kind, *typing.get_args(kind)) for kind in types_of(annotation))
    if word[:1] not in ("[", "{") and not may_be_anything:
        return word
    try:
        return load_yaml(word)
    except yaml.YAMLError:
        return word
