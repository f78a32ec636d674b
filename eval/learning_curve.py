"""Learning curves: each revision that a run kept, measured on the fast parts of the suites.

`palenka eval RUN --revisions --babylm evaluation_data --out FILE.json`

FILE/REVISION.json has the figures of each, with its items beside it, and FILE.json has the curve.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Column, Table

from palenka.eval.age_of_acquisition import acquisition, children_ages
from palenka.eval.choices import Choice
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import ModelIdentity, Results, read_items, read_written, writing
from palenka.eval.submission import own_predictions_folder, read_data, write_predictions
from palenka.eval.suite import Conditions, Figure
from palenka.ground.errors import UserError
from palenka.ground.files import resolved, write_whole
from palenka.ground.records import write_sealed
from palenka.ground.settings import Settings
from palenka.train_student.revisions import Revisions, words_of
from palenka.train_student.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

_AOA = "aoa"
"""The suite of words whose ages of acquisition are compared."""


class CurveFigure(Settings):
    """A suite's main figure of one revision."""

    title: str
    conditions: dict[str, str | int]
    figure: Figure


class CurvePoint(Settings):
    """A revision: its step and words, and its figures."""

    revision: str
    step: int
    words: int
    """Words that the run had read."""
    weights: str
    """Hash of the revision's tensors."""
    suites: dict[str, CurveFigure]


class LearningCurve(Settings):
    """The figures of the revisions of a run, in the order of its words."""

    kind: Literal["revisions"] = "revisions"
    name: str
    """Of the run."""
    model: ModelIdentity
    """Of the run's last model."""
    revisions: tuple[CurvePoint, ...]
    age_of_acquisition: Figure | None = None
    """Correlation of the ages at which the run and children learn words, if measured; over `n` words."""


def measure_revisions(
    run: Path, folders: Mapping[str, Path], conditions: Conditions, out: Path, predictions: bool = False
) -> LearningCurve:
    """Measure every revision of a run; figures already on disk are not computed again.

    Args:
        run: its directory.
        folders: of the suites' data, by suite.
        conditions: that they are measured under.
        out: FILE.json.
        predictions: also write the official pipeline's files, to results/RUN/REVISION beside FILE.json; suites with
            texts too long for the model are then left out, as for a whole download.

    Raises:
        UserError: if the run kept no revision or is not finished, the files cannot have these names, or as in
            `measure`.
    """
    from palenka.eval.model import EvaluatedModel

    folder = _folder_beside(out, run)
    revisions = Revisions(run)
    kept = revisions.require()
    if Run(run).result() is None:
        raise UserError(f"{run} is not finished, and its curve would end before its end; train it to its end first")
    if out.exists():
        read_curve(out)
    ages = children_ages(folders[_AOA]) if _AOA in folders else {}
    data = read_data(folders, conditions) if predictions else {}
    whole = EvaluatedModel(run)
    points: list[CurvePoint] = []
    surprisals: list[pa.Table] = []
    for revision in kept:
        place = folder / f"{revision.name}.json"
        asked = Measurement(revisions.directory / revision.name, folders, conditions, as_far_as_fits=predictions)
        results = measure(asked, place)
        folders = {name: folder for name, folder in folders.items() if name in results.by_suite}
        points.append(
            CurvePoint(
                revision=revision.name,
                step=revision.step,
                words=revision.words,
                weights=results.model.weights,
                suites={name: _main(results, name) for name in folders},
            )
        )
        items = read_items(place)
        if predictions:
            directory = own_predictions_folder(out, whole.name, results.model.weights, revision.name)
            write_predictions(folders, data, items, directory)
        surprisals += [items[_AOA]] if _AOA in folders else []
    curve = LearningCurve(name=whole.name, model=ModelIdentity(**whole.identity), revisions=tuple(points))
    if surprisals:
        score = acquisition([words_of(revision.name) for revision in kept], surprisals, ages)
        curve = curve.model_copy(update={"age_of_acquisition": score})
        if predictions:
            directory = own_predictions_folder(out, whole.name, curve.model.weights)
            _write_surprisals(directory, curve, data[_AOA], surprisals)
    with writing(out):
        write_sealed(out, curve.as_plain())
    return curve


def read_curve(path: Path) -> LearningCurve:
    """The learning curve in a file.

    Raises:
        UserError: if there is none, or it was changed.
    """
    return read_written(path, LearningCurve, "learning curve")


def _folder_beside(out: Path, run: Path) -> Path:
    """The folder for the results of each revision.

    Raises:
        UserError: if these, or the curve, would overwrite something else.
    """
    if out.suffix in ("", ".parquet"):
        raise UserError(
            f"out is {out}, but the curve goes to a JSON file, and each revision's results to a folder of its name "
            "without the suffix; give FILE.json"
        )
    folder = out.with_suffix("")
    if resolved(folder) in (resolved(run), resolved(Revisions(run).directory)):
        raise UserError(
            f"out is {out}, so each revision's results would go to {folder}, where the run keeps its models; choose "
            "another out"
        )
    return folder


def _main(results: Results, suite: str) -> CurveFigure:
    found = results.by_suite[suite]
    return CurveFigure(title=found.title, conditions=found.conditions, figure=found.main.without_tasks())


def _write_surprisals(
    directory: Path, curve: LearningCurve, data: Sequence[Choice], surprisals: Sequence["pa.Table"]
) -> None:
    """Write the words' surprisals of all revisions, as the official pipeline does."""
    rows = [
        {
            "step": point.revision,
            "word_count": words_of(point.revision),
            "target_word": choice.task,
            "context_id": choice.index,
            "context": (choice.options[0].context or "").rstrip(),
            "surprisal": -score,
        }
        for point, items in zip(curve.revisions, surprisals, strict=True)
        for choice, score in zip(data, items.column("score_0").to_pylist(), strict=True)
    ]
    count = len(curve.revisions)
    about = {"model_name": curve.name, "use_bos_only": False, "total_steps": count, "completed_steps": count}
    file = directory / "zero_shot" / "causal" / "AoA_word" / "surprisal.json"
    with writing(directory):
        write_whole(file, json.dumps({"metadata": about, "results": rows}))


def print_curve(curve: LearningCurve, console: Console) -> None:
    """Print a row for each revision, and a column for each suite's main figure."""
    suites = curve.revisions[0].suites.values()
    headings = [Column(each.title, justify="right") for each in suites]
    table = Table("revision", Column("words", justify="right"), *headings, title=f"Revisions of {curve.name}")
    for point in curve.revisions:
        table.add_row(point.revision, f"{point.words:,}", *(str(each.figure) for each in point.suites.values()))
    console.print(table)
    if curve.age_of_acquisition is not None:
        console.print(f"age of acquisition: correlation {curve.age_of_acquisition}, {curve.age_of_acquisition.n} words")
