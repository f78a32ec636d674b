"""A model on all data of a BabyLM download: figures, a table, and predictions in the pipeline's form.

`palenka eval RUN --babylm evaluation_data --out FILE.json`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palenka.eval.measure import Measurement, measure
from palenka.eval.model import EvaluatedModel
from palenka.eval.results import Results, read_items, require_figures_file, writing
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.eval.tables import export, write_table
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers, write_whole
from palenka.ground.records import read_record, write_record

if TYPE_CHECKING:
    import pyarrow as pa

REVISION = "main"
"""The pipeline's name of a model's only or last revision."""
_WHOSE = "model.json"
"""File beside predictions with the hash of their model's weights."""


def folders_below(download: Path, fast: bool = False) -> dict[str, Path]:
    """The folder of every suite with files in a download, or in one of its folders such as full_eval.

    Args:
        download: the evaluation data, unpacked.
        fast: only the small parts for revisions, of the suites that have one.

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
    """Measure a model on all texts of a download that fit it, and write the files of a submission.

    FILE.json and FILE.parquet as for any suites, FILE.md with the published rows, and beside them the predictions in
    results/MODEL/main, as the pipeline's collating script reads them.

    Args:
        model: its directory.
        download: the evaluation data, unpacked.
        conditions: the protocol is replaced by that of 2025 and 2026.
        out: FILE.json. Figures that it already has are not computed again.

    Raises:
        UserError: for data or a model that cannot be measured, or a file that cannot be written.
    """
    require_figures_file(out, ".md")
    folders = folders_below(download)
    conditions = conditions.model_copy(update={"protocol": "babylm-2025"})
    opened = EvaluatedModel(model)
    directory = own_predictions_folder(out, opened.name, opened.identity["weights"])
    results = measure(Measurement(model, folders, conditions, as_far_as_fits=True), out)
    folders = {name: folder for name, folder in folders.items() if name in results.by_suite}
    data = read_data(folders, conditions)
    write_predictions(folders, data, read_items(out), directory)
    write_table(out.with_suffix(".md"), export([str(out)], "markdown", published=True))
    return results


def read_data(folders: Mapping[str, Path], conditions: Conditions) -> dict[str, Any]:
    """The data of each suite, by suite, for `write_predictions`.

    Raises:
        UserError: with the mistake and its place.
    """
    return {name: SUITES[name].read(folder, conditions) for name, folder in folders.items()}


def own_predictions_folder(out: Path, model: str, weights: str, revision: str = REVISION) -> Path:
    """The folder of a model's predictions beside a file of results, in the paths of the pipeline's collating script.

    A record in it names their model; leftovers of killed writers are removed.

    Raises:
        UserError: if it has predictions of another model of that name, or of another program.
    """
    directory = out.parent / "results" / model / revision
    record, whose = directory / _WHOSE, {"weights": weights}
    found = read_record(record) if record.is_file() else {}
    if directory.exists() and any(directory.iterdir()) and found != whose:
        raise UserError(f"{directory} has predictions of another model; move them, or choose another folder for out")
    with writing(directory):
        remove_leftovers(directory)
        write_record(record, whose)
    return directory


def write_predictions(
    folders: Mapping[str, Path], data: Mapping[str, Any], items: Mapping[str, "pa.Table"], directory: Path
) -> None:
    """Write a model's choices, as the official pipeline does.

    Args:
        folders: of the suites' data, by suite.
        data: of these, from `read_data`.
        items: of each suite.
        directory: from `own_predictions_folder`.
    """
    with writing(directory):
        for name, folder in folders.items():
            for path, groups in SUITES[name].predictions(folder, data[name], items[name]).items():
                write_whole(directory / path, json.dumps(groups))
