"""Preparing a corpus, end to end: against an independent reading, and with everything that may go wrong."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

import palenka.data.corpus
import palenka.data.text.prepare
from palenka.data.__main__ import main
from palenka.data.corpus import Corpus
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer

Contents = Callable[[Path], dict[str, bytes]]

REAL_TEXT = Path(__file__).parents[4] / "shared" / "data" / "babylm"
TRAIN = "The cat sat on the mat .\n\nA dog,  a cat; the mat!\nThe end.\n"
DEV = "\nThe zebra quizzes the cat.\n"


@pytest.fixture
def settings(tmp_path: Path) -> CorpusSettings:
    sources = tmp_path / "text"
    (sources / "deep").mkdir(parents=True)
    (sources / "deep" / "childes.train").write_text(TRAIN)
    (sources / "childes.dev").write_text(DEV)
    return CorpusSettings(sources=sources, output=tmp_path / "out" / "corpus", vocabulary_size=270)


def test_documents_are_encoded_as_the_saved_tokenizer_encodes_them(settings: CorpusSettings) -> None:
    prepare(settings)
    corpus = Corpus.open(settings.output, "train")
    tokenizer = corpus.tokenizer()
    documents = ["The cat sat on the mat.", "A dog, a cat; the mat!\nThe end."]
    expected = [[1, *tokenizer(document).input_ids] for document in documents]
    assert corpus.tokens.tolist() == [token for tokens in expected for token in tokens]
    assert corpus.document_starts.tolist() == [0, len(expected[0])]
    assert corpus.counts.model_dump() == {
        "tokens": len(corpus.tokens),
        "documents": 2,
        "words": len(" ".join(documents).split()),
        "bytes": len("".join(documents)),
        "empty": 0,
    }
    assert [(source.path, source.cleaner) for source in corpus.sources] == [("deep/childes.train", "childes")]
    assert corpus.vocabulary_size == len(tokenizer) <= 270


def test_document_starts_can_be_left_out(settings: CorpusSettings) -> None:
    prepare(settings.model_copy(update={"document_start": False}))
    corpus = Corpus.open(settings.output, "train")
    assert 1 not in corpus.tokens
    second = corpus.tokens[corpus.document_starts[1] :].tolist()
    assert second == corpus.tokenizer()("A dog, a cat; the mat!\nThe end.").input_ids


def test_the_tokenizer_is_learnt_from_the_train_split_alone(settings: CorpusSettings, tmp_path: Path) -> None:
    prepare(settings)
    (settings.sources[0] / "childes.dev").write_text("Quite another text. " * 100)
    other = settings.model_copy(update={"output": tmp_path / "other"})
    prepare(other)
    found = [(path / "tokenizer" / "tokenizer.json").read_bytes() for path in (settings.output, other.output)]
    assert found[0] == found[1]


def test_the_same_sources_give_the_same_bytes(settings: CorpusSettings, tmp_path: Path, contents: Contents) -> None:
    again = settings.model_copy(update={"output": tmp_path / "again"})
    prepare(settings)
    prepare(again)
    first, second = contents(settings.output), contents(again.output)
    assert yaml.safe_load(first.pop("config.yaml")) == settings.as_plain()
    assert yaml.safe_load(second.pop("config.yaml")) == again.as_plain()
    assert first.pop("files.json") != second.pop("files.json"), "settings say where the output lies"
    assert first == second


def test_prepared_already(
    settings: CorpusSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    prepare(settings)
    before = contents(settings.output)
    monkeypatch.setattr(palenka.data.text.prepare, "train_tokenizer", None)
    moved = settings.sources[0].rename(settings.sources[0].with_name("moved"))
    prepare(settings.model_copy(update={"sources": (moved,)}))
    assert "is prepared already" in capsys.readouterr().err
    assert contents(settings.output) == before


def test_a_difference_is_refused_with_both_sides(settings: CorpusSettings) -> None:
    prepare(settings)
    with pytest.raises(UserError, match=r"min_frequency is 2 there, but 3 is expected; delete it or choose"):
        prepare(settings.model_copy(update={"min_frequency": 3}))
    (settings.sources[0] / "childes.dev").write_text("Changed.")
    with pytest.raises(UserError, match=r"sources\.childes\.dev is '\w{64}' there, but '\w{64}' is expected"):
        prepare(settings)
    (settings.sources[0] / "childes.dev").unlink()
    with pytest.raises(UserError, match=r"sources\.childes\.dev is '\w{64}' there, but None is expected"):
        prepare(settings)


def test_an_output_that_is_something_else_is_left_alone(settings: CorpusSettings, contents: Contents) -> None:
    settings.output.mkdir(parents=True)
    (settings.output / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is no prepared corpus; choose another output"):
        prepare(settings)
    assert contents(settings.output) == {"thesis.tex": b"precious"}
    (settings.output / "thesis.tex").unlink()
    prepare(settings)
    assert Corpus.open(settings.output, "dev").counts.documents == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(
    settings: CorpusSettings, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(palenka.data.corpus_writer.CorpusWriter, "finish", fail)
    with pytest.raises((UserError, KeyboardInterrupt), match=r"No space left on device; make room|^$"):
        prepare(settings)
    assert list(settings.output.parent.iterdir()) == []


def test_what_a_killed_run_left_is_removed(settings: CorpusSettings) -> None:
    partial = settings.output.parent / f"corpus.{'0' * 32}.partial"
    (partial / "train.zarr").mkdir(parents=True)
    (partial / "train.tokens").write_bytes(b"half")
    prepare(settings)
    assert [path.name for path in settings.output.parent.iterdir()] == ["corpus"]
    assert sorted(path.name for path in settings.output.iterdir()) == [
        "config.yaml",
        "dev.zarr",
        "files.json",
        "tokenizer",
        "train.zarr",
    ]


def test_two_runs_keep_apart(settings: CorpusSettings) -> None:
    with (
        sole_writer(settings.output),
        pytest.raises(UserError, match=f"{settings.output} is being written by process {os.getpid()} on "),
    ):
        prepare(settings)
    prepare(settings)


def test_an_empty_split_is_refused(settings: CorpusSettings) -> None:
    (settings.sources[0] / "childes.dev").write_text(" \n\n\t\n")
    with pytest.raises(UserError, match="the dev split has no text: its sources are empty"):
        prepare(settings)


def test_notices(settings: CorpusSettings, capsys: pytest.CaptureFixture[str]) -> None:
    (settings.sources[0] / "childes_part2.train").write_text("More text.")
    prepare(settings.model_copy(update={"vocabulary_size": 16_000}))
    told = capsys.readouterr().err
    assert "childes_part2.train is of no known source" in told
    assert re.search(r"the train split gives \d+ tokens, not 16,000", told)
    assert "without text" not in told


def test_records_without_text_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"text": "some words of text"}, {"text": ""}, {"text": None}, {"text": " \n"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(CorpusSettings(sources=path, output=tmp_path / "corpus", vocabulary_size=260))
    assert f"{path.name} has 3 document(s) without text; they are left out" in " ".join(capsys.readouterr().err.split())
    assert Corpus.open(tmp_path / "corpus", "train").counts.documents == 1


def test_a_word_torn_between_pieces_counts_once(settings: CorpusSettings) -> None:
    (settings.sources[0] / "childes.dev").write_text("x" * 200_000 + " y\n\nz")
    prepare(settings)
    assert sum(Corpus.open(settings.output, split).counts.words for split in ("dev", "test")) == 3


@pytest.fixture
def config(settings: CorpusSettings, tmp_path: Path) -> Path:
    """Its settings in a file."""
    settings.write_yaml(tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def test_the_command_prints_what_the_corpus_holds(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    assert re.search(r"train .*documents .* 2 .*words .* 14 .*bytes .* 54 ", capsys.readouterr().out, re.DOTALL)


def test_a_corpus_with_other_settings_is_not_overwritten(config: Path, refused: Callable[..., str]) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    said = refused("data", "prepare", "--config", config, "--min_frequency", "5")
    assert "min_frequency is 2 there, but 5 is expected" in said


def test_an_option_that_is_not_known_is_named(config: Path, refused: Callable[..., str]) -> None:
    config.write_text("sources: a\noutput: b\nvocabulary: 3\n")
    assert "vocabulary" in refused("data", "prepare", "--config", config)


@pytest.mark.parametrize("arguments", [[], ["tidy"]])
def test_without_a_command_that_is_known_the_commands_are_named(
    arguments: list[str], refused: Callable[..., str]
) -> None:
    assert "choose from fetch, prepare" in refused("data", *arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], ["fetch", "--help"]])
def test_each_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "usage: palenka data" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["babylm-10m", "babylm-100m"])
def test_the_configurations_are_valid(name: str) -> None:
    file = Path(__file__).parents[3] / "configs" / "corpora" / f"{name}.yaml"
    settings = CorpusSettings.model_validate(yaml.safe_load(file.read_text()))
    assert settings.output == Path("runs", "corpora", name)
    assert settings.vocabulary_size == 16_000


@pytest.mark.skipif(not REAL_TEXT.is_dir(), reason=f"needs the BabyLM text in {REAL_TEXT}")
def test_real_text_gives_the_tokens_of_whole_documents(tmp_path: Path) -> None:
    sources = tmp_path / "text"
    sources.mkdir()
    for name in ("simple_wiki", "childes", "gutenberg"):
        (sources / f"{name}.train").symlink_to(REAL_TEXT / "dev" / f"{name}.dev")
    output = tmp_path / "corpus"
    prepare(CorpusSettings(sources=sources, output=output, vocabulary_size=4_000))
    corpus = Corpus.open(output, "train")
    documents: list[str] = []
    for name in ("childes", "gutenberg", "simple_wiki"):
        raw = (REAL_TEXT / "dev" / f"{name}.dev").read_text()
        documents += [tidy(document) for document in re.split(r"\n(?:[ \t]*\n)+", raw) if document.strip()]
    tokenizer: Any = AutoTokenizer.from_pretrained(output / "tokenizer")
    expected = [[1, *ids] for ids in tokenizer(documents).input_ids]
    assert len(corpus.document_starts) == len(documents) > 500
    np.testing.assert_array_equal(corpus.tokens, np.concatenate(expected))
    assert corpus.counts.bytes == sum(len(document.encode()) for document in documents)
    assert corpus.counts.words == sum(len(document.split()) for document in documents)


def tidy(document: str) -> str:
    """What the cleaners of these three sources come to, as one regular expression after the other."""
    text = re.sub(r"^= = = (.*) = = =$", r"\1", document, flags=re.MULTILINE)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ([.,;!?])", r"\1", text)
    return "\n".join(line.strip() for line in text.strip().split("\n"))


KINDS = ["byte_level", "split_by_pattern", "sentence_piece", "unigram", "word_piece", "bare"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_exists(
    kind: str,
    settings: CorpusSettings,
    save_tokenizer_of: Callable[[str, str, Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    contents: Contents,
) -> None:
    given = save_tokenizer_of(kind, (TRAIN + DEV) * 20, tmp_path / "given")
    fields = {"sources": settings.sources, "output": settings.output, "tokenizer": given}
    prepare(CorpusSettings.model_validate(fields))
    corpus = Corpus.open(settings.output, "train")
    tokenizer: Any = AutoTokenizer.from_pretrained(given)
    assert "a document begins with" in capsys.readouterr().err
    documents = ["The cat sat on the mat .", "A dog,  a cat; the mat!\nThe end."]  # not cleaned
    expected = [tokenizer(document).input_ids for document in documents]
    if kind in ("byte_level", "split_by_pattern"):  # it puts nothing around a text, but has an eos
        expected = [[*ids, tokenizer.eos_token_id] for ids in expected]
    assert corpus.tokens.tolist() == [token for tokens in expected for token in tokens]
    assert corpus.document_starts.tolist() == [0, len(expected[0])]
    assert corpus.counts.tokens == len(corpus.tokens)
    assert corpus.vocabulary_size == len(tokenizer)
    assert corpus.tokenizer()(TRAIN).input_ids == tokenizer(TRAIN).input_ids
    before = contents(settings.output)
    prepare(CorpusSettings.model_validate(fields))
    assert contents(settings.output) == before
    other = save_tokenizer_of("word_piece" if kind != "word_piece" else "bare", TRAIN * 20, tmp_path / "other")
    with pytest.raises(UserError, match=r"tokenizer is '\w{64}' there, but '\w{64}' is expected; delete it or choose"):
        prepare(CorpusSettings.model_validate(fields | {"tokenizer": other}))
    with pytest.raises(UserError, match=r"tokenizer is '\w{64}' there, but None is expected"):
        prepare(settings)


def test_what_opens_and_ends_documents_can_be_changed(
    settings: CorpusSettings, save_tokenizer_of: Callable[[str, str, Path], Path], tmp_path: Path
) -> None:
    given = save_tokenizer_of("split_by_pattern", (TRAIN + DEV) * 20, tmp_path / "given")
    words = ["prepare", "--sources", str(settings.sources[0]), "--tokenizer", str(given)]
    plain: Any = AutoTokenizer.from_pretrained(given)
    names = {"true": plain.eos_token, "<|im_end|>": "<|im_end|>", "false": None}
    for number, (start, end) in enumerate([("<|im_start|>", "<|im_end|>"), ("false", "true"), ("false", "false")]):
        output = tmp_path / str(number)
        options = ["--output", str(output), "--document_start", start, "--document_end", end]
        assert main([*words, *options]) == 0
        corpus = Corpus.open(output, "dev")
        text = plain("The zebra quizzes the cat.").input_ids
        opening = plain.convert_tokens_to_ids([start]) if start != "false" else []
        ending = plain.convert_tokens_to_ids([names[end]]) if names[end] else []
        assert corpus.tokens.tolist() == [*opening, *text, *ending]
        assert main([*words, *options]) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tokenizer", "x", "--vocabulary_size", "300"], "which is not learnt; leave vocabulary_size out"),
        (["--vocabulary_size", "1000000000000"], "vocabulary_size is 1000000000000"),
        (["--min_frequency", "1e18"], "min_frequency is 1e18"),
        (["--document_start", "<nope>"], "document_start is '<nope>', but the tokenizer has no such token"),
        (["--tokenizer", "."], "has no tokenizer"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_settings_that_exclude_each_other_or_have_no_bound_are_refused(
    settings: CorpusSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    options: list[str],
    why: str,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    out = tmp_path / "out"
    assert why in refused("data", "prepare", "--sources", settings.sources[0], "--output", out, *options)
    assert not out.exists()


def test_a_token_type_wide_enough_for_the_vocabulary(
    settings: CorpusSettings, save_tokenizer_of: Callable[[str, str, Path], Path], tmp_path: Path
) -> None:
    given = save_tokenizer_of("word_piece", (TRAIN + DEV) * 20, tmp_path / "given")
    content = json.loads((given / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), 70_000)}
    vocabulary["cat"], vocabulary["filler69999"] = 69_999, vocabulary["cat"]
    (given / "tokenizer.json").write_text(json.dumps(content))
    prepare(CorpusSettings(sources=settings.sources, output=settings.output, tokenizer=given))
    corpus = Corpus.open(settings.output, "dev")
    assert corpus.tokens.dtype == np.dtype("<u4")
    assert corpus.vocabulary_size == 70_000
    assert 69_999 in corpus.tokens


def test_a_dev_split_of_a_fraction(settings: CorpusSettings) -> None:
    text = "\n\n".join(f"Sentence number {number} is here." for number in range(300))
    (settings.sources[0] / "deep" / "childes.train").write_text(text)
    fields = settings.as_plain() | {"dev_fraction": 0.2}
    with pytest.raises(UserError, match=r"dev_fraction is 0\.2, but childes\.dev is a dev split; give one of the two"):
        prepare(CorpusSettings.model_validate(fields))
    (settings.sources[0] / "childes.dev").unlink()
    prepare(CorpusSettings.model_validate(fields))
    train, dev, test = (Corpus.open(settings.output, split) for split in ("train", "dev", "test"))
    assert train.counts.documents + dev.counts.documents + test.counts.documents == 300
    assert 30 < dev.counts.documents < 90
    assert 30 < test.counts.documents < 90
    assert dev.counts.tokens == len(dev.tokens)
    decoded = [
        set(re.findall(r"number \d+ ", str(corpus.tokenizer().decode(corpus.tokens)))) for corpus in (train, dev, test)
    ]
    assert sum(map(len, decoded)) == len(set.union(*decoded)) == 300
    assert dev.repeated.in_train == 0


def test_what_is_empty_or_there_twice_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"train": ["a cat", "", " ", "a dog", "a cat"], "dev": ["a dog", "a bird"]}
    for split, lines in texts.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    words = ["prepare", "--sources", *(str(tmp_path / f"{split}.jsonl") for split in texts)]
    assert main([*words, "--output", str(tmp_path / "out"), "--vocabulary_size", "270"]) == 0
    table = capsys.readouterr().out
    for row in (r"documents .* 3 .* 1 .* 1 ", r"empty .* 2 .* 0 ", r"repeated .* 1 .* 0 ", r"also in train .* 1 "):
        assert re.search(row, table)
    assert max(map(len, table.splitlines())) <= 80
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    assert main([*words, "--output", str(tmp_path / "other")]) == 2
    assert "train.jsonl, line 2: it is no JSON object" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_that_opens_every_text_leaves_the_tokens_as_they_are(settings: CorpusSettings) -> None:
    prepare(settings)
    opening = settings.model_copy(update={"output": settings.output.with_name("opening"), "add_bos": True})
    prepare(opening)
    plain, opened = (Corpus.open(each.output, "train") for each in (settings, opening))
    assert opened.tokens.tolist() == plain.tokens.tolist()
    assert opened.tokenizer_hash == plain.tokenizer_hash
    assert opened.fingerprint == plain.fingerprint
    assert opened.tokenizer()("the cat").input_ids == [1, *plain.tokenizer()("the cat").input_ids]
    prepare(opening)  # it is the same corpus
    with pytest.raises(UserError, match="add_bos is True there, but False is expected"):
        prepare(settings.model_copy(update={"output": opening.output}))
