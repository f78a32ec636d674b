"""Results on disk: FILE.json with a model's figures on some suites, FILE.parquet with every item behind them.

The JSON is written last. It has the checksum of the parquet file and one of itself, so the two are valid only together,
and an edited figure is refused.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from palenka.eval.suite import Measured
from palenka.ground.errors import UserError, system_error
from palenka.ground.files import remove_leftovers_of, sha256_of_file, write_whole
from palenka.ground.lock import sole_writer
from palenka.ground.records import read_with_seal, write_sealed
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa


_OURS = b"palenka"
"""The key in a parquet file's metadata that marks our items."""


Form = TypeVar("Form", bound=Settings)


class EditedResultsError(UserError):
    """Results that were changed since they were written."""


class ModelIdentity(Settings):
    """The identity of a measured model: hashes of its tensors and of its tokenizer, and its configuration."""

    weights: str
    config: dict[str, Any]
    tokenizer: str | None = None


class Request(Settings):
    """Everything but the model that decides a result: equal requests have the same items."""

    suite: str
    title: str
    """Name of its main figure in tables."""
    version: int
    """Version of the suite."""
    data: str
    """Fingerprint of the data."""
    conditions: dict[str, str | int]
    """The conditions that concern the suite."""


class SuiteResult(Measured, Request):
    """The result of a model on a suite."""

    @property
    def request(self) -> Request:
        """The request alone."""
        return Request(**{name: getattr(self, name) for name in Request.model_fields})

    @property
    def heading(self) -> str:
        """Heading of a column with the main figure."""
        return f"{self.title}, {self.main.unit}" if self.main.unit else self.title


class Results(Settings):
    """The results of a model on some suites; shared fields are stored once."""

    name: str
    """Of the model."""
    model: ModelIdentity
    parameters: int
    items: str = ""
    """Checksum of the parquet file."""
    suites: tuple[SuiteResult, ...]

    @property
    def by_suite(self) -> dict[str, SuiteResult]:
        """The suites by name."""
        return {result.suite: result for result in self.suites}


def require_figures_file(out: Path, *others: str) -> None:
    """Refuse a name for a file of figures that cannot be one, or is that of a file beside it, before hours are spent.

    Args:
        out: the name.
        others: suffixes of further files beside it, such as ``".md"``.

    Raises:
        UserError: if it is no name of a file, or has such a suffix.
    """
    if not out.name or out.is_dir() or out.suffix in (".parquet", *others):
        raise UserError(f"out is {out}, but the figures go to a JSON file and the items beside it; give FILE.json")


def items_file(out: Path) -> Path:
    """The file of the items behind the figures in `out`."""
    return out.with_suffix(".parquet")


def write_results(out: Path, results: Results, items: Sequence["pa.Table"]) -> None:
    """Write figures and the items of each suite; columns that a suite lacks are empty.

    Call it only within `writing`.

    Args:
        out: the JSON file; the items go beside it.
        results: of a model.
        items: of each suite, in the order of the results.

    Raises:
        UserError: if anything but such files is there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_own_items(out)
    named = [
        table.add_column(0, "suite", pa.array([result.suite] * len(table), pa.string()))
        for result, table in zip(results.suites, items, strict=True)
    ]
    parquet = pa.BufferOutputStream()
    joined = pa.concat_tables(named, promote_options="permissive").replace_schema_metadata({_OURS: b"items"})
    pq.write_table(joined, parquet, compression="zstd")
    content = parquet.getvalue().to_pybytes()
    write_whole(items_file(out), content)
    checksum = hashlib.sha256(content).hexdigest()
    write_sealed(out, results.model_copy(update={"items": checksum}).as_plain())


def require_own_items(out: Path) -> None:
    """Refuse to write items over another parquet file.

    Raises:
        UserError: if there is one.
    """
    path = items_file(out)
    if not out.exists() and path.exists() and not are_items(path):
        raise UserError(f"{path}, where the items would go, is not of `palenka eval`; choose another out than {out}")


def are_items(path: Path) -> bool:
    """Whether a parquet file holds items of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _OURS in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Become the sole writer of a file and of those beside it; turns write errors into one sentence."""
    try:
        with sole_writer(out, wait=True):
            remove_leftovers_of(items_file(out))
            yield
    except OSError as error:
        raise system_error(f"cannot write {out}", error) from error


def read_results(path: Path) -> Results:
    """The results in a file.

    Raises:
        UserError: if the file does not exist, has no results, or was changed.
    """
    return read_written(path, Results, "results")


def read_written(path: Path, form: type[Form], what: str) -> Form:
    """The contents of a file of `palenka eval`.

    Args:
        path: of the file.
        form: class of the contents.
        what: name of the contents in errors.

    Raises:
        UserError: if the file does not exist, or holds something else.
        EditedResultsError: if it was changed.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the FILE.json in it, or elsewhere, that `palenka eval` wrote")
    try:
        record, is_whole = read_with_seal(path)
        found = form.model_validate(record)
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}; make them with `palenka eval`") from None
    except (UserError, ValidationError):
        raise UserError(f"{path} holds no {what} of `palenka eval`; choose another file") from None
    if not is_whole:
        raise EditedResultsError(
            f"{path} was changed since `palenka eval` wrote it: it differs from its checksum; delete it and measure "
            "again"
        )
    return found


def has_items(out: Path) -> bool:
    """Whether the items behind the figures in `out` lie beside it, unchanged."""
    path = items_file(out)
    return path.is_file() and read_results(out).items == sha256_of_file(path)


def read_items(out: Path) -> dict[str, "pa.Table"]:
    """The items behind the figures in `out`, by suite, each with its own columns.

    Raises:
        UserError: if they do not lie beside it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    results = read_results(out)
    # The same open file is checked and read, whatever is written there meanwhile.
    content = items_file(out).read_bytes() if items_file(out).is_file() else b""
    if hashlib.sha256(content).hexdigest() != results.items:
        raise UserError(
            f"{items_file(out)} is missing or not what {out.name} was made with; measure that model again with the "
            "command that wrote it"
        )
    whole = pq.read_table(pa.BufferReader(content))
    items = {}
    for result in results.suites:
        table = whole.filter(pc.equal(whole["suite"], result.suite)).drop_columns("suite")
        items[result.suite] = table.select([each for each in table.column_names if table[each].null_count < len(table)])
    return items


def earlier_results(out: Path, suites: Sequence[str], model: Mapping[str, Any]) -> dict[str, SuiteResult]:
    """Earlier results of the same model in a file with unchanged items, by suite.

    Raises:
        UserError: if the file is something else, or has other suites of another model, which would be lost.
    """
    if not out.exists():
        return {}
    try:
        results = read_results(out)
    except EditedResultsError:
        raise
    except UserError:
        raise UserError(f"{out} exists and holds no results of `palenka eval`; choose another out") from None
    if results.model.as_plain() == model and has_items(out):
        return results.by_suite
    if others := [name for name in results.by_suite if name not in suites]:
        raise UserError(
            f"{out} holds results of {', '.join(others)} too, of another model or without their items; choose another "
            "out, or measure it again with the others"
        )
    return {}
