"""Rows of suites' data: JSON lines, CSV with a header, or Parquet."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from palenka.eval.json_lines import Row, read_json_rows
from palenka.ground.errors import UserError


def read_rows(file: Path) -> Iterator[Row]:
    """All rows of a file; in CSV every field is text.

    Raises:
        UserError: if it cannot be read, or has no rows.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {".csv": _read_csv, ".parquet": _read_parquet}
    rows = readers.get(file.suffix.lower(), read_json_rows)(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file} is empty, but every file should hold at least one row; remove it or get it again")
    yield first
    yield from rows


def _read_csv(file: Path) -> Iterator[Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            for fields in reader:
                if None in fields or None in fields.values():
                    raise UserError(f"{file}:{reader.line_num} has another number of fields than the line of names")
                yield Row(file, reader.line_num, dict(fields))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no CSV in UTF-8 ({error}); get it again") from None


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is no Parquet file ({str(error).splitlines()[0]}); get it again") from None
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield Row(file, number, fields)
