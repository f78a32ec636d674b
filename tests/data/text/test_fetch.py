"""Fetching text; the network is the one thing that is made up here."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

import palenka.data.text.fetch
from palenka.data.__main__ import main
from palenka.data.text.fetch import fetch
from palenka.ground.errors import UserError

REPOSITORIES = [
    "BabyLM-community/BabyLM-2026-Strict-Small",
    "BabyLM-community/BabyLM-dev",
    "BabyLM-community/BabyLM-Test",
]


def hub(files: list[str]) -> Callable[..., None]:
    """A Hub whose repositories hold these files, as far as their patterns ask for them."""

    def download(repository: str, *, repo_type: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert repo_type == "dataset"
        assert repository in REPOSITORIES
        (local_dir / ".cache").mkdir(parents=True)
        for name in files:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (local_dir / name).write_text("text")

    return download


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_get_the_names_that_prepare_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["childes.train.txt", "qed.train.txt", "childes.dev", "childes.test", "README.md"]
    monkeypatch.setattr(palenka.data.text.fetch, "snapshot_download", hub(files))
    assert main(["fetch", "babylm-10m"]) == 0
    folder = Path("runs/text/babylm-10m")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["dev/childes.dev", "test/childes.test", "train/childes.train", "train/qed.train"]
    assert [path.name for path in folder.parent.iterdir()] == ["babylm-10m"]


def test_text_that_is_there_is_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text").mkdir()
    Path("text/a.train").touch()
    monkeypatch.setattr(palenka.data.text.fetch, "snapshot_download", None)
    assert main(["fetch", "babylm-100m", "--output", "text"]) == 0
    assert "text holds text already; delete it to fetch it again" in capsys.readouterr().err


LOST_CONNECTION: Any = vars(errors)["HTTPError"]
RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.GatedRepoError("no", response=RESPONSE), "Strict-Small is gated: accept its terms at .* osf.io/ad7qg"),
        (
            errors.RepositoryNotFoundError("no", response=RESPONSE),
            "is not, or no longer, on the Hugging Face Hub; .*ad7qg",
        ),
        (errors.LocalEntryNotFoundError("No route.\nAnd more."), r"cannot fetch .* \(No route\); connect to .*ad7qg"),
        (LOST_CONNECTION("lost"), r"cannot fetch .* \(lost\); connect to the network and run the command again"),
        (LOST_CONNECTION(""), r"cannot fetch .* \(HTTPError\); connect"),
    ],
)
def test_a_download_that_fails_says_what_to_do(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(palenka.data.text.fetch, "snapshot_download", fail)
    with pytest.raises(UserError, match=sentence):
        fetch("babylm-10m")
    assert not Path("runs/text/babylm-10m").exists()


def test_a_repository_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palenka.data.text.fetch, "snapshot_download", hub(["README.md"]))
    with pytest.raises(UserError, match="holds no text; name the training text"):
        fetch("babylm-10m")
    assert not Path("runs/text/babylm-10m").exists()


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "babylm-1g"]) == 2
    assert "no text is called 'babylm-1g'; choose from babylm-10m, babylm-100m" in capsys.readouterr().err
    assert main(["fetch"]) == 2
    assert "these options are missing: name; give them in a file or as --name" in capsys.readouterr().err
