"""Measuring one model on suites: figures of an earlier call are kept, the rest is measured suite by suite."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from palenka.eval.model import EvaluatedModel
from palenka.eval.protocols import TooLongError
from palenka.eval.results import (
    Request,
    Results,
    SuiteResult,
    earlier_results,
    read_items,
    read_results,
    require_figures_file,
    require_own_items,
    write_results,
    writing,
)
from palenka.eval.suite import Conditions, Suite
from palenka.eval.suites import SUITES, folders_of
from palenka.ground.errors import UserError
from palenka.ground.mistakes import sentence_of
from palenka.ground.progress import info
from palenka.ground.settings import path_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Measurement:
    """A request to measure a model.

    Attributes:
        model: its directory.
        folders: the data of each suite, by name.
        conditions: that it is measured under.
        as_far_as_fits: leave out suites with texts too long for the model, with a message.
    """

    model: Path
    folders: Mapping[str, Path]
    conditions: Conditions = field(default_factory=Conditions)
    as_far_as_fits: bool = False


def evaluate(
    model: str | Path,
    data: str | Path | Mapping[str, str | Path],
    suites: Sequence[str] = ("held_out",),
    out: str | Path | None = None,
    **conditions: object,
) -> Results:
    """Measure a model from Python, as `palenka eval` does.

    Args:
        model: its directory, or its id on the Hugging Face Hub.
        data: folder with the suite's files, or the prepared corpus for held_out; with several suites one with a
            subfolder for each, or a folder by suite.
        suites: what to measure.
        out: JSON file for the figures, with every item beside it, as `palenka eval compare` reads them; default: not
            written.
        conditions: fields of `Conditions`, such as ``split`` and ``length``.

    Raises:
        UserError: for data or a model that cannot be measured, an unknown condition, or a file that cannot be written.
    """
    where = {name: path_of(each) for name, each in data.items()} if isinstance(data, Mapping) else path_of(data)
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    for name in names:
        SUITES[name]  # the error lists those that exist
    try:
        under = Conditions.model_validate(conditions)
    except ValidationError as error:
        raise UserError(sentence_of(error.errors(), Conditions)) from None
    asked = Measurement(path_of(model), folders_of(names, where), under)
    with tempfile.TemporaryDirectory() as folder:
        return measure(asked, path_of(out) if out is not None else Path(folder) / "results.json")


def measure(asked: Measurement, out: Path) -> Results:
    """Measure a model, and write FILE.json and FILE.parquet after every suite; returns the results of these suites.

    Figures that the file already has for the same weights, tokenizer, data and conditions are not computed again; other
    suites of the same model stay in it.

    Raises:
        UserError: for data or a model that cannot be measured, or a file that cannot be written.
    """
    require_figures_file(out)
    suites = {name: SUITES[name] for name in asked.folders}
    data = {name: suite.read(asked.folders[name], asked.conditions) for name, suite in suites.items()}
    model = EvaluatedModel(asked.model)
    requests = {
        name: Request(
            suite=name,
            title=suite.title,
            version=suite.version,
            data=suite.fingerprint(asked.folders[name], asked.conditions),
            conditions=suite.relevant(asked.conditions),
        )
        for name, suite in suites.items()
    }

    def missing(kept: Mapping[str, SuiteResult]) -> list[str]:
        return [name for name in requests if name not in kept or kept[name].request != requests[name]]

    require_own_items(out)
    if missing(earlier_results(out, list(requests), model.identity)):
        with writing(out):
            # Once more, since another writer may have measured the same or other suites meanwhile.
            kept = earlier_results(out, list(requests), model.identity)
            items = read_items(out) if kept else {}
            asked_for = missing(kept)
            kept = {name: result for name, result in kept.items() if name not in asked_for}
            for name in asked_for:
                kept_apart = out.with_suffix(f".{name}")
                table = _measured(suites[name], data[name], model, asked, kept_apart)
                if table is None:
                    continue
                items[name] = table
                kept[name] = SuiteResult(**dict(requests[name]), **dict(suites[name].figures(items[name])))
                results = Results(
                    name=model.name, model=model.identity, parameters=model.parameters, suites=tuple(kept.values())
                )
                write_results(out, results, [items[each] for each in kept])
    measured = read_results(out) if out.exists() else None
    found = {name: result for name, result in measured.by_suite.items() if name in requests} if measured else {}
    left_out = missing(found)
    if measured is None or len(left_out) == len(requests):
        raise UserError(f"model {asked.model} has too few positions for every suite; measure one with more")
    return measured.model_copy(update={"suites": tuple(found[name] for name in requests if name not in left_out)})


def _measured(
    suite: Suite[Any],
    data: Any,  # noqa: ANN401 - of any suite
    model: EvaluatedModel,
    asked: Measurement,
    kept_apart: Path,
) -> "pa.Table | None":
    """The items of a suite; None if it is left out."""
    try:
        return suite.measure_resumably(data, model, asked.conditions, kept_apart)
    except TooLongError as error:
        if not asked.as_far_as_fits:
            raise
        info(f"{suite.title} is left out: {error}")
        return None
