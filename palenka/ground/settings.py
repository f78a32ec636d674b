"""The base of every configuration: frozen, checked, unknown keys refused; and its YAML files."""

import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from palenka.ground.errors import NeedsPluginsError, UserError
from palenka.ground.files import read_text, size_of, write_whole
from palenka.ground.plain_yaml import load_yaml

Schema = TypeVar("Schema", bound=BaseModel)

Precision = Literal["float32", "bf16", "fp16"]
"""The type that a model computes in."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def _require_duration(given: str) -> str:
    if not re.fullmatch(rf"\d{{1,6}}[{''.join(_UNITS)}]", given) or not seconds_of(given):
        raise PydanticCustomError("duration", "a time such as 90s, 10m or 2h")
    return given


def seconds_of(duration: str) -> int:
    """The seconds of a `Duration`."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


Duration = Annotated[str, AfterValidator(_require_duration)]
"""A time in seconds, minutes or hours: 90s, 10m, 2h."""

NOT_REGISTERED = "not_registered"
"""The type of pydantic's error for a name that no registry knows, which a plug-in may register."""
_LONGEST_BYTES = 2**20
"""Maximum bytes of a file of settings."""
_BOUND = 2**53
"""Integers below it are exact in JSON everywhere."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("line", "Input should be a line of text without control characters")
    return text


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[^./\\\s][^/\\]{0,99}", name) or not name.isprintable():
        raise PydanticCustomError("name", "Input should be a name for a file, without slashes and a dot before it")
    return name


OneLine = Annotated[str, AfterValidator(_one_line)]
"""Text for a line of a script."""
FileName = Annotated[str, AfterValidator(_file_name)]
"""A name for files and folders."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        UserError: if it cannot be read, gives an option twice, or holds anything but options.
    """
    try:
        if (size := size_of(path)) is not None and size > _LONGEST_BYTES:
            raise UserError(
                f"configuration {path} has {size:,} bytes, but {_LONGEST_BYTES:,} at most are read; shorten it"
            )
        content = load_yaml(read_text(path))
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"configuration {str(path)!r} cannot be read: {error}; give a YAML file") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).replace(' in "<unicode string>",', " at").split())
        raise UserError(f"configuration {path} is not YAML: {where}; fix it there") from None
    if not isinstance(content, dict):
        raise UserError(f"configuration {path} has no options: it should hold lines such as `output: runs/mine`")
    return content


class Settings(BaseModel):
    """A frozen group of settings; each class of settings stands beside the code that it configures.

    Paths may begin with ``~`` and hold ``$VARIABLES``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    shorthand: ClassVar[str | None] = None
    """The field that a bare value instead of the group sets, if any: ``logit: 0.5``."""

    def as_plain(self) -> dict[str, object]:
        """These settings as plain JSON values, defaults included."""
        return self.model_dump(mode="json")

    def write_yaml(self, path: Path) -> None:
        """Write the resolved settings, defaults included, as the record of a run."""
        write_whole(path, yaml.safe_dump(self.as_plain(), sort_keys=False, allow_unicode=True))

    @model_validator(mode="before")
    @classmethod
    def _bare_value_is_shorthand(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        is_bare = isinstance(given, str | int | float)
        return {cls.shorthand: given} if cls.shorthand and is_bare else given

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        if isinstance(given, bool) and _holds_numbers(cls.model_fields[str(info.field_name)].annotation):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            rule = "a valid number" if float in kinds else "a valid integer"  # as for an invalid word
            raise PydanticCustomError("number_type", "Input should be {rule}", {"rule": rule})
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _text_can_be_written(cls, given: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - whatever was given
        for text in _texts(given):
            if "\0" in text or not _is_unicode(text):
                raise PydanticCustomError("text", "Input should be Unicode text without NUL")
            if not text and Path in _kinds(cls.model_fields[str(info.field_name)].annotation):
                raise PydanticCustomError("path", "Input should be a path, not empty")
        return given

    @field_validator("*")
    @classmethod
    def _whole_numbers_have_a_bound(cls, value: Any) -> Any:  # noqa: ANN401 - of any field
        for number in _whole_numbers(value):
            if abs(number) >= _BOUND:
                raise PydanticCustomError("bound", "Input should be a whole number below 2^53")
        return value

    @field_validator("*")
    @classmethod
    def _paths_as_people_write_them(cls, value: Any) -> Any:  # noqa: ANN401 - of any field
        return _expanded(value)


def path_of(given: str | Path) -> Path:
    """A path as a user writes it, with ``~`` and ``$VARIABLES`` expanded.

    Raises:
        UserError: if a home is unknown, a variable is not set, or it is not a path.
    """
    if not str(given):
        raise UserError("a path is empty; give one")
    try:
        path = _expanded(Path(given))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    assert isinstance(path, Path)
    return path


def read_as(schema: type[Schema], content: Mapping[str, object], source: Path) -> Schema:
    """The contents of one of our files as a typed record.

    Raises:
        NeedsPluginsError: if it was made with plug-ins that are not imported.
        UserError: if something in it is missing, unknown or of the wrong type; with the file and the field.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"{field}: {first['msg'].lower()}" if field else first["msg"]
        plugins = content.get("plugins")
        missing = [str(name) for name in plugins if name not in sys.modules] if isinstance(plugins, list) else []
        if first["type"] == NOT_REGISTERED:
            what = f"{field} is {first['input']!r}, which comes from a plug-in"
            missing = missing or ["MODULE"]
        if missing:
            remedy = f"it was made with plugins of yours: give --plugins {' '.join(missing)}"
            raise NeedsPluginsError(f"{source} cannot be read: {what}; {remedy}") from None
        remedy = "make it again, or leave its folder out"
        raise UserError(f"{source} cannot be read: {what}; {remedy}") from None


class Command(Settings):
    """All settings of a command.

    Attributes:
        positional: options whose names may be omitted, in the order of their words; the last may take many. ``config``
            stands for a file of settings.
    """

    positional: ClassVar[tuple[str, ...]] = ("config",)

    plugins: tuple[str, ...] = ()
    """Your modules to import first; their registered additions work like built-in ones."""

    def as_plain(self) -> dict[str, object]:
        """These settings as plain JSON values, defaults included; an empty list of plugins is omitted."""
        return super().as_plain() if self.plugins else self.model_dump(mode="json", exclude={"plugins"})


class Printing(Command):
    """Settings of a command that prints its findings."""

    as_json: bool = Field(default=False, alias="json")
    """Print all findings as JSON, instead of a table."""


def _holds_numbers(annotation: Any) -> bool:  # noqa: ANN401 - the type of a field
    """Whether a type, or one of a union, is a number, and none is a boolean."""
    is_choice = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = [getattr(kind, "__origin__", kind) for kind in typing.get_args(annotation)] if is_choice else [annotation]
    return bool not in kinds and (int in kinds or float in kinds)


def _kinds(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - the type of a field
    """A type and all of its components."""
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _kinds(inner)


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever was given
    """Every text in a value, inside any lists and mappings."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _whole_numbers(value: Any) -> Iterator[int]:  # noqa: ANN401 - of any field
    """Every whole number in a value, inside any lists and mappings."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _whole_numbers(inner)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _expanded(value: Any) -> Any:  # noqa: ANN401 - of any field
    """A value whose paths, inside any lists and mappings, have ``~`` and variables expanded."""
    if isinstance(value, Path):
        expanded = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 - leaves an unknown home alone
        if expanded.startswith("~"):
            raise ValueError(f"{value} begins with {Path(expanded).parts[0]}, a home that is not known; write it out")
        if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
            raise ValueError(f"{value} has {unset[0]}, which is not set; export it, or write the path out")
        if any(character < " " or character == "\x7f" for character in expanded):
            raise ValueError(f"{expanded!r} has a line break or another control character in it; rename it")
        return Path(expanded)
    if isinstance(value, Mapping):
        return {key: _expanded(inner) for key, inner in value.items()}
    return type(value)(map(_expanded, value)) if type(value) in (list, tuple) else value
