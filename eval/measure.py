"""Measuring one model on suites: what an earlier call has measured is kept, the rest is measured suite by suite."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from palenka.eval.model import EvaluatedModel
from palenka.eval.results import (
    Request,
    Results,
    SuiteResult,
    earlier_results,
    read_items,
    read_results,
    require_own_items,
    write_results,
    writing,
)
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError


@dataclass(frozen=True)
class Measurement:
    """What is to be measured of a model.

    Attributes:
        model: its directory.
        folders: the data of each suite, by name.
        conditions: that it is measured under.
    """

    model: Path
    folders: Mapping[str, Path]
    conditions: Conditions = field(default_factory=Conditions)


def measure(asked: Measurement, out: Path) -> Results:
    """Measure a model, and write FILE.json and FILE.parquet after every suite; returns the results of these suites.

    What the file has already, of the same weights, tokenizer, data and conditions, is not computed again; other suites
    of the same model stay in it.

    Raises:
        UserError: for data or a model that cannot be measured, or a file that cannot be written.
    """
    if out.suffix == ".parquet":
        raise UserError(f"out is {out}, but the figures go to a JSON file and the items beside it; give FILE.json")
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
            # Once more: whoever wrote the file until now may have measured the same, or other suites.
            kept = earlier_results(out, list(requests), model.identity)
            items = read_items(out) if kept else {}
            asked_for = missing(kept)
            kept = {name: result for name, result in kept.items() if name not in asked_for}
            for name in asked_for:
                kept_apart = out.with_suffix(f".{name}")
                items[name] = suites[name].measure_resumably(data[name], model, asked.conditions, kept_apart)
                kept[name] = SuiteResult(**dict(requests[name]), **dict(suites[name].figures(items[name])))
                results = Results(
                    name=model.name, model=model.identity, parameters=model.parameters, suites=tuple(kept.values())
                )
                write_results(out, results, [items[each] for each in kept])
    results = read_results(out)
    return results.model_copy(update={"suites": tuple(results.by_suite[name] for name in requests)})
