"""Bad input, whatever it is, ends with exit status 2 and one sentence: no traceback, no hang, no abort."""

import contextlib
import io
import json
import os
import resource
import shutil
import string
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from palenka.__main__ import main
from palenka.data.corpus import Corpus

SECONDS = 10
MOST_BYTES = 2 * 2**30
"""Of this process while a command refuses its input."""
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

RUN: dict[str, Any] = {
    "corpus": "none/corpus",
    "output": "none/run",
    "model": {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "windows": {"length": 32},
    "epochs": 2,
}
CORPUS = {"sources": "none/text", "output": "none/corpus", "vocabulary_size": 300}


def peak_bytes() -> int:
    """The most memory that this process has had; other tests may have needed more."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outcome(*arguments: str) -> str:
    """What a command says that has to be refused: one sentence, soon, without much memory."""
    said, printed = io.StringIO(), io.StringIO()
    began, before = time.perf_counter(), peak_bytes()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = main(list(arguments))
    assert time.perf_counter() - began < SECONDS
    assert peak_bytes() <= max(before, MOST_BYTES)
    told = said.getvalue()
    assert status == 2, (status, told, printed.getvalue())
    assert told.count("error: ") == 1
    sentence = told.partition("error: ")[2]
    assert sentence.endswith("\n") and sentence.count("\n") == 1, sentence  # noqa: PT018
    assert "Traceback" not in told
    return sentence


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
TEXTS = {
    "a date": "output: 2024-01-01\ncorpus: 2024-13-45",
    "no number": "seed: !!int x",
    "no real number": "fraction: !!float y",
    "a moment": "output: !!timestamp x",
    "bytes": "output: !!binary '%'",
    "a set": "trackers: !!set {a}",
    "a type of Python": "output: !!python/object/apply:os.system [ls]",
    "nested": "a: " + "[" * 100_000,
    "nested and closed": "a: " + "[" * 5_000 + "]" * 5_000,
    "nested mappings": "{a: " * 2_000,
    "nested blocks": "".join(" " * depth + "a:\n" for depth in range(2_000)),
    "aliases": BOMB + "corpus: *k",
    "a cycle": "model: &m {x: *m}",
    "digits": f"seed: {'9' * 5_000}",
    "digits of a real number": f"fraction: {'9' * 5_000}.0",
    "not a number": "fraction: .nan",
    "infinite": "optimizer: {learning_rate: .inf}",
    "a huge exponent": "fraction: 1.0e+99999",
    "NUL": 'output: "a\\0b"',
    "half a character": 'output: "\\ud800"',
    "no character": 'output: "\\U00110000"',
    "a line break": 'output: "a\\nb"',
    "keys that are no text": "1: 2\n[a]: b\n? {x: y}\n: z",
    "no key": "null: 1\n~: 2",
    "a list": "[1, 2]",
    "a word": "word",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2",
    "an anchor of nothing": "output: *x",
    "tabs": "\toutput: x",
    "a merge of nothing": "<<: 3",
    "a merge key twice": "<<: {a: 1}\n<<: {b: 2}",
    "empty paths": "corpus: ''\noutput: ''",
    "markup": "'[/x]': '[/y]'",
    "truth for a number": "epochs: true",
    "a home of nobody": "output: ~nobody-at-all/x\ncorpus: $NOT_SET_ANYWHERE",
}
NUMBERS = {
    "epochs": 10**9,
    "windows.length": 10**8,
    "windows.views": 10**18,
    "model.num_hidden_layers": 10**5,
    "model.hidden_size": 10**12,
    "model.num_attention_heads": 10**12,
    "model.intermediate_size": 10**12,
    "model.max_position_embeddings": 10**12,
    "global_batch": 10**12,
    "micro_batch": 10**12,
    "seed": 10**30,
    "validation.windows": 10**30,
    "validation.every": 10**30,
    "log_every": 10**30,
    "checkpoint_every": 10**30,
    "optimizer.learning_rate": 1e400,
    "optimizer.warmup_steps": 10**30,
    "objective.contrastive.width": 10**12,
    "objective.auxiliary.width": 10**12,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_yaml_of_any_kind_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    others = {name: value for name, value in RUN.items() if f"{name}:" not in text}
    for before in ("", yaml.safe_dump(others)):
        file.write_bytes(f"{before}{text}\n".encode("utf-8", "surrogatepass"))
        outcome("train", str(file))
    for program in (("data", "prepare"), ("cache", "run"), ("study",), ("grid",), ("parameters",)):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        outcome(*program, str(file))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"output: \xe9", b"\x00", b"a: 1\x00", b"x" * 2**21])
def test_bytes_that_are_no_text_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    outcome("train", str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(("option", "number"), NUMBERS.items())
def test_numbers_have_bounds(option: str, number: float, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    assert option.split(".")[-1] in outcome("train", str(tmp_path / "run.yaml"), f"--{option}", str(number))


@pytest.mark.parametrize("seeds", [[str(2**53)], [str(2**32)], ["1", "-1"], ["1" * 30]])
def test_numbers_in_lists_have_bounds(seeds: list[str], tmp_path: Path) -> None:
    said = outcome(
        "eval", "none", "--suite", "glue", "--data", "none", "--out", str(tmp_path / "x.json"), "--seeds", *seeds
    )
    assert "seeds" in said
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    assert "revisions" in outcome("train", str(tmp_path / "run.yaml"), "--revisions", seeds[-1] * 4)


def test_a_vocabulary_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(CORPUS))
    assert "vocabulary_size" in outcome("data", "prepare", str(tmp_path / "corpus.yaml"), "--vocabulary_size", "1" * 13)


@pytest.mark.parametrize(
    "name", ["fifo", "/dev/full", "/dev/zero", "/dev/null", "/", ".", "", "missing", "a\0b", "x" * 300]
)
def test_what_is_no_file_is_not_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    outcome("train", name)
    outcome("eval", "compare", name, name)
    outcome("eval", "export", name)
    outcome("report", name, "--out", "report.html")
    outcome("export", name, "--out", "exported")
    outcome("eval", name, "--suite", "minimal_pairs", "--data", name, "--out", "x.json")
    outcome("cache", "inspect", name)


@pytest.mark.parametrize("name", ["fifo", "/dev/full", "/", ".", "", "a\0b", "x" * 300, "file/x", "[x]/"])
def test_what_cannot_be_written_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("file").touch()
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.train").write_text("a few words\n" * 50)
    said = [outcome("eval", "export", "--out", name)] if name != "[x]/" else []
    if name not in ("[x]/",):
        said.append(outcome("data", "prepare", "--sources", str(text), "--output", name, "--vocabulary_size", "260"))
    assert all("Errno" not in sentence for sentence in said)
    assert {path.name for path in tmp_path.iterdir()} == {"fifo", "file", "text"}
    assert Path("/dev/full").is_char_device()


def test_a_full_output_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    with open("/dev/full", "w") as full, contextlib.redirect_stderr(said):  # noqa: PTH123 - a device
        monkeypatch.setattr("sys.stdout", full)
        assert main(["eval", "export"]) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert "No space left on device; make room" in said.getvalue()


LINES = [
    b"[" * 100_000,
    b'{"sentence_good": ' + b"[" * 100_000,
    b'{"sentence_good": "a", "sentence_bad": ' + b"9" * 5_000 + b"}",
    b'{"sentence_good": "a", "sentence_bad": 1e999}',
    b'{"sentence_good": "\\ud800", "sentence_bad": "b"}',
    b'{"sentence_good": "\xff", "sentence_bad": "b"}',
    b"NaN",
    b"\x00",
    b'{"sentence_good": "a"}',
    b'{"sentence_good": "", "sentence_bad": "b"}',
    b'"a"',
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_lines_of_pairs_are_refused_by_file_and_line(line: bytes, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a.jsonl").write_bytes(b'{"sentence_good": "a", "sentence_bad": "b"}\n' + line + b"\n")
    arguments = (str(teacher), "--suite", "minimal_pairs", "--data", str(tmp_path / "pairs"))
    assert "a.jsonl:2" in outcome("eval", *arguments, "--out", str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": 1e999}', f'{{"a": {"9" * 5_000}}}', '{"a": NaN}', '{"suites": "\\ud800"}', "\x00", "[1]"],
)
def test_records_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    for name in ("result.json", "grid.json", "seconds.json", "x.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "points").mkdir()
    outcome("eval", "export", str(tmp_path / "x.json"))
    outcome("eval", "compare", str(tmp_path / "x.json"), str(tmp_path / "x.json"))
    outcome("report", str(tmp_path), "--out", str(tmp_path / "report.html"))
    outcome("export", str(tmp_path), "--out", str(tmp_path / "exported"))


MODELS = [
    ("config.json", "num_hidden_layers", 10**5, "num_hidden_layers 100,000, but 1,000 at most"),
    ("config.json", "attention_dropout", 1e9, "attention_dropout 1000000000.0, but it should be a probability"),
    ("generation_config.json", "bos_token_id", 2**70, "cannot generate"),
    ("tokenizer_config.json", "model_max_length", [1], "the tokenizer in "),
]


@pytest.mark.parametrize(("name", "field", "value", "told"), MODELS)
def test_files_of_models_are_refused(
    name: str, field: str, value: Any, told: str, teacher: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(teacher, model)
    content = json.loads((model / name).read_text()) | {field: value}
    (model / name).write_text(json.dumps(content))
    assert told in outcome("generate", str(model), "--prompt", "a", "--tokens", "2", "--device", "cpu")


def test_fields_of_configurations_have_bounds(corpus: Corpus, tmp_path: Path) -> None:
    run = RUN | {"corpus": str(corpus.directory), "output": str(tmp_path / "run")}
    for field in ({"num_hidden_layers": 10**5}, {"attention_dropout": 7.0}):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run | {"model": {"model_type": "qwen3", **field}}))
        assert f"qwen3 has {next(iter(field))}" in outcome("train", str(tmp_path / "run.yaml"))


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "[bold]x[" / "[/x].yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"model": RUN["model"]}))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["parameters", str(file)]) == 0
    assert "[/x].yaml" in printed.getvalue().replace("\n", "").replace(" ", "").replace("│", "")


WORDS = st.text(st.characters(blacklist_categories=()), max_size=12)
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KEYS = [*RUN, "teachers", "objective", "optimizer", "validation", "fraction", "plugins", "trackers", "device"]


@QUICK
@given(key=st.sampled_from(KEYS) | WORDS, value=VALUES)
@example(key="plugins", value=["..x"])
@example(key="plugins", value=[1, None])
@example(key="plugins", value={"a": 1})
@example(key="teachers", value={"..": {"cache": "x"}})
@example(key="teachers", value={"t": {"source": "live", "ensemble": {"../a": "x", "b": "y"}}})
@example(key="windows", value={"length": 2**64})
@example(key="objective", value={"hidden": {"weight": 1e308, "kind": []}})
def test_settings_of_any_kind_are_refused_in_a_sentence(key: str, value: Any, tmp_path: Path) -> None:
    # The corpus is nowhere, so that what is well-formed is refused for that.
    (tmp_path / "run.yaml").write_text(json.dumps(RUN | {key: value, "corpus": "none/corpus"}))
    outcome("train", str(tmp_path / "run.yaml"))


@QUICK
@given(text=st.text(st.characters(blacklist_categories=()), max_size=60))
@example(text="a: &a\n  *a")
def test_any_text_is_refused_as_a_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome("data", "prepare", str(tmp_path / "any.yaml"))


OPTION = st.sampled_from(["--epochs", "--model", "--windows.length", "--teachers.t", "--seed", "--plugins", "--config"])


@QUICK
@given(words=st.lists(OPTION | WORDS | st.text(string.printable, max_size=8).map("--".__add__), max_size=4))
@example(words=["--teachers.t.cache"])
@example(words=["--="])
@example(words=["--"])
@example(words=["--model={a: [}"])
@example(words=["--objective", "[[[["])
@example(words=["--teachers", "&a {x: *a}"])
def test_options_of_any_kind_are_refused_in_a_sentence(words: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps(RUN))
    if {"-h", "--help"} & set(words):
        return
    outcome("train", str(tmp_path / "run.yaml"), *words)


@QUICK
@given(
    line=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps({"sentence_good": text}).encode())
)
def test_lines_of_any_kind_are_refused(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line)
    outcome("eval", "none", "--suite", "minimal_pairs", "--data", str(tmp_path), "--out", str(tmp_path / "x.json"))
