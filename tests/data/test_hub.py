"""Names of models: a directory, or an id on the Hub. What was fetched lies in the Hub's own cache; no network here."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from palenka.data.hub import Located, locate_model, locate_tokenizer
from palenka.ground.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def in_cache(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache with a model ``some/teacher`` at one commit, and no network."""
    repository = tmp_path / "hub" / "models--some--teacher"
    shutil.copytree(teacher, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return repository / "snapshots" / COMMIT


@pytest.mark.usefixtures("in_cache")
def test_a_directory_comes_before_an_id() -> None:
    Path("some/teacher").mkdir(parents=True)
    assert locate_model(Path("some/teacher")) == Located(Path("some/teacher"), Path("some/teacher"))


@pytest.mark.parametrize("name", ["some/teacher", "some/teacher@main", f"some/teacher@{COMMIT}"])
def test_an_id_is_resolved_to_its_commit(in_cache: Path, name: str) -> None:
    assert (
        locate_model(Path(name))
        == locate_tokenizer(Path(name))
        == Located(Path(name), in_cache, f"some/teacher@{COMMIT}")
    )


@pytest.mark.usefixtures("in_cache")
def test_paths_that_are_not_there_are_left_to_whoever_reads_them() -> None:
    Path("runs").mkdir()
    for name in ("runs/teacher", "/runs/teacher", "runs/teachers/one", "../teacher"):
        assert locate_model(Path(name)) == Located(Path(name), Path(name))


@pytest.mark.usefixtures("in_cache")
@pytest.mark.parametrize("name", ["naïve", "a--b", "some/-x", "-", "..x", "x" * 97])
def test_what_can_be_no_id_is_said_not_to_be_there(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is no directory here, and the Hugging Face Hub has no such model"):
        locate_model(Path(name))


@pytest.mark.usefixtures("in_cache")
def test_an_id_without_a_network_says_so() -> None:
    with pytest.raises(UserError, match=r"other/teacher is no directory here, and cannot be fetched .* give a direct"):
        locate_model(Path("other/teacher"))


@pytest.mark.usefixtures("in_cache")
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.GatedRepoError, "some/one is gated: accept its terms at huggingface.co/some/one"),
        (
            errors.RepositoryNotFoundError,
            "some/one@v1 is no directory here, and the Hugging Face Hub has no such",
        ),
        (errors.RevisionNotFoundError, "some/one has no revision v1; give a branch, a tag or a commit"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(error: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_repository: str, **_: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=sentence):
        locate_model(Path("some/one@v1"))


def test_pickles_and_other_formats_are_not_fetched(monkeypatch: pytest.MonkeyPatch, in_cache: Path) -> None:
    from huggingface_hub.utils._paths import filter_repo_objects

    files = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    files += ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"]
    others = [
        "pytorch_model.bin",
        "modeling_own.py",
        "onnx/model.safetensors",
        "model.gguf",
        "consolidated.safetensors",
    ]
    asked: list[str] = []

    def download(_repository: str, **patterns: Any) -> str:
        assert patterns.pop("revision") is None
        asked.extend(filter_repo_objects([*files, *others], **patterns))
        return str(in_cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    locate_model(Path("some/one"))
    assert asked == files
