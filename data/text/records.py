"""Records: JSON lines and Parquet, local or on the Hugging Face Hub, read by the `datasets` library as a stream.

The library is an extra, `palenka[datasets]`, imported when the first record is read. It runs no code from datasets.
"""

import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from glob import escape
from pathlib import Path
from typing import Any

from palenka.data.text.babylm import cleaned_document
from palenka.data.text.cleaners import GENERAL
from palenka.data.text.lines import parts_of
from palenka.data.text.readers import READERS, Advance, Piece, Reader, ReadingOptions
from palenka.ground.errors import UserError, reason_of

_BATCH_RECORDS = 256
_BLOCK_BYTES = 1 << 20
_FORMATS = {"parquet": "parquet", "jsonl": "json", "ndjson": "json"}


@READERS.register("records")
class Records(Reader):
    """Each record is a document, the text of one of its fields."""

    suffixes = (
        *(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in ("", ".gz", ".zst")),
        ".parquet",
    )

    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The documents, a record at a time."""
        require_datasets(str(path))
        _, *ends = path.name.split(".")
        kind = next(_FORMATS[end] for end in reversed(ends) if end in _FORMATS)
        yield from _documents(_checked(path, kind, self.options.text_field), self.options, path.stat().st_size, advance)


def require_datasets(what: str) -> Any:  # noqa: ANN401 - a module of an extra
    """The library that reads records.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{what} is read by the library datasets, which is not installed here; pip install 'palenka[datasets]'"
        ) from None
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    return datasets


def texts_of(
    name: str,
    stream: Any,  # noqa: ANN401 - a stream of `datasets`
    text_field: str,
    require_field: Callable[[int], object] = lambda _: None,
) -> Iterator[str]:
    """The text of each record of a stream; empty for a record whose text is null.

    Args:
        name: of the stream.
        stream: of records.
        text_field: the field that holds the text.
        require_field: called with the number, from 1 on, of each record whose text is null: the stream also has null
            where a record lacks the field.

    Raises:
        UserError: if the first record has no such field, or a field does not hold text.
    """
    number = 0
    for batch in stream.iter(batch_size=_BATCH_RECORDS):
        if text_field not in batch:
            raise UserError(
                f"{name} has no field {text_field!r}; name one that it has with text_field: {', '.join(batch)}"
            )
        for text in batch[text_field]:
            number += 1
            if not isinstance(text, str | None):
                said = json.dumps(text, default=str)[:60]
                raise UserError(
                    f"{name}, record {number}: the field {text_field!r} is {said}, no text; name a field of text with "
                    "text_field"
                )
            if text is None:
                require_field(number)
            yield text or ""


def documents_of(texts: Iterable[str], options: ReadingOptions) -> Iterator[Piece]:
    """Each text as a document, cleaned if requested."""
    for text in texts:
        if options.cleaner == "babylm":
            pieces = cleaned_document(parts_of([text]), GENERAL)
            yield next(pieces, Piece("", True))
            yield from pieces
        else:
            yield Piece(text, True)


def _documents(texts: Iterable[str], options: ReadingOptions, size: int, advance: Advance) -> Iterator[Piece]:
    """The documents of a file, with estimated progress: bytes count as read in proportion to the text so far."""
    left = size

    def counted() -> Iterator[str]:
        nonlocal left
        for text in texts:
            read = min(left, len(text))
            left -= read
            advance(read)
            yield text

    yield from documents_of(counted(), options)
    advance(left)


def _num_rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _checked(path: Path, kind: str, text_field: str) -> Iterator[str]:
    """The texts of a file; errors name the line."""
    datasets = require_datasets(str(path))
    try:
        if path.suffix == ".zst":
            _require_whole_frames(path)
        if kind == "parquet" and not _num_rows(path):  # which the library cannot split into batches
            return
        stream = datasets.load_dataset(kind, data_files=escape(str(path.absolute())), split="train", streaming=True)
        require = _field_required(path, text_field) if kind == "json" else lambda _: None
        yield from texts_of(str(path), stream, text_field, require)
    except UserError:
        raise
    except StopIteration:  # raised by the library for a file without records
        return
    except Exception as error:  # any error of the formats' libraries
        fault = _first_fault(path) if kind == "json" else None
        reason = fault or f"it cannot be read ({reason_of(error)})"
        raise UserError(f"{path}{reason if fault else ': ' + reason}; fix it there, or leave the file out") from error


def _field_required(path: Path, text_field: str) -> Callable[[int], None]:
    """Refuses the record of a number, from 1 on, if it has no such field; numbers rise, and the file is read once."""
    records = enumerate(_lines(path), start=1)

    def require(number: int) -> None:
        line, text = next((found for count, found in records if count == number), (0, b""))
        try:
            record = json.loads(text)
        except ValueError:  # one list over many lines, whose records are not its lines
            return
        if isinstance(record, dict) and text_field not in record:
            others = ", ".join(record) or "none at all"
            raise UserError(
                f"{path}, line {line}: the record has no field {text_field!r}, but {others}; add it, as an empty text "
                "or null where there is none, or name another with text_field"
            )

    return require


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, blank ones left out: those are no records."""
    with _opened(path) as file:
        for number in itertools.count(1):
            if not (line := file.readline()):
                return
            if line.strip():
                yield number, line


def _require_whole_frames(path: Path) -> None:
    """Refuse a zstd file that ends early: it would be read as if it ended there."""
    import zstandard

    frame = None
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                frame.decompress(block)
                block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("the compressed text ends early")


def _first_fault(path: Path) -> str | None:
    """The first line that is not a JSON object, as the end of a sentence that begins with the file's name."""
    number = 0
    try:
        with _opened(path) as file:
            for number in itertools.count(1):
                line = file.readline()
                if not line:
                    return None
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f", line {number}: it is no JSON object"
    except Exception as error:  # as above
        return f", line {number}: it is no JSON object ({' '.join(str(error).split())[:100]})"
    return None


def _opened(path: Path) -> Any:  # noqa: ANN401 - files of three libraries, opened for bytes
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.open(path))
    return path.open("rb")
