"""A model on everything that a BabyLM download has data for: figures, a table, and predictions as the pipeline's own.

`palenka eval RUN --babylm evaluation_data --out FILE.json`
"""

import json
from pathlib import Path

from palenka.eval.measure import Measurement, measure
from palenka.eval.results import Results, read_items, writing
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.eval.tables import export, write_table
from palenka.ground.errors import UserError
from palenka.ground.files import write_whole

REVISION = "main"
"""What the pipeline calls a model's only, or last, revision."""


def folders_below(download: Path) -> dict[str, Path]:
    """The folder of every suite that a download has files for: in it, or in a folder of it such as full_eval.

    Raises:
        UserError: if there is none.
    """
    if not download.is_dir():
        raise UserError(f"babylm is {download}, which is not a folder; give the one that the download was unpacked to")
    places = [download, *sorted(path for path in download.iterdir() if path.is_dir())]
    folders = {}
    for name, suite in SUITES.items():
        candidates = (place / folder for place in places for folder in suite.folders)
        found = next((path for path in candidates if path.is_dir() and suite.found_in(path)), None)
        if found is not None:
            folders[name] = found
    if not folders:
        known = ", ".join(sorted({folder for suite in SUITES.values() for folder in suite.folders}))
        raise UserError(f"{download} has no folder of a suite that is known; these are {known}")
    return folders


def measure_submission(model: Path, download: Path, conditions: Conditions, out: Path) -> Results:
    """Measure a model on all that a download has, and write what a submission needs.

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
    results = measure(Measurement(model, folders, conditions), out)
    items = read_items(out)
    with writing(out.with_suffix(".md")):
        for name, folder in folders.items():
            suite = SUITES[name]
            files = suite.predictions(folder, suite.read(folder, conditions), items[name])
            for path, groups in files.items():
                file = out.parent / "results" / results.name / REVISION / path
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, json.dumps(groups))
    write_table(out.with_suffix(".md"), export([str(out)], "markdown", published=True))
    return results
