"""JSON lines of suites' data: each line is checked, and errors name file and line."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palenka.ground.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row of a data file, whose fields are read with a type.

    Attributes:
        file: that it was read from.
        line: in the file, counted from 1.
        fields: by name; a suite may ignore some.
    """

    file: Path
    line: int
    fields: dict[str, object]

    @property
    def place(self) -> str:
        """Where it stands, as ``file:line``."""
        return f"{self.file}:{self.line}"

    def text(self, name: str) -> str:
        """A text that a tokenizer can read, with more than white space.

        Raises:
            UserError: if the field is missing or not such a text.
        """
        return self._as_text(name, self._value(name))

    def texts_of(self, names: tuple[str, ...]) -> list[str]:
        """The texts of several fields.

        Raises:
            UserError: if one of them is missing or not such a text.
        """
        for name in names:
            if name not in self.fields:
                raise UserError(f"{self.place} has no field {name}; each line needs {', '.join(names)}")
        return [self.text(name) for name in names]

    def texts(self, name: str, at_least: int = 1) -> tuple[str, ...]:
        """A list of such texts.

        Raises:
            UserError: if the field is missing, or not a list of at least `at_least` texts.
        """
        value = self._value(name)
        if not isinstance(value, list) or len(value) < at_least:
            raise UserError(f"{self.place}: {name} is {value!r}, but it should be a list of at least {at_least} texts")
        return tuple(self._as_text(name, text) for text in value)

    def number(self, name: str) -> float:
        """A finite number.

        Raises:
            UserError: if the field is missing or not such a number.
        """
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.place}: {name} is {value!r}, but it should be a number")
        return value

    def whole_number(self, name: str, below: int | None = None) -> int:
        """A whole number that is not negative.

        Raises:
            UserError: if the field is missing, not such a number, or not below the bound.
        """
        value = self.number(name)
        if value != int(value) or value < 0 or (below is not None and value >= below):
            rule = "a whole number from 0 on" if below is None else f"a whole number from 0 to {below - 1}"
            raise UserError(f"{self.place}: {name} is {value!r}, but it should be {rule}")
        return int(value)

    def _value(self, name: str) -> object:
        if name not in self.fields:
            raise UserError(f"{self.place} has no field {name}; get that file again, or give the folder of the suite")
        return self.fields[name]

    def _as_text(self, name: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.place}: {name} is {value!r}, but it should be a text that is not empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{self.place}: {name} is {value!r}, which is not Unicode text; fix that line") from None
        return value


def read_json_rows(file: Path) -> Iterator[Row]:
    """Every line of a file, as editors of any system save it: a byte-order mark and empty last lines are ignored.

    Only a line feed ends a line, as in the JSON Lines format.

    Raises:
        UserError: for an empty file, or a line that is not a JSON object.
    """
    number, empty = 0, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                empty = empty or number
                continue
            if empty:
                raise UserError(f"{file}:{empty} is empty; fix or remove that line")
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}:{number} is not JSON ({error}); fix or remove that line") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number} is not a JSON object; fix or remove that line")
            yield Row(file, number, row)
    if number == 0 or empty == 1:
        raise UserError(f"{file} is empty, but every file should hold at least one line; remove it or get it again")


def read_lines(file: Path, names: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The texts in some fields of every line, with its number.

    Raises:
        UserError: for an empty file, a line that is not a JSON object, or a field that is missing or not a text.
    """
    for row in read_json_rows(file):
        yield row.line, row.texts_of(names)
