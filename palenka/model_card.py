"""The card of an exported model: README.md for the Hugging Face Hub, from its run and results.

Nothing in it is guessed: unknown facts are omitted, or named as unknown.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from palenka import __version__
from palenka.data.corpus import Corpus
from palenka.eval.results import Results, SuiteResult, read_results
from palenka.ground.errors import UserError
from palenka.ground.quantities import conditions, count, duration
from palenka.train_student.run_facts import FinishedRun

Table = Sequence[Sequence[str]]
"""Lines of cells, the heading first."""


def read_own_results(files: Sequence[Path], run: FinishedRun) -> list[SuiteResult]:
    """The results of a run's model in some files.

    Raises:
        UserError: if a file has none, or those of another model.
    """
    found: list[SuiteResult] = []
    for file in files:
        results: Results = read_results(file)
        if results.model.weights != run.weights:
            raise UserError(
                f"{file} has results of {results.name} (weights {results.model.weights[:12]}), but {run.directory} has "
                f"weights {(run.weights or 'none')[:12]}; give results of the model that is exported"
            )
        found += results.suites
    return found


def model_card(run: FinishedRun, results: Sequence[SuiteResult], name: str, license_id: str | None) -> str:
    """The card: metadata between two rules, then text in Markdown, ending in a newline.

    Args:
        run: that the model is of.
        results: of that model.
        name: of the model.
        license_id: of its weights, by its name on the Hub; None if none was chosen.
    """
    metadata = yaml.safe_dump(_metadata(run, results, name, license_id), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {_plain(name)}",
        _summary(run),
        _usage(name),
        "## Training data",
        *_data(run),
        "## Teachers",
        *_teachers(run),
        "## Objective and training",
        *_training(run),
        "## Results",
        *_results(run, results),
        "## Licence",
        _licence(license_id),
    ]
    return f"---\n{metadata}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(run: FinishedRun, results: Sequence[SuiteResult], name: str, license_id: str | None) -> dict[str, Any]:
    """The Hub's metadata, by its names."""
    found: dict[str, Any] = {"license": license_id} if license_id else {}
    found |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    found["tags"] = ["palenka", *(["knowledge-distillation"] if run.settings.teachers else [])]
    origin = run.inputs.origin
    if origin and origin.source:
        found["base_model"] = origin.source.partition("@")[0]
    if results:
        found["model-index"] = [{"name": name, "results": [_indexed(result) for result in results]}]
    return found


def _indexed(result: SuiteResult) -> dict[str, Any]:
    """A suite's main figure in the form of the Hub's index of results."""
    main = result.main
    kind, value = (next(iter(result.figures)), main.value) if main.unit else ("accuracy", 100 * main.value)
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": result.title, "type": result.suite},
        "metrics": [{"type": kind, "value": round(value, 4), "name": _under(result)}],
    }


def _summary(run: FinishedRun) -> str:
    how = "distilled from " + count(len(run.settings.teachers), "teacher") if run.settings.teachers else "trained"
    return (
        f"A causal language model ({_plain(run.shape)}, {run.result.parameters:,} parameters), {how} with Palenka "
        f"{__version__}. It was not tuned to follow instructions or to be safe: it goes on with text."
    )


