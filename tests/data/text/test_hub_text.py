"""Datasets of the Hub as sources; the three calls that reach the network are replaced, the streams are real."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest

from palenka.data.text.readers import ReadingOptions
from palenka.data.text.sources import find_sources
from palenka.ground.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = {"train": ["The cat .", "", "A dog ."], "validation": ["A bird ."], "unsupervised": ["x"]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What is asked of a Hub that has ``some/text`` alone."""
    asked: list[tuple[Any, ...]] = []

    def dataset_info(_: Any, name: str, revision: str | None) -> SimpleNamespace:
        if name != "some/text":
            raise ConnectionError(f"404: no dataset {name}")
        asked.append(("info", name, revision))
        return SimpleNamespace(sha=COMMIT)

    def names(_name: str, configuration: str | None, revision: str) -> list[str]:
        assert revision == COMMIT
        asked.append(("splits", configuration))
        return list(TEXTS)

    def load(_name: str, configuration: str | None, *, split: str, revision: str, streaming: bool) -> Any:
        assert (revision, streaming) == (COMMIT, True)
        asked.append(("load", configuration, split))
        return datasets.Dataset.from_dict({"text": TEXTS[split]}).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "get_dataset_split_names", names)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize(
    ("given", "revision", "configuration"),
    [("some/text", None, None), ("some/text@v2", "v2", None), ("some/text@v2:plain", "v2", "plain")],
)
def test_the_splits_of_a_dataset_at_its_commit(
    given: str, revision: str | None, configuration: str | None, hub: list[tuple[Any, ...]]
) -> None:
    sources = find_sources([Path(given)])
    label = f"some/text@{COMMIT}" + (f":{configuration}" if configuration else "")
    assert [(source.name, source.split) for source in sources] == [
        (f"{label}/train", "train"),
        (f"{label}/validation", "dev"),
    ]
    assert {source.identity for source in sources} == {COMMIT}
    assert [piece.text for piece in sources[0].documents(lambda _: None)] == TEXTS["train"]
    assert hub == [("info", "some/text", revision), ("splits", configuration), ("load", configuration, "train")]


@pytest.mark.usefixtures("hub")
def test_a_dataset_beside_files_and_cleaned_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("A fish .")
    sources = find_sources([Path("text"), Path("some/text")], ReadingOptions(cleaner="babylm"))
    assert [source.name for source in sources] == [
        "a.txt",
        f"some/text@{COMMIT}/train",
        f"some/text@{COMMIT}/validation",
    ]
    documents = [piece.text for source in sources for piece in source.documents(lambda _: None)]
    assert documents == ["A fish.", "The cat.", "", "A dog.", "A bird."]


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_give_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"other/text is no file or folder here, and cannot be read from .* \(404: no dat"
    ):
        find_sources([Path("other/text")])
    (tmp_path / "some").mkdir()
    with pytest.raises(UserError, match="sources some/text does not exist; give the folder"):
        find_sources([Path("some/text")])
    (tmp_path / "some").rmdir()
    source = find_sources([Path("some/text")], ReadingOptions(text_field="body"))[0]
    with pytest.raises(UserError, match=r"has no field 'body'; name one that it has with text_field: text"):
        list(source.documents(lambda _: None))
