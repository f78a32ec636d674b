"""A model on everything that a BabyLM download has data for: figures, a table, and predictions as the pipeline's own.

`palenka eval RUN --babylm evaluation_data --out FILE.json`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palenka.eval.measure import Measurement, measure
from palenka.eval.model import EvaluatedModel
from palenka.eval.results import Results, read_items, writing
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.eval.tables import export, write_table
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers, write_whole
from palenka.ground.records import read_record, write_record

if TYPE_CHECKING:
    import pyarrow as pa

REVISION = "main"
"""What the pipeline calls a model's only, or last, revision."""
_WHOSE = "model.json"
"""Beside predictions: the weights of the model that they are of."""


def folders_below(download: Path, fast: bool = False) -> dict[str, Path]:
    """The folder of every suite that a download has files for: in it, or in a folder of it such as full_eval.

    Args:
        download: the evaluation data, unpacked.
        fast: the small parts that revisions are measured on, of the suites that have one.

    Raises:
        UserError: if there is none.
    """
    if not download.is_dir():
        raise UserError(f"babylm is {download}, which is not a folder; give the one that the download was unpacked to")
    places = [download, *sorted(path for path in download.iterdir() if path.is_dir())]
    folders = {}
    wanted = {name: suite.fast_folders if fast else suite.folders for name, suite in SUITES.items()}
    for name, suite in SUITES.items():
        candidates = (place / folder for place in places for folder in wanted[name])
        found = next((path for path in candidates if path.is_dir() and suite.found_in(path)), None)
        if found is not None:
            folders[name] = found
    if not folders:
        known = ", ".join(sorted({folder for names in wanted.values() for folder in names}))
        raise UserError(f"{download} has no folder of a suite that is known; these are {known}")
    return folders


def measure_submission(model: Path, download: Path, conditions: Conditions, out: Path) -> Results:
    """Measure a model on all that a download has and that is short enough for it, and write what a submission needs.

    FILE.json and FILE.parquet as for any suites, FILE.md with the published rows, and beside them the predictions in
    results/MODEL/main, as the pipeline's collating script reads them.

    Args:
        model: its directory.
        download: the evaluation data, unpacked.
        conditions: the protocol of 2025 and 2026 takes the place of another.
        out: FILE.json. What it has already is not computed again.

    Raises:
        UserError: for data or a model that cannot be measured, or a file that cannot be written.
    """
    folders = folders_below(download)
    conditions = conditions.model_copy(update={"protocol": "babylm-2025"})
    opened = EvaluatedModel(model)
    directory = own_predictions_folder(out, opened.name, opened.identity["weights"])
    results = measure(Measurement(model, folders, conditions, as_far_as_fits=True), out)
    folders = {name: folder for name, folder in folders.items() if name in results.by_suite}
    with writing(out.with_suffix(".md")):
        data = read_data(folders, conditions)
        write_predictions(folders, data, read_items(out), directory)
    write_table(out.with_suffix(".md"), export([str(out)], "markdown", published=True))
    return results


def read_data(folders: Mapping[str, Path], conditions: Conditions) -> dict[str, Any]:
    """The data of each suite, by suite, for `write_predictions`.

    Raises:
        UserError: naming what is wrong with them, and where.
    """
    return {name: SUITES[name].read(folder, conditions) for name, folder in folders.items()}


def own_predictions_folder(out: Path, model: str, weights: str, revision: str = REVISION) -> Path:
    """The folder of a model's predictions beside a file of results, as the pipeline's collating script reads them.

    A record in it keeps whose they are; what killed writers left there is removed.

    Raises:
        UserError: if it has predictions of another model of that name, or of another program.
    """
    directory = out.parent / "results" / model / revision
    record, whose = directory / _WHOSE, {"weights": weights}
    found = read_record(record) if record.is_file() else {}
    if directory.exists() and any(directory.iterdir()) and found != whose:
        raise UserError(f"{directory} has predictions of another model; move them, or choose another folder for out")
    remove_leftovers(directory)
    write_record(record, whose)
    return directory


def write_predictions(
    folders: Mapping[str, Path], data: Mapping[str, Any], items: Mapping[str, "pa.Table"], directory: Path
) -> None:
    """Write what a model chose, as the official pipeline does.

    Args:
        folders: of the suites' data, by suite.
        data: of these, as `read_data` has them.
        items: of each suite.
        directory: of `own_predictions_folder`.
    """
    for name, folder in folders.items():
        for path, groups in SUITES[name].predictions(folder, data[name], items[name]).items():
            write_whole(directory / path, json.dumps(groups))