def _usage(name: str) -> str:
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(name)})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})\n```"
    )


def _data(run: FinishedRun) -> Iterator[str]:
    """The corpus, if it still exists, and how much of it was read."""
    settings, result = run.settings, run.result
    corpus = _corpus_of(run)
    if corpus is None:
        yield (
            f"Corpus `{settings.corpus.name}`, fingerprint `{run.inputs.corpus}`; it was not at hand when this card "
            "was written, so its sources and its words are not listed."
        )
    else:
        counts = corpus.counts
        yield (
            f"Corpus `{settings.corpus.name}`, split {settings.split}: {counts.documents:,} documents, "
            f"{counts.words:,} words, {counts.tokens:,} tokens of {corpus.vocabulary_size:,}; fingerprint "
            f"`{run.inputs.corpus}`."
        )
        lines = [[f"`{source.path}`", f"{source.counts.words:,}"] for source in corpus.sources]
        yield _table([["source", "words"], *lines])
    part = f"{100 * settings.fraction:g} % of it in " if settings.fraction < 1 else ""
    yield (
        f"Budget: of a corpus of {result.words.corpus_words:,} words the model read {part}"
        f"{count(settings.epochs, 'epoch')}, {result.words.read:,} words in all ({result.tokens:,} tokens). Words are "
        "counted document by document, as what stands between white space."
    )


def _corpus_of(run: FinishedRun) -> Corpus | None:
    """The corpus that a run was trained on, if it still exists unchanged at its path."""
    try:
        corpus = Corpus.open(run.settings.corpus, run.settings.split)
    except UserError:
        return None
    return corpus if corpus.fingerprint == run.inputs.corpus else None


def _teachers(run: FinishedRun) -> Iterator[str]:
    origin = run.inputs.origin
    if origin:
        yield f"The student went on from {_identity(origin.as_plain())}."
    if not run.inputs.teachers:
        yield "None: the model was trained on the text alone."
        return
    lines = [["teacher", "weight", "what it said", "models"]]
    for name, said in run.inputs.teachers.items():
        settings = run.settings.teachers[name]
        models: Mapping[str, Any] = said.get("teachers", said)
        lines.append(
            [
                _plain(name),
                f"{settings.weight:g}",
                "live, as the student trained" if settings.source == "live" else "kept in a cache",
                "; ".join(_identity(model) for model in models.values()),
            ]
        )
    yield _table(lines)
    yield from _learnt_from(run)


def _learnt_from(run: FinishedRun) -> Iterator[str]:
    """The words read by the models that the run learnt from, which count for a budget too."""
    if not run.result.learnt_from:
        return
    yield "What these had read in their own training, which a budget of words counts too:"
    lines = [["model", "words of its corpus", "words read", "the same corpus"]]
    for name, words in run.result.learnt_from.items():
        if words is None:
            lines.append([_plain(name), "not known", "not known", "not known"])
        else:
            same = "yes" if words.corpus == run.result.words.corpus else "no"
            lines.append([_plain(name), f"{words.corpus_words:,}", f"{words.read:,}", same])
    yield _table(lines)


def _identity(model: Mapping[str, Any]) -> str:
    kind = model["config"].get("model_type", "model")
    where = f" from `{model['source']}`" if model.get("source") else ""
    return f"{kind}{where} (weights `{model['weights'][:12]}`)"


def _training(run: FinishedRun) -> Iterator[str]:
    settings, result = run.settings, run.result
    terms = ", ".join(f"{term.weight:g} × {name}" for name, term in settings.objective.active.items())
    heat = f", at temperature {settings.objective.temperature:g}" if settings.teachers else ""
    yield f"The weighted sum of {terms} was minimised{heat}."
    optimizer = settings.optimizer
    lines = [
        ["setting", "value"],
        ["optimizer", f"AdamW, weight decay {optimizer.weight_decay:g}"],
        ["learning rate", f"{optimizer.learning_rate:g}, {optimizer.schedule}"],
        ["batch", f"{settings.global_batch} windows of {settings.windows.length} tokens"],
        ["steps", f"{result.steps:,}; the model kept is that of step {result.best_step:,}, the best on validation"],
        ["precision", settings.precision],
        ["seed", f"{settings.seed}"],
        ["time", duration(result.seconds)],
    ]
    if run.calls:
        call = run.calls[-1]
        lines += [["date", call.date[:10]], ["hardware", _plain(call.hardware)], ["command", f"`{call.command}`"]]
        lines.append(["versions", ", ".join(f"{package} {number}" for package, number in call.versions.items())])
    yield _table(lines)


def _results(run: FinishedRun, results: Sequence[SuiteResult]) -> Iterator[str]:
    lines = [["what", "figure", "95 % interval", "under"]]
    for result in results:
        for name, figure in result.figures.items():
            what = result.title if figure is result.main else f"{result.title}: {name.replace('_', ' ')}"
            factor, unit = (1, figure.unit) if figure.unit else (100, "%")
            interval = "" if figure.interval is None else " to ".join(f"{factor * end:.4g}" for end in figure.interval)
            lines.append([_plain(what), f"{factor * figure.value:.4g} {unit}", interval or "–", _under(result)])
    own = f"{run.result.validation_cross_entropy:.4f} nats per token"
    lines.append(
        ["the run's own validation, which chose the model", own, "–", f"{run.settings.validation.split} split"]
    )
    yield _table(lines)
    if not results:
        yield "No suite was given when this card was written (`palenka export --results FILE.json`)."
    else:
        yield "Measured by `palenka eval`; intervals are over the items or the text, not over seeds."


def _under(result: SuiteResult) -> str:
    return conditions(result.conditions) or "–"


def _licence(license_id: str | None) -> str:
    data = "Those of the training text and of the teachers hold besides; this card does not know them."
    if license_id:
        return f"The weights: `{license_id}`, as chosen by whoever exported them. {data}"
    return (
        "No licence was chosen for these weights when they were exported (`palenka export --license ID`): without one, "
        f"others may not assume that they can use them. {data}"
    )


def _table(lines: Table) -> str:
    head, *rest = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *rest])


def _plain(text: str) -> str:
    """A name escaped for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))
