"""Export: a run's student alone, as a Hugging Face directory to publish; projections and checkpoints stay behind.

`palenka export runs/students/palenka-58m-l0.1-h0.3 --out palenka-58m`
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from palenka.data.model_files import load_model
from palenka.ground.command_line import parse, run
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.ground.settings import Precision, Settings
from palenka.train_student.model.shapes import count_parameters
from palenka.train_student.run import Run

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ExportSettings(Settings):
    """Write a finished run's model and tokenizer, and nothing else, to a directory of its own."""

    run: Path
    """Directory of the run; may stand first, without its name."""
    out: Path
    """Directory to make."""
    dtype: Precision = "float32"
    """Type of the weights."""


def export(settings: ExportSettings) -> int:
    """Export a run; returns the parameters of the model.

    Raises:
        UserError: if the run is not finished, or the directory exists.
    """
    if Run(settings.run).result() is None:
        raise UserError(f"{settings.run} is not a finished run: it has no result.json; train it to its end first")
    if settings.out.exists():
        raise UserError(f"{settings.out} exists; delete it or choose another --out")
    with sole_writer(settings.out):
        aside = settings.out.with_name(f"{settings.out.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        model = load_model(settings.run, torch.device("cpu"), settings.dtype)
        model.save_pretrained(aside)
        for name in _TOKENIZER_FILES:
            shutil.copyfile(settings.run / name, aside / name)
        aside.rename(settings.out)
    return count_parameters(model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the export; returns the exit status."""
    return run(_export, arguments)


def _export(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    settings = parse(ExportSettings, arguments, "palenka export")
    parameters = export(settings)
    Console().print(f"{settings.out}: {parameters:,} parameters in {settings.dtype}, with their tokenizer")


if __name__ == "__main__":
    sys.exit(main())
