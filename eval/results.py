"""Results on disk: FILE.json with the figures of one suite or of several, FILE.parquet with the score of every pair.

FILE.windows.parquet has the loss of every held-out window. The JSON is written last and names the checksum of its
parquet file, so the two are whole together or not at all.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from palenka.eval.accuracy import PairScores
from palenka.ground.errors import UserError
from palenka.ground.files import read_record, remove_leftovers_of, sha256_of_file, write_record, write_whole
from palenka.ground.lock import sole_writer

_OF_ALL_SUITES = ("name", "model", "tokenizer", "parameters", "scores")
"""What is said once of all suites in a file."""
_COLUMNS = ("suite", "task", "index", "score_good", "score_bad")
_WINDOW_LOSSES = "window_losses"
"""The field of a result with the checksum of its windows' losses, and the column that these are in."""


def scores_file(out: Path) -> Path:
    """Where the scores of the pairs stand whose figures are in `out`."""
    return out.with_suffix(".parquet")


def write_results(out: Path, results: Sequence[dict[str, Any]], scores: Sequence[PairScores]) -> list[dict[str, Any]]:
    """Write figures and scores; returns the results as `read_results` will.

    Args:
        out: the JSON file; the scores go beside it.
        results: of one model, one for each suite.
        scores: of those suites that have pairs.

    Raises:
        UserError: if they cannot be written.
    """
    with writing(out):
        if scores:
            about = {result["suite"]: {key: result.get(key) for key in ("protocol", "data")} for result in results}
            _write_scores(scores_file(out), scores, about)
            checksum = {"scores": sha256_of_file(scores_file(out))}
            results = [result | checksum for result in results]
        if len(results) == 1:
            write_record(out, results[0])
        else:
            of_first = {key: results[0][key] for key in _OF_ALL_SUITES if key in results[0]}
            shared = {key: said for key, said in of_first.items() if all(other.get(key) == said for other in results)}
            suites = [{key: value for key, value in result.items() if key not in shared} for result in results]
            write_record(out, shared | {"suites": suites})
    return read_results(out)


def windows_file(out: Path) -> Path:
    """Where the losses of the windows stand whose figures are in `out`."""
    return out.with_suffix(".windows.parquet")


def write_window_losses(out: Path, result: Mapping[str, Any], losses: NDArray[np.float64]) -> dict[str, Any]:
    """Write a held-out result and the loss of every window, [n]; returns the result with their checksum.

    Losses were computed in float32, so that as such nothing of them is lost: 4 bytes a window.

    Raises:
        UserError: if they cannot be written.
    """
    with writing(out):
        _write_whole(windows_file(out), pa.table({_WINDOW_LOSSES: pa.array(losses.astype(np.float32))}))
        whole = {**result, _WINDOW_LOSSES: sha256_of_file(windows_file(out))}
        write_record(out, whole)
    return whole


def has_window_losses(out: Path) -> bool:
    """Whether the losses of the windows whose figures are in `out` lie beside it, as they were written."""
    path = windows_file(out)
    if not (out.is_file() and path.is_file()):
        return False
    checksums = [result.get(_WINDOW_LOSSES) for result in read_results(out) if result["suite"] == "held_out"]
    return checksums == [sha256_of_file(path)]


def read_window_losses(out: Path) -> NDArray[np.float64]:
    """The loss of every window whose figures are in `out`, in nats per token, [n].

    Raises:
        UserError: if they are not beside it.
    """
    if not has_window_losses(out):
        raise UserError(
            f"{windows_file(out)} is missing or not what {out.name} was made with; measure that model again with the "
            "command that wrote it"
        )
    column = pq.read_table(windows_file(out)).column(_WINDOW_LOSSES)
    losses: NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return losses


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """The sole writer of a file and of what lies beside it; tells in one sentence that it cannot be written."""
    try:
        with sole_writer(out, wait=True):
            for path in (out, scores_file(out), windows_file(out)):
                remove_leftovers_of(path)
            yield
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room or choose another out") from error


def read_results(path: Path) -> list[dict[str, Any]]:
    """The results in a file, one for each suite, each with what is said once of all.

    Raises:
        UserError: if the file is not there or holds no results.
    """
    try:
        record = read_record(path)
    except OSError as error:
        raise UserError(f"cannot read results {path}: {error.strerror}; make them with `palenka eval`") from None
    except UserError:
        record = {}
    suites = record.get("suites", [record])
    shared = {key: record[key] for key in _OF_ALL_SUITES if key in record}
    if not isinstance(suites, list) or not all(isinstance(suite, dict) and "suite" in suite for suite in suites):
        raise UserError(f"{path} holds no results of `palenka eval`; give a file that it wrote")
    return [shared | suite for suite in suites]


def earlier_results(out: Path, suites: Collection[str]) -> list[dict[str, Any]]:
    """What an earlier measurement of these suites wrote to a file whose scores are still those; empty without one.

    Raises:
        UserError: if the file is something else, or has other suites too, which are not to be lost.
    """
    if not out.exists():
        return []
    try:
        results = read_results(out)
    except (OSError, UserError):
        results = []
    others = [result["suite"] for result in results if result["suite"] not in suites]
    if len(others) == len(results):
        raise UserError(f"{out} exists and is no result of the suite {' or '.join(suites)}; choose another out")
    if others:
        raise UserError(
            f"{out} holds results of {', '.join(others)} too; choose another out, or measure it again with the others"
        )
    scores = scores_file(out)
    found = sha256_of_file(scores) if scores.is_file() else None
    return [result for result in results if result.get("scores") in (None, found)]


def read_scores(path: Path) -> tuple[dict[str, PairScores], dict[str, Any]]:
    """The scores in a file by suite, and the protocol and data of each suite.

    Raises:
        UserError: if the file is not there or holds no scores.
    """
    try:
        table = pq.read_table(path)
        suites = table.column("suite").to_numpy(zero_copy_only=False).astype(str)
        columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in _COLUMNS[1:]}
        about = json.loads((table.schema.metadata or {}).get(b"palenka", b"{}"))
    except FileNotFoundError:
        raise UserError(f"there are no scores {path}; make them with `palenka eval`") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no scores of `palenka eval` ({reason}); give a FILE.parquet it wrote") from None
    scores = {}
    for suite in dict.fromkeys(suites.tolist()):
        here = suites == suite
        scores[suite] = PairScores(
            suite=suite,
            tasks=columns["task"][here].astype(str),
            indices=columns["index"][here].astype(np.int64),
            good=columns["score_good"][here].astype(np.float64),
            bad=columns["score_bad"][here].astype(np.float64),
        )
    return scores, about


def _write_scores(path: Path, scores: Sequence[PairScores], about: Mapping[str, Any]) -> None:
    columns = {
        "suite": pa.array([suite.suite for suite in scores for _ in suite.tasks], pa.string()),
        "task": pa.array([str(task) for suite in scores for task in suite.tasks], pa.string()),
        "index": pa.array(np.concatenate([suite.indices for suite in scores])),
        "score_good": pa.array(np.concatenate([suite.good for suite in scores])),
        "score_bad": pa.array(np.concatenate([suite.bad for suite in scores])),
    }
    metadata = {"palenka": json.dumps(about, sort_keys=True)}
    _write_whole(path, pa.table(columns, metadata=metadata))


def _write_whole(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue().to_pybytes())
