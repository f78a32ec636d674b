"""The commands that README and the pages show: each is read by the program that it calls, with its files and options.

A command is stopped once its settings are parsed, so what is wrong in a page is an option, a value, or a file that is
not there, and each of these fails here.
"""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from palenka.__main__ import main
from palenka.ground import command_line
from palenka.train_student.objective.term import TERMS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What is somebody's own, and what a shell or another program does.
NOT_OURS = ("git", "ln", "cp", "cd", ".", "sed", "lm_eval", "hf", "for", "done", "tensorboard")


class ParsedError(BaseException):
    """Ends a command whose settings are read."""


@pytest.fixture
def stopped_once_parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands end where they would begin to work; modules that pages name can be imported."""
    parsed = command_line._parsed

    def stop(*arguments: Any) -> Any:
        raise ParsedError(parsed(*arguments))

    monkeypatch.setattr(command_line, "_parsed", stop)
    monkeypatch.setattr(TERMS, "_entries", dict(TERMS))
    monkeypatch.chdir(ROOT)
    for folder in ("docs/examples", "tests/plugins"):
        monkeypatch.syspath_prepend(ROOT / folder)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith("palenka"):
            sys.modules.pop(name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines after a prompt, continued ones joined."""
    joined = (re.sub(r"\\\n\s*", "", block) for block in blocks(page, "console"))
    return [line[2:] for block in joined for line in block.splitlines() if line.startswith("$ ")]


def check(command: str) -> None:
    """Fail where a command could not begin."""
    words = shlex.split(os.path.expandvars(command), comments=True)
    while words and (assignment := re.fullmatch(r"([A-Za-z_]+)=([^$]*)", words[0])):
        os.environ[assignment[1]] = assignment[2]
        words.pop(0)
    if "-m" in words and words[0] in ("accelerate", "python", "torchrun"):
        module, *rest = words[words.index("-m") + 1 :]
        if module.startswith("palenka."):
            import_module(f"{module}.__main__").main(rest)
        elif module.startswith("benchmarks."):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), command
    elif words[:1] == ["palenka"]:
        with pytest.raises(ParsedError):
            assert main(words[1:]) == 0
    elif words[:1] == ["make"]:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), command
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = {name for word in words for group in re.findall(r"\[(.*)\]", word) for name in group.split(",")}
        assert named <= extras.keys(), command
    elif "sbatch" in command:
        assert (ROOT / str(re.findall(r"slurm/\w+\.sbatch", command)[0])).exists(), command
    else:
        assert not words or words[0] in NOT_OURS or words[0].startswith("$"), f"no test knows {words[0]}: {command}"


@pytest.mark.usefixtures("stopped_once_parsed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_can_begin(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER", "unset")
    for command in commands(page):
        try:
            check(command)
        except ParsedError:
            continue


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.-])configs/[\w./-]+\.yaml", text))
    named |= set(
        re.findall(r"`((?:benchmarks|data|eval|palenka|slurm|tests|train_student|cache_teachers)/[\w/]+\.\w+)`", text)
    )
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert sorted(link for link in links if not (page.parent / link).exists()) == []


def test_readme_is_a_front_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
