"""Tables of what a plan, a verification and an inspection found, for a terminal of 80 columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table


def tables(title: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """A table with a line for each figure, and one with a row for each encoding where some are compared."""
    figures = Table(title=title)
    figures.add_column("what", overflow="fold")
    figures.add_column("value", justify="right", overflow="fold")
    for name, value in _lines({name: value for name, value in found.items() if name != "encodings"}):
        figures.add_row(name, value)
    yield figures
    if "encodings" in found:
        yield _encodings(found["encodings"])


def _encodings(compared: Mapping[str, Any]) -> Table:
    """Bytes and gradient errors, a row for each encoding."""
    temperatures = sorted({t for found in compared.values() for t in found["gradient_error"]}, key=float)
    table = Table(title="Encodings: error of the gradient of a student that is uniform, and near the teacher")
    table.add_column("kept", overflow="fold")
    table.add_column("bytes a token", justify="right")
    for temperature in temperatures:
        table.add_column(f"T = {float(temperature):g}", justify="right")
    for name, found in compared.items():
        errors = (found["gradient_error"].get(temperature) for temperature in temperatures)
        cells = (" ".join(f"{error:.3f}" for error in each.values()) if each else "–" for each in errors)
        table.add_row(name, f"{found['bytes_per_token']:.1f}", *cells)
    return table


def _lines(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures by dotted name; identities and configurations of models are left to the JSON."""
    for name, value in found.items():
        if name == "teachers":
            yield f"{prefix}{name}", ", ".join(value)
        elif isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _figure(value)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
