"""Export: a run's student alone, as a Hugging Face directory to publish; projections and checkpoints stay behind.

`palenka export runs/students/palenka-58m-l0.1-h0.3 --out palenka-58m`
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.ground.errors import UserError
from palenka.ground.files import disk_errors, whole_directory
from palenka.ground.lock import sole_writer
from palenka.ground.settings import Command, Precision


class ExportSettings(Command):
    """Write a finished run's model and tokenizer, and nothing else, to a directory of its own."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: Path
    """Directory of the run."""
    out: Path
    """Directory to make."""
    dtype: Precision = "float32"
    """Type of the weights."""
    add_bos: bool = False
    """Whether the tokenizer puts its bos before every text by itself: the BabyLM pipeline then scores first tokens."""


def export(settings: ExportSettings) -> int:
    """Export a run; returns the parameters of the model.

    Raises:
        UserError: if the run is not finished, a file of it is damaged, or the directory exists.
    """
    import torch

    from palenka.data.model_files import load_model
    from palenka.data.text.bos import add_bos
    from palenka.data.text.tokenizer import tokenizer_files
    from palenka.train_student.model.student import count_parameters
    from palenka.train_student.run import Run

    run = Run(settings.run)
    if run.result() is None:
        raise UserError(f"{settings.run} is not a finished run: it has no result.json; train it to its end first")
    run.require_whole()
    if settings.out.exists():
        raise UserError(f"{settings.out} exists; delete it or choose another --out")
    with sole_writer(settings.out), whole_directory(settings.out) as aside, disk_errors():
        model = load_model(settings.run, torch.device("cpu"), settings.dtype)
        model.save_pretrained(aside)
        for path in tokenizer_files(settings.run):
            shutil.copyfile(path, aside / path.name)
        if settings.add_bos:
            add_bos(aside)
        run.require_whole()  # what was read is what was there before
    return count_parameters(model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the export; returns the exit status."""
    return run(_export, arguments)


def _export(arguments: Sequence[str]) -> None:
    settings = parse(ExportSettings, arguments, "palenka export")
    parameters = export(settings)
    console(soft_wrap=True).print(
        f"{settings.out}: {parameters:,} parameters in {settings.dtype}, with their tokenizer"
    )


if __name__ == "__main__":
    sys.exit(main())
