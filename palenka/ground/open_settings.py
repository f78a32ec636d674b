"""Groups of settings that a registry fills: what is registered is an option like the group's own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from palenka.ground.registry import Registry
from palenka.ground.settings import Settings


class OpenSettings(Settings):
    """A group whose options are also the names in a registry: each holds the settings that are registered there.

    A bare number or word for one of them sets the field that its class names as `shorthand`.
    """

    registry: ClassVar[Registry[Any]]  # type: ignore[misc]
    entries: dict[str, Any] = Field(default={}, repr=False, exclude=True)
    """The settings of every registered name."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(given, Mapping):
            return given
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
        return own | {name: entry.as_plain() for name, entry in self.entries.items()}


def _within(name: str, error: ValidationError) -> list[InitErrorDetails]:
    """The mistakes in one group of settings as those of the settings that hold it under a name."""
    return [
        InitErrorDetails(
            type=PydanticCustomError(found["type"], "{text}", {"text": found["msg"], **found.get("ctx", {})}),
            loc=(name, *found["loc"]),
            input=found["input"],
        )
        for found in error.errors()
    ]
