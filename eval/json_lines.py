"""JSON lines of suites' data: each line checked, and named by file and line if it is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

from palenka.ground.errors import UserError


def read_lines(file: Path, names: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The texts in some fields of every line, with its number; only a line feed ends a line, as JSON lines have it.

    Raises:
        UserError: for an empty file, a line that is no JSON object, or a field that is missing or no text.
    """
    number = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                what = "empty" if not line.strip() else f"not JSON ({error})"
                raise UserError(f"{file}:{number} is {what}; fix or remove that line") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number} is not a JSON object; fix or remove that line")
            yield number, _require_texts(row, names, f"{file}:{number}")
    if number == 0:
        raise UserError(f"{file} is empty, but every file should hold at least one line; remove it or get it again")


def _require_texts(row: dict[str, object], names: tuple[str, ...], place: str) -> list[str]:
    """The values of some fields, each of them text that a tokenizer can read."""
    texts = []
    for name in names:
        if name not in row:
            raise UserError(f"{place} has no field {name}; each line needs {', '.join(names)}")
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{place}: {name} is {value!r}, but it should be a text that is not empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{place}: {name} is {value!r}, which is not Unicode text; fix that line") from None
        texts.append(value)
    return texts
