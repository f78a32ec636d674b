"""Real sizes: the numbers of parameters of some configurations, whatever their names say.

`palenka parameters configs/baselines/*.yaml configs/teachers/*.yaml`
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, TypeAdapter, ValidationError
from rich.table import Table

from palenka.ground.command_line import parse, run
from palenka.ground.console import console
from palenka.ground.errors import UserError
from palenka.ground.settings import Command, read_yaml
from palenka.train_student.settings import AnyStudentModel

if TYPE_CHECKING:
    from palenka.train_student.model.student import StudentModel


class ParametersSettings(Command):
    """Count the parameters of the models in some configurations."""

    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: tuple[Path, ...]
    """YAML files with a model."""
    vocabulary_size: int = Field(default=16_000, ge=4, le=2**20)
    """Vocabulary size of the models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of shapes and sizes; returns the exit status."""
    return run(_print_sizes, arguments)


def _print_sizes(arguments: Sequence[str]) -> None:
    settings = parse(ParametersSettings, arguments, "palenka parameters")
    table = Table(title=f"Parameters over {settings.vocabulary_size:,} tokens")
    table.add_column("configuration", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("parameters", justify="right")
    for file in settings.files:
        shape = _shape_in(file)
        vocabulary = settings.vocabulary_size
        config = shape.configuration(vocabulary, {"bos_token_id": 0, "eos_token_id": 0}).get_text_config()
        blocks = f"{shape.summary()} {config.num_hidden_layers} × {config.hidden_size}"
        table.add_row(str(file), blocks, f"{shape.num_parameters(vocabulary):,}")
    console().print(table)


def _shape_in(file: Path) -> "StudentModel":
    content = read_yaml(file)
    if "model" not in content:
        raise UserError(f"configuration {file} has no model; give files of baselines, teachers or students")
    try:
        model: StudentModel = TypeAdapter(AnyStudentModel).validate_python(content["model"])
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(["model", *(str(part) for part in first["loc"])])
        raise UserError(f"configuration {file}: {option} is {first['input']}: {first['msg']}") from None
    return model


if __name__ == "__main__":
    sys.exit(main())
