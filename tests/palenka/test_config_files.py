"""`palenka configs`: what comes with Palenka, listed in 80 columns and copied where README speaks of it."""

import json
import re
from pathlib import Path

import pytest
import yaml

from palenka import config_files
from palenka.__main__ import main

ROOT = Path(__file__).parents[2]


def configs(*words: str) -> int:
    return main(["configs", *words])


def test_all_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert configs("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {f"{name}.yaml" for name in listed} == {
        path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert all(listed.values())
    assert listed["demo/corpus"] == "a corpus"
    assert configs("list") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name in shown for name in listed)


@pytest.mark.usefixtures("folder_of_a_user")
def test_what_readme_and_pages_name_is_there_once_all_are_copied() -> None:
    assert configs("copy", "all") == 0
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"configs/[\w./-]+\.yaml", page.read_text(encoding="utf-8"))}
    assert len(named) > 8
    for name in named:
        assert Path(name).read_bytes() == (ROOT / name).read_bytes()


@pytest.fixture
def folder_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}


def test_a_file_brings_those_that_it_names(folder_of_a_user: Path) -> None:
    assert configs("copy", "grids/palenka-25", "mine") == 0
    assert there(folder_of_a_user) == {
        "mine/grids/palenka-25.yaml",
        "mine/students/palenka-58m-l0.1-h0.1.yaml",
    }
    assert configs("copy", "configs/demo/study.yaml") == 0
    demo = {path.name for path in (ROOT / "configs" / "demo").glob("*.yaml")}
    assert {path.name for path in Path("configs/demo").iterdir()} == demo
    study = yaml.safe_load(Path("configs/demo/study.yaml").read_text())
    assert (Path("configs/demo") / study["students"]["distilled"]).is_file()


def test_a_file_elsewhere_that_is_named_is_left_there(folder_of_a_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files, "CONFIGS", folder_of_a_user / "shipped")
    (folder_of_a_user / "shipped").mkdir()
    (folder_of_a_user / "elsewhere.yaml").write_text("sources: text")
    (folder_of_a_user / "shipped" / "study.yaml").write_text("corpus: ../elsewhere.yaml\noutput: runs")
    assert configs("copy", "study", "mine") == 0
    assert there(Path("mine")) == {"study.yaml"}


def test_what_a_killed_copy_left_is_removed(folder_of_a_user: Path) -> None:
    assert configs("copy", "demo") == 0
    copied = {path: path.read_bytes() for path in folder_of_a_user.rglob("*.yaml")}
    Path("configs/demo/study.yaml").unlink()
    for name in ("study", "corpus"):
        Path(f"configs/demo/{name}.yaml.{'0' * 32}.partial").touch()
        Path(f"configs/demo/{name}.yaml.lock").touch()
    assert configs("copy", "demo") == 0
    assert {path: path.read_bytes() for path in folder_of_a_user.rglob("*") if path.is_file()} == copied


def test_what_was_changed_is_not_written_over(folder_of_a_user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert configs("copy", "demo/corpus") == 0
    assert configs("copy", "demo/corpus") == 0  # the same is there: nothing to do
    changed = Path("configs/demo/corpus.yaml")
    changed.write_text("mine: true")
    assert configs("copy", "demo") == 2
    assert "corpus.yaml exists and is another file" in capsys.readouterr().err
    assert there(folder_of_a_user) == {"configs/demo/corpus.yaml"}
    assert changed.read_text() == "mine: true"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["copy", "palenka-25"], "did you mean grids/palenka-25?"),
        (["copy", "nothing/such"], "is no file or folder that comes with Palenka; `palenka configs list` shows all"),
        (["copy", "../secret"], "is no file or folder"),
        (["copy"], "these options are missing: name"),
        (["move"], "'move' is not a command of palenka configs; choose from list, copy"),
    ],
)
@pytest.mark.usefixtures("folder_of_a_user")
def test_mistakes_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert configs(*words) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_said(folder_of_a_user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder_of_a_user / "file").write_text("")
    assert configs("copy", "demo/corpus", "file") == 2
    assert "cannot copy to file: " in capsys.readouterr().err
