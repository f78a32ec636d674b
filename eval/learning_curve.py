"""Learning curves: each revision that a run kept, measured on the fast parts of the suites.

`palenka eval RUN --revisions --babylm evaluation_data --out FILE.json`

FILE/REVISION.json has the figures of each (and its items beside it), FILE.json the curve, for who draws it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from palenka.eval.age_of_acquisition import acquisition
from palenka.eval.choices import Choice
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import EditedResultsError, ModelIdentity, Results, read_items, writing
from palenka.eval.submission import REVISION, write_predictions
from palenka.eval.suite import Conditions, Figure
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError
from palenka.ground.files import write_whole
from palenka.ground.records import checksum_of, read_record, write_sealed
from palenka.ground.settings import Settings, read_as
from palenka.train_student.revisions import Revisions, words_of

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS = "aoa"
"""The suite of words whose ages of acquisition are compared."""
_KIND = "revisions"


class CurveFigure(Settings):
    """A suite's main figure of one revision."""

    title: str
    conditions: dict[str, str | int]
    figure: Figure


class CurvePoint(Settings):
    """A revision: where on its run's way it is, and what was measured of it."""

    revision: str
    step: int
    words: int
    """That the run had read."""
    weights: str
    """Hash of the revision's tensors."""
    suites: dict[str, CurveFigure]


class LearningCurve(Settings):
    """What was measured of the revisions of a run, in the order of its words."""

    kind: str = _KIND
    name: str
    """Of the run."""
    model: ModelIdentity
    """Of the run's last model."""
    revisions: tuple[CurvePoint, ...]
    age_of_acquisition: Figure | None = None
    """How the ages at which the run and children learn words correlate, where these were measured; `n` words."""


def measure_revisions(
    run: Path, folders: Mapping[str, Path], conditions: Conditions, out: Path, predictions: bool = False
) -> LearningCurve:
    """Measure every revision of a run; what is on disk already is not computed again.

    Args:
        run: its directory.
        folders: of the suites' data, by suite.
        conditions: that they are measured under.
        out: FILE.json.
        predictions: also write them as the official pipeline's files, to results/RUN/REVISION beside FILE.json; suites
            with texts that are too long for the model are left out then, as from a whole download.

    Raises:
        UserError: if the run kept no revision, or as `measure` does.
    """
    from palenka.eval.model import EvaluatedModel

    revisions = Revisions(run)
    if not (kept := revisions.read()):
        raise UserError(
            f"{run} has no revisions; they are kept while a run trains, with `palenka train … --revisions babylm`"
        )
    if out.exists():
        read_curve(out)
    whole = EvaluatedModel(run)
    points: list[CurvePoint] = []
    surprisals: list[pa.Table] = []
    for revision in kept:
        place = out.with_suffix("") / f"{revision.name}.json"
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
            write_predictions(folders, conditions, items, out.parent / "results" / whole.name / revision.name)
        surprisals += [items[_WORDS]] if _WORDS in folders else []
    curve = LearningCurve(name=whole.name, model=ModelIdentity(**whole.identity), revisions=tuple(points))
    if surprisals:
        score = acquisition([words_of(revision.name) for revision in kept], surprisals, folders[_WORDS])
        curve = curve.model_copy(update={"age_of_acquisition": score})
        if predictions:
            data = SUITES[_WORDS].read(folders[_WORDS], conditions)
            _write_surprisals(out.parent / "results" / whole.name, curve, data, surprisals)
    with writing(out):
        write_sealed(out, curve.as_plain())
    return curve


def read_curve(path: Path) -> LearningCurve:
    """The learning curve in a file.

    Raises:
        UserError: if there is none, or it is not as it was written.
    """
    try:
        record = read_record(path)
    except OSError as error:
        raise UserError(f"cannot read learning curve {path}: {error.strerror}") from None
    checksum = record.pop("checksum", None)
    if record.get("kind") != _KIND:
        raise UserError(f"{path} holds no learning curve of `palenka eval --revisions`; choose another file")
    if checksum != checksum_of(record):
        raise EditedResultsError(f"{path} was changed since `palenka eval` wrote it; delete it and measure again")
    return read_as(LearningCurve, record, path)


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
    file = directory / REVISION / "zero_shot" / "causal" / "AoA_word" / "surprisal.json"
    file.parent.mkdir(parents=True, exist_ok=True)
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
