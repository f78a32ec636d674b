"""Registries: extensible kinds of things, by name.

An encoding, a term, a divergence, a suite or a reader of text registers itself. Other code uses only its interface and
never tests its name. A user's module that does the same, named under `plugins`, appears like our own in settings, in
``--help`` and in errors.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field, GetCoreSchemaHandler, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from palenka.ground.errors import UserError, refusing
from palenka.ground.settings import NOT_REGISTERED, Settings

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        what: name of such a thing in errors, such as ``"encoding"``.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that adds what it decorates.

        Raises:
            UserError: if something else has the name; a module that is imported again may replace its own.
        """

        def add(entry: Entry) -> Entry:
            before = self._entries.get(name)
            if before is not None and _origin(before) != _origin(entry):
                raise UserError(f"two modules register the {self.what} {name}: {_origin(before)} and {_origin(entry)}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> Entry:
        """The thing of a name.

        Raises:
            UserError: if there is none; lists those that exist.
        """
        if name not in self._entries:
            raise UserError(f"{name!r} is no {self.what}; choose from {', '.join(self)}, or name its module in plugins")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __hash__(self) -> int:
        return id(self)


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules of the user, which register their additions; the current folder is searched first.

    Raises:
        UserError: if one cannot be imported; with its own error.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109 - as it stands in sys.path
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    for module in modules:
        with refusing(f"plugin {module} cannot be imported", "fix it"):  # any error of a user's module
            importlib.import_module(module)


@dataclass(frozen=True)
class OneOf:
    """The annotation of a settings field whose class is chosen by a name inside it, by default `kind`.

    ``logits: Annotated[LogitEncoding, OneOf(ENCODINGS, "topk")]`` takes the fields of the class that ``logits.kind``
    names. Without a key, the class is that of the registered name that is itself a given option.
    """

    registry: Registry[Any]
    default: str
    key: str | None = "kind"

    def choose(self, given: object) -> Any:  # noqa: ANN401 - settings of a class that the registry knows
        """The settings that a mapping gives.

        Raises:
            ValueError: if it is not a mapping, or names nothing that is registered, or several things.
        """
        if isinstance(given, tuple(self.registry.values())):
            return given
        if not isinstance(given, Mapping):
            raise PydanticCustomError("model_type", "Input should be a mapping")
        if self.key is None:
            names = [name for name in self.registry if name in given]
            if len(names) > 1:
                raise PydanticCustomError(
                    "value_error", "{names} exclude each other; give one", {"names": " and ".join(names)}
                )
            return self.registry[names[0] if names else self.default].model_validate(given)
        kind = given.get(self.key, self.default)
        if not isinstance(kind, str) or kind not in self.registry:
            raise _line_error(NOT_REGISTERED, _choices(self.registry), (self.key,), kind)
        return self.registry[kind].model_validate({self.key: kind, **given})

    def choice(self, name: str) -> str:
        """The choice that selects a registered class, such as ``kind topk`` or ``with from``."""
        return f"{self.key or 'with'} {name}"

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """How pydantic reads and writes such a field."""
        return core_schema.no_info_plain_validator_function(
            self.choose,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda chosen: chosen.as_plain()),
        )


@dataclass(frozen=True)
class NameIn:
    """The annotation of a settings field that holds a name in a registry: ``Annotated[str, NameIn(SUITES)]``."""

    registry: Registry[Any]

    def check(self, name: str) -> str:
        """The name.

        Raises:
            ValueError: if nothing is registered under it; lists the names that exist.
        """
        if name not in self.registry:
            raise PydanticCustomError(NOT_REGISTERED, "{text}", {"text": _choices(self.registry)})
        return name

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """How pydantic reads such a field."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))


class OpenSettings(Settings):
    """A group whose options include the names in a registry: each holds the settings registered there.

    A bare number or word for one of them sets the field that its class declares as `shorthand`.
    """

    registry: ClassVar[Registry[Any]]
    entries: dict[str, Any] = Field(default={}, repr=False, exclude=True)
    """The settings of every registered name."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(given, Mapping):
            return given
        if "entries" in given:
            raise _line_error("extra_forbidden", "Extra inputs are not permitted", ("entries",), given["entries"])
        own = {name: value for name, value in given.items() if name not in cls.registry}
        entries, mistakes = {}, []
        for name, schema in cls.registry.items():
            try:
                entries[name] = schema.model_validate(given.get(name, {}))
            except ValidationError as error:
                mistakes += _within(name, error)
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return {**own, "entries": entries}

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "entries"}
        return own | {name: entry.as_plain() for name, entry in self.written().items()}

    def written(self) -> Mapping[str, Settings]:
        """The entries that a file of these settings needs; all, unless a subclass overrides it."""
        return self.entries


def _choices(registry: Registry[Any]) -> str:
    return f"Input should be {', '.join(map(repr, registry))} or what a module named in plugins registers"


def _within(name: str, error: ValidationError) -> list[InitErrorDetails]:
    """The mistakes in a group of settings, as mistakes of the settings that contain it."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(found["type"], "{text}", {"text": found["msg"], **found.get("ctx", {})}),
            loc=(name, *found["loc"]),
            input=found["input"],
        )
        for found in error.errors()
    ]


def _line_error(kind: Any, text: str, place: tuple[str, ...], given: object) -> ValidationError:  # noqa: ANN401
    details = InitErrorDetails(type=PydanticCustomError(kind, "{text}", {"text": text}), loc=place, input=given)
    return ValidationError.from_exception_data("settings", [details])


def _origin(entry: object) -> str:
    """The module and name where something was defined."""
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', type(entry).__qualname__)}"
