"""Tokenizers: the one that is learnt here as it is saved; which are the same; what each puts around a document."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer

from palenka.data.text.learn import train_tokenizer
from palenka.data.text.readers import Piece
from palenka.data.text.tokenizer import (
    boundaries_of,
    hash_of_directory,
    load_tokenizer,
    save_learnt,
    save_tokenizer,
    token_bytes,
    vocabulary_size_of,
)
from palenka.ground.errors import UserError

TEXT = "The cat's kitten didn't see the other cats; it saw 12 mice, and don't they run! naïve café 字字 \n\n the end\n"


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([Piece(TEXT * 3, True)], 400, 2)


@cache
def saved() -> Any:
    with TemporaryDirectory() as folder:
        save_learnt(tokenizer(), Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def test_the_saved_tokenizer_is_as_published() -> None:
    assert [saved().convert_tokens_to_ids(token) for token in ("<pad>", "<s>", "</s>")] == [0, 1, 2]
    assert (saved().pad_token_id, saved().bos_token_id, saved().eos_token_id) == (0, 1, 2)
    assert len(saved()) == tokenizer().get_vocab_size() <= 400
    assert saved()("").input_ids == []
    assert saved()("cat").input_ids == saved()(" cat").input_ids, "a space is put before a text without one"
    assert saved()("ﬁ").input_ids == saved()("fi").input_ids, "text is normalised to NFKC"
    assert not {0, 1, 2} & set(saved()("<s> a </s><pad>").input_ids), "spelt special tokens are text"
    assert saved().decode(saved()(TEXT).input_ids) == f" {TEXT}"


def test_every_byte_has_a_token() -> None:
    text = "".join(map(chr, range(1, 0x800)))
    assert saved().decode(saved()(text).input_ids) == " " + tokenizer().normalizer.normalize_str(text)


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    again = train_tokenizer([Piece(character, index == 0) for index, character in enumerate(TEXT * 3)], 400, 2)
    save_learnt(tokenizer(), tmp_path / "first")
    save_learnt(again, tmp_path / "again")
    assert (tmp_path / "first/tokenizer.json").read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()


def test_merges_are_those_of_an_independent_count() -> None:
    """The first merge joins the most frequent pair of the words, each with the space before it."""
    learnt = train_tokenizer([Piece("hug hug hug pug pug hugs", True)], 260, 2)
    assert learnt.id_to_token(259) == "ug"  # 6 times; " h" 4 times


def test_a_tokenizer_loads_as_the_fast_class(tmp_path: Path) -> None:
    save_learnt(tokenizer(), tmp_path)
    assert load_tokenizer(tmp_path)(TEXT).input_ids == saved()(TEXT).input_ids
    assert not list(tmp_path.glob("*.p*kl*"))


SaveTokenizerOf = Callable[[str, str, Path], Path]
KINDS = ["byte_level", "split_by_pattern", "sentence_piece", "unigram", "word_piece", "bare"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_same_however_it_was_saved(
    kind: str, save_tokenizer_of: SaveTokenizerOf, tmp_path: Path
) -> None:
    first = save_tokenizer_of(kind, TEXT * 20, tmp_path / "first")
    other = shutil.copytree(first, tmp_path / "other")
    content = json.loads((first / "tokenizer.json").read_text())
    # What versions write differently, none of which changes an id.
    if "merges" in content["model"]:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        content["model"]["continuing_subword_prefix"] = ""
        content["model"].pop("ignore_merges")
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}
    content |= {"truncation": None, "padding": None, "decoder": None}
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert (first / "tokenizer.json").read_bytes() != (other / "tokenizer.json").read_bytes()
    assert hash_of_directory(first) == hash_of_directory(other)
    save_tokenizer(load_tokenizer(first), tmp_path / "again")
    assert hash_of_directory(tmp_path / "again") == hash_of_directory(first)


def test_another_mapping_is_another_tokenizer(save_tokenizer_of: SaveTokenizerOf, tmp_path: Path) -> None:
    first = save_tokenizer_of("split_by_pattern", TEXT * 20, tmp_path / "first")
    before = hash_of_directory(first)

    def changed(**changes: object) -> str:
        other = shutil.copytree(first, tmp_path / "other", dirs_exist_ok=True)
        content = json.loads((first / "tokenizer.json").read_text())
        for name, value in changes.items():
            (content["model"] if name in content["model"] else content)[name] = value
        (other / "tokenizer.json").write_text(json.dumps(content))
        return hash_of_directory(other)

    model = json.loads((first / "tokenizer.json").read_text())["model"]
    last, one_before = sorted(model["vocab"], key=model["vocab"].get)[-2:]
    swapped = model["vocab"] | {last: model["vocab"][one_before], one_before: model["vocab"][last]}
    hashes = [
        changed(vocab=swapped),
        changed(merges=[*model["merges"][1:], model["merges"][0]]),
        changed(normalizer=None),
        changed(normalizer={"type": "NFKC"}),
        changed(
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        ),
    ]
    assert len({before, *hashes}) == 6


def test_how_special_tokens_in_text_are_read_is_part_of_it(tmp_path: Path) -> None:
    save_learnt(tokenizer(), tmp_path)
    file = tmp_path / "tokenizer_config.json"
    before = hash_of_directory(tmp_path)
    file.write_text(file.read_text().replace('"split_special_tokens": true', '"split_special_tokens": false'))
    assert hash_of_directory(tmp_path) != before


@pytest.mark.parametrize(
    ("kind", "around"),
    [
        ("byte_level", ("", "<|endoftext|>")),
        ("split_by_pattern", ("", "<|endoftext|>")),
        ("sentence_piece", ("<s>", "")),
        ("unigram", ("", "</s>")),
        ("word_piece", ("[CLS]", "[SEP]")),
        ("bare", ("", "")),
    ],
)
def test_what_a_tokenizer_puts_around_a_document(
    kind: str, around: tuple[str, str], save_tokenizer_of: SaveTokenizerOf, tmp_path: Path
) -> None:
    found: Any = load_tokenizer(save_tokenizer_of(kind, TEXT * 20, tmp_path))
    before, after = boundaries_of(found)
    assert (found.decode(before), found.decode(after)) == around
    if around != ("", "<|endoftext|>"):  # GPT-2 and its like leave it to whoever trains
        assert [*before, *found("a", add_special_tokens=False).input_ids, *after] == found("a").input_ids
    assert boundaries_of(found, False, False) == ([], [])
    assert boundaries_of(found, found.convert_ids_to_tokens(9), None) == ([9], after)
    with pytest.raises(UserError, match="document_end is '<none>', but the tokenizer has no such token; give one"):
        boundaries_of(found, None, "<none>")


def test_bos_and_eos_that_a_tokenizer_lacks_are_refused(save_tokenizer_of: SaveTokenizerOf, tmp_path: Path) -> None:
    found = load_tokenizer(save_tokenizer_of("bare", TEXT * 20, tmp_path))
    with pytest.raises(UserError, match="document_start is true, but the tokenizer has no bos token; give a token"):
        boundaries_of(found, True)
    with pytest.raises(UserError, match="document_end is true, but the tokenizer has no eos token; give a token"):
        boundaries_of(found, None, True)


def test_ids_that_are_left_out_count(save_tokenizer_of: SaveTokenizerOf, tmp_path: Path) -> None:
    save_tokenizer_of("word_piece", TEXT * 20, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary_size_of(load_tokenizer(tmp_path)) == 70_001


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a slow tokenizer \(ByT5Tokenizer, .* convert it to a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone is no directory; give one that holds a tokenizer, or an id"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(UserError, match="has no tokenizer; save its tokenizer there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=f"the tokenizer in {tmp_path} cannot be read .* save it again"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["own", *KINDS])
def test_the_bytes_of_tokens_are_those_of_the_text(
    kind: str, save_tokenizer_of: SaveTokenizerOf, tmp_path: Path
) -> None:
    text = "The cat's kitten naïve 字, they run the end"
    if kind == "own":
        save_learnt(tokenizer(), tmp_path)
    else:
        save_tokenizer_of(kind, TEXT * 20, tmp_path)
    found: Any = load_tokenizer(tmp_path)
    names = token_bytes(found, vocabulary_size_of(found))
    spelt = b"".join(names[token] for token in found(text, add_special_tokens=False).input_ids).decode()
    if kind == "word_piece":  # without accents, a space before each word and sign
        assert spelt == " the cat ' s kitten naive 字 , they run the end"
    else:
        assert spelt.removeprefix(" ") == text
    assert all(names[token] == b"" for token in found.all_special_ids)
