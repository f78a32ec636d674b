"""Help: every option in plain words and at most 80 columns, and no waiting for torch."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from palenka.__main__ import main
from palenka.ground.help import WIDTH, help_of
from palenka.ground.options import options_of
from palenka.ground.settings import Command, Settings

COMMANDS = {
    "data fetch": "palenka.data.text.fetch:FetchSettings",
    "data prepare": "palenka.data.text.prepare:CorpusSettings",
    "cache plan": "palenka.cache_teachers.settings:PlanSettings",
    "cache run": "palenka.cache_teachers.settings:CaptureSettings",
    "cache verify": "palenka.cache_teachers.settings:VerifySettings",
    "cache inspect": "palenka.cache_teachers.settings:InspectSettings",
    "train": "palenka.train_student.settings:TrainCommand",
    "configs list": "palenka.config_files:ListSettings",
    "configs copy": "palenka.config_files:CopySettings",
    "parameters": "palenka.parameters:ParametersSettings",
    "export": "palenka.export:ExportSettings",
    "eval": "palenka.eval.__main__:EvalSettings",
    "eval compare": "palenka.eval.__main__:CompareSettings",
    "eval export": "palenka.eval.__main__:TableSettings",
    "report": "palenka.report.__main__:ReportSettings",
    "study": "palenka.study:StudySettings",
    "grid": "palenka.grid.settings:GridSettings",
    "grid point": "palenka.grid.settings:PointSettings",
}
WITHOUT_TORCH = ["", "data", "cache", "configs", "demo", *COMMANDS]
"""Commands whose help imports nothing heavy."""
HEAVY = {"torch", "transformers", "zarr", "pyarrow", "matplotlib", "accelerate"}


def settings_of(command: str) -> type[Command]:
    module, _, name = COMMANDS[command].partition(":")
    schema: type[Command] = getattr(importlib.import_module(module), name)
    return schema


def told(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    return capsys.readouterr().out


def subclasses(schema: type[Settings]) -> Iterator[type[Settings]]:
    for below in schema.__subclasses__():
        yield below
        yield from subclasses(below)


def test_every_default_may_be_given() -> None:
    for command in COMMANDS:
        settings_of(command)  # its module defines the classes
    checked = 0
    for schema in set(subclasses(Settings)):
        for field in schema.model_fields.values():
            if not field.is_required():
                rule: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
                TypeAdapter(rule).validate_python(field.get_default(call_default_factory=True))
                checked += 1
    assert checked > 200


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_option_in_eighty_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(command, capsys)
    schema = settings_of(command)
    assert text == help_of(schema, f"palenka {command}")
    assert max(map(len, text.splitlines())) <= WIDTH == 80
    options = list(options_of(schema))
    for option in options:
        assert (f"{option.name}" if option.is_group else f"  --{option.name} ") in text, option.name
        assert option.about, option.name
    listed = " ".join(text.split())
    for words in ("typing", "NoneType", "PosixPath", "Undefined", "<class", "Optional", "tuple[", "dict["):
        assert words not in listed
    for name, field in schema.model_fields.items():
        assert f"{field.alias or name}" in listed
        assert " ".join(str(field.description).split()) in listed


@pytest.mark.parametrize("command", ["", "data", "cache", "configs"])
def test_the_list_of_commands_fits_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, told(command, capsys).splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (
            "train",
            [
                "usage: palenka train [FILE.yaml] [--OPTION VALUE ...]",
                "--config path",
                "--teachers.NAME.weight number (default: 1.0)",
                "--teachers.NAME.layers uniform or mapping of whole numbers (default: uniform)",
                "--optimizer.learning_rate number (default: 0.0005)",
                "--trackers list of tensorboard, wandb (default: none)",
                "--windows.length whole number (default: 128)",
                "--model.hidden_size whole number (required)",
            ],
        ),
        (
            "cache run",
            ["--hidden.components whole number or null (default: 64)", "--ensemble.NAME path (default: none)"],
        ),
        ("cache verify", ["--all true or false (default: false)", "--json true or false (default: false)"]),
        ("cache inspect", ["usage: palenka cache inspect CACHE [--OPTION VALUE ...]"]),
        ("eval", ["usage: palenka eval MODEL [--OPTION VALUE ...]", "--data path or mapping of paths (default: none)"]),
        ("eval export", ["usage: palenka eval export [FILES ...] [--OPTION VALUE ...]"]),
        ("report", ["usage: palenka report DIRECTORIES ... [--OPTION VALUE ...]"]),
        ("grid", ["--product.NAME list of values (default: none)", "--finalists.overrides.NAME value"]),
    ],
)
def test_help_speaks_plainly(command: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(told(command, capsys).split())
    for line in lines:
        assert line in text


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("palenka 0.")


@pytest.mark.slow
@pytest.mark.parametrize("command", WITHOUT_TORCH)
def test_help_does_not_wait_for_torch(command: str) -> None:
    script = f"""
import sys
from palenka.__main__ import main
try:
    main({command.split()!r} + ["--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: palenka")
    assert not HEAVY & set(done.stderr.split())
