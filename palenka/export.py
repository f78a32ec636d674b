"""Export: a run's student as a Hugging Face directory to publish, with a model card and without projections.

`palenka export runs/students/palenka-58m-l0.1-h0.3 --out palenka-58m`

With `--revisions` it has a folder for each branch of a repository: main, and the revisions that the run kept. `--push
org/name` sends them to the Hugging Face Hub; after an interruption the same command sends the finished export.
"""

import filecmp
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.ground.errors import UserError
from palenka.ground.files import directory_aside, disk_errors, resolved, whole_directory
from palenka.ground.lock import sole_writer
from palenka.ground.settings import Command, Precision
from palenka.publish import MAIN, push, require_token

if TYPE_CHECKING:
    from palenka.eval.results import SuiteResult
    from palenka.train_student.run_facts import FinishedRun


class ExportSettings(Command):
    """Write a finished run's model, its tokenizer and a model card to a new directory."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: Path
    """Directory of the run."""
    out: Path
    """Directory to create."""
    dtype: Precision = "float32"
    """Type of the weights."""
    add_bos: bool = False
    """Whether the tokenizer puts its bos before every text by itself: the BabyLM pipeline then scores first tokens."""
    results: tuple[Path, ...] = ()
    """Results of `palenka eval` for this model, for its card."""
    license: str | None = None
    """Licence of the weights by its name on the Hub, such as mit or cc-by-4.0; the card says if none was chosen."""
    revisions: bool = False
    """Also export the revisions that the run kept: out then has a folder for each branch: main, chck_1M, chck_2M and so
    on."""
    push: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Repository on the Hugging Face Hub, as org/name, to send the export to, each folder to its branch. A missing one
    is created as private. The token is that of HF_TOKEN or of `hf auth login`."""


def export(settings: ExportSettings) -> int:
    """Export a run; returns the parameters of the model. With ``push``, a finished export is sent again.

    Raises:
        UserError: if the run is not finished or has no weights, a file of it is damaged, it lacks requested revisions,
            the directory exists and is not to be sent or holds something else, results belong to another model, or the
            Hub refuses.
    """
    from palenka.model_card import read_own_results
    from palenka.train_student.revisions import Revisions
    from palenka.train_student.run import Run

    run, revisions = Run(settings.run), Revisions(settings.run)
    finished = run.read()
    if finished is None:
        raise UserError(f"{settings.run} is not a finished run: it has no result.json; train it to its end first")
    if finished.weights is None:
        raise UserError(f"{settings.run} has no weights: model.safetensors was deleted; restore it, or train it again")
    if settings.revisions:
        revisions.require()
    if settings.out.exists() and not settings.push:
        raise UserError(f"{settings.out} exists; delete it or choose another --out")
    results = read_own_results(settings.results, finished)
    if settings.push:
        require_token()
    models = {place.name: place for place in revisions.places()} if settings.revisions else {}
    models[MAIN] = settings.run
    with sole_writer(settings.out):
        if settings.out.exists():
            with directory_aside(settings.out) as again, disk_errors():
                parameters = _write_branches(settings, finished, models, results, again)
                _require_same(again, settings.out)
        else:
            with whole_directory(settings.out) as aside, disk_errors():
                parameters = _write_branches(settings, finished, models, results, aside)
    if settings.push:
        push(settings.push, {branch: _folder(settings, settings.out, branch) for branch in models})
    return parameters


def _folder(settings: ExportSettings, out: Path, branch: str) -> Path:
    """The folder of a branch in an export."""
    return out / branch if settings.revisions else out


def _write_branches(
    settings: ExportSettings,
    run: "FinishedRun",
    models: Mapping[str, Path],
    results: Sequence["SuiteResult"],
    out: Path,
) -> int:
    """Write the model of each branch, and the card of the main one; returns the main model's parameters."""
    from palenka.data.model_files import require_untouched
    from palenka.model_card import model_card
    from palenka.train_student.run import Run

    for branch, model in models.items():
        if branch != MAIN:
            require_untouched(model)
        parameters = _write(model, _folder(settings, out, branch), settings)
    card = model_card(run, results, settings.push or resolved(settings.out).name, settings.license)
    (_folder(settings, out, MAIN) / "README.md").write_text(card, encoding="utf-8")
    Run(settings.run).require_whole()  # the files read are those checked before
    return parameters


def _require_same(made: Path, there: Path) -> None:
    """Refuse to send a folder that differs from the export of this call.

    Raises:
        UserError: if a file differs.
    """
    files, others = (
        sorted(f"{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file())
        for folder in (made, there)
    )
    if files != others or filecmp.cmpfiles(made, there, files, shallow=False)[0] != files:
        raise UserError(
            f"{there} exists and is not what this command exports; delete it or choose another --out, or send it as it "
            "is with `hf upload`"
        )


def _write(model_directory: Path, directory: Path, settings: ExportSettings) -> int:
    """Write a model and its tokenizer; returns its parameters."""
    import torch

    from palenka.data.model_files import load_model
    from palenka.data.text.bos import add_bos
    from palenka.data.text.tokenizer import tokenizer_files
    from palenka.train_student.model.student import count_parameters

    model = load_model(model_directory, torch.device("cpu"), settings.dtype)
    model.save_pretrained(directory)
    for path in tokenizer_files(model_directory):
        shutil.copyfile(path, directory / path.name)
    if settings.add_bos:
        add_bos(directory)
    return count_parameters(model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the export; returns the exit status."""
    return run(_export, arguments)


def _export(arguments: Sequence[str]) -> None:
    settings = parse(ExportSettings, arguments, "palenka export")
    parameters = export(settings)
    sent = f", sent to https://huggingface.co/{settings.push}" if settings.push else ""
    console(soft_wrap=True).print(
        f"{settings.out}: {parameters:,} parameters in {settings.dtype}, with their tokenizer and README.md{sent}"
    )


if __name__ == "__main__":
    sys.exit(main())
