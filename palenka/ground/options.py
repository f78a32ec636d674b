"""The options of a class of settings: found by their dotted names, and listed for help.

An option holds a plain value or a group of others: another class of settings, a mapping of them by name, one of several
classes (`OneOf`), or an open group, whose members a registry names.
"""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic.fields import FieldInfo

from palenka.ground.registry import NameIn, OneOf, OpenSettings
from palenka.ground.settings import Settings

Annotation: TypeAlias = Any
"""The type of a field: a class, or a construct of `typing`."""
Value: TypeAlias = Any
"""The value of an option: text, numbers, lists and mappings of them."""

NAME = "NAME"
"""Stands in an option for a name that the user chooses."""


@dataclass(frozen=True)
class Option:
    """An option, or a group of them.

    Attributes:
        name: dotted; NAME in it stands for a name that the user chooses.
        annotation: the type of its value.
        about: its description.
        default: its default value; PydanticUndefined if it is required.
        choice: for a group, the choice to which its options belong, such as ``kind topk`` or ``with from``.
    """

    name: str
    annotation: Annotation
    about: str
    default: Value = None
    choice: str = ""

    @property
    def is_group(self) -> bool:
        """Whether it only holds the options that follow it."""
        return bool(groups_of(self.annotation))


def origin_of(annotation: Annotation) -> Annotation:
    """`typing.get_origin` with a usable type."""
    return typing.get_origin(annotation)


def types_of(annotation: Annotation) -> list[Any]:
    """The types of a value, each one of a union; a registry's choice keeps its annotation."""
    if origin_of(annotation) is Annotated:
        choices = [extra for extra in annotation.__metadata__ if isinstance(extra, OneOf | NameIn)]
        return choices or types_of(annotation.__origin__)
    if origin_of(annotation) in (typing.Union, types.UnionType):
        return [kind for each in typing.get_args(annotation) for kind in types_of(each)]
    return [annotation]


def is_list(kind: Annotation) -> bool:
    """Whether a type is a list."""
    return origin_of(kind) in (list, tuple)


def groups_of(annotation: Annotation) -> list[tuple[str, type[Settings]]]:
    """The settings classes of a value, each with the choice that selects it, such as ``kind topk``."""
    groups: list[tuple[str, type[Settings]]] = []
    for kind in types_of(annotation):
        if isinstance(kind, OneOf):
            groups += [(kind.choice(name), choice) for name, choice in kind.registry.items()]
        elif inspect.isclass(kind) and issubclass(kind, Settings):
            groups.append(("", kind))
    return groups


def value_of(annotation: Annotation) -> Annotation:
    """The type of the values of a mapping; None for anything else."""
    mappings = [kind for kind in types_of(annotation) if origin_of(kind) in (dict, Mapping)]
    return typing.get_args(mappings[0])[1] if mappings else None


def fields_of(group: type[Settings]) -> dict[str, FieldInfo]:
    """The fields of a class by the names that users write."""
    return {field.alias or name: field for name, field in group.model_fields.items() if not field.exclude}


def members_of(group: type[Settings]) -> Mapping[str, type[Settings]]:
    """The settings classes of an open group by name; none for another group."""
    return group.registry if issubclass(group, OpenSettings) else {}


def inner_of(annotation: Annotation, name: str) -> Annotation:
    """The type of a name in a group or a mapping; None if there is none, Any if every name is allowed."""
    groups = groups_of(annotation)
    for _, group in groups:
        if field := fields_of(group).get(name):
            return _whole(field)
        if name in (members := members_of(group)):
            return members[name]
    if annotation is Any or any(group.model_config.get("extra") == "allow" for _, group in groups):
        return Any
    return value_of(annotation)


def locate(schema: type[Settings], option: str) -> tuple[list[str], Annotation]:
    """The path of a dotted option through nested mappings, and its type; None for one that does not exist.

    In a mapping to plain values the rest of the option is one name, including dots.
    """
    path: list[str] = []
    annotation: Annotation = schema
    parts = option.split(".")
    while parts:
        value = value_of(annotation)
        is_plain = value is not None and value_of(value) is None and not groups_of(value)
        path.append(".".join(parts) if is_plain else parts[0])
        parts = [] if is_plain else parts[1:]
        annotation = inner_of(annotation, path[-1])
    return path, annotation


def shorthand_of(annotation: Annotation) -> str | None:
    """The field of a group that a bare value stands for."""
    return next((group.shorthand for _, group in groups_of(annotation) if group.shorthand), None)


def options_of(schema: type[Settings], within: str = "", given: Settings | None = None) -> Iterator[Option]:
    """All options of a class of settings; groups follow the plain options, each before its own.

    Args:
        schema: the class.
        within: its dotted name as a group, with a final dot.
        given: settings with the defaults, if not the class itself.
    """
    groups = []
    for name, field in fields_of(schema).items():
        default = field.get_default(call_default_factory=True) if given is None else dict(given).get(name)
        option = Option(f"{within}{name}", _whole(field), " ".join((field.description or "").split()), default)
        while types_of(option.annotation) == [*filter(_is_mapping, types_of(option.annotation))]:
            option = replace(option, name=f"{option.name}.{NAME}", annotation=value_of(option.annotation))
        if option.is_group:
            groups.append(option)
        else:
            yield option
    for name, member in members_of(schema).items():
        default = given.entries.get(name) if isinstance(given, OpenSettings) else None
        groups.append(Option(f"{within}{name}", member, about(member), default))
    for option in groups:
        yield from _with_its_own(option)


def about(group: type[Settings]) -> str:
    """The first sentence of a settings class."""
    return " ".join(inspect.cleandoc(group.__doc__ or "").split("\n\n")[0].split())


def _with_its_own(option: Option) -> Iterator[Option]:
    """A group and its options; for a choice of classes the options of each."""
    yield option
    for kind in types_of(option.annotation):
        if isinstance(kind, OneOf) and kind.key:
            chosen = getattr(option.default, kind.key, kind.default)
            yield Option(f"{option.name}.{kind.key}", Literal[tuple(kind.registry)], "Which of these it is.", chosen)
    for choice, group in groups_of(option.annotation):
        if choice:
            yield Option(option.name, group, about(group), choice=choice)
        given = option.default if isinstance(option.default, group) else None
        key = f"{option.name}.{choice.partition(' ')[0]}"
        yield from (inner for inner in options_of(group, f"{option.name}.", given) if inner.name != key)


def _whole(field: FieldInfo) -> Annotation:
    """The annotation of a field, including its metadata in pydantic."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _is_mapping(kind: Annotation) -> bool:
    return value_of(kind) is not None
