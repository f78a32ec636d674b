"""A tokenizer that opens texts by itself: what it adds, and what it leaves as it was."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from palenka.data.text.bos import add_bos
from palenka.eval.choices import Choice, Completion
from palenka.eval.protocols import encode_choices
from palenka.ground.errors import UserError


def test_every_text_begins_with_bos_and_nothing_else_changes(corpus_directory: Path, tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(corpus_directory / "tokenizer")
    shutil.copytree(corpus_directory / "tokenizer", tmp_path / "tokenizer")
    add_bos(tmp_path / "tokenizer")
    once = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    opened = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in ("the teacher sees a stone .", "<s>", ""):
        assert opened(text).input_ids == [plain.bos_token_id, *plain(text).input_ids]
        assert opened(text, add_special_tokens=False).input_ids == plain(text).input_ids
    pair = opened("the teacher", "sees").input_ids
    assert pair == [plain.bos_token_id, *plain("the teacher").input_ids, *plain("sees").input_ids]
    encoded = opened("the teacher", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 0), *plain("the teacher", return_offsets_mapping=True)["offset_mapping"]]
    add_bos(tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_bytes() == once


def test_a_tokenizer_without_such_a_token_is_refused(corpus_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus_directory / "tokenizer", tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"bos_token"', '"other_token"'))
    with pytest.raises(UserError, match="names no bos token; name one in tokenizer_config"):
        add_bos(tmp_path / "tokenizer")


def test_with_it_the_protocol_of_2025_scores_sentences_as_that_of_2024(corpus_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus_directory / "tokenizer", tmp_path / "tokenizer")
    texts = ["the teacher sees a stone .", "Ünïcode «x»\nB: yes.", "a"]
    completions = tuple(Completion(None, text) for text in texts)
    choices = [Choice(Path("f.jsonl"), 1, "f", 0, completions)]
    plain = AutoTokenizer.from_pretrained(corpus_directory / "tokenizer")
    add_bos(tmp_path / "tokenizer")
    opened = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert encode_choices(choices, "babylm-2025", opened, 1000, None) == encode_choices(
        choices, "babylm-2024", plain, 1000, None
    )
