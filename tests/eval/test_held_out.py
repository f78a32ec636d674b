"""Held-out cross-entropy against a float64 loop, and its interval against theory."""

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.stats import t
from transformers import AutoModelForCausalLM

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.eval.__main__ import main
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import SuiteResult, items_file, read_items, read_results
from palenka.eval.suite import Conditions, column
from palenka.ground.errors import UserError
from palenka.ground.records import read_sealed, write_sealed
from palenka.train_student.model.shapes import ModelShape

LENGTH = 16


@pytest.fixture
def dev(corpus_directory: Path) -> Corpus:
    return Corpus.open(corpus_directory, "dev")


def losses_in_float64(directory: Path, corpus: Corpus, length: int) -> list[float]:
    """Mean −log p of the next tokens of each window, from the definition."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    losses = []
    for start in range(0, len(corpus.tokens) - length + 1, length):
        tokens = torch.from_numpy(corpus.tokens[start : start + length].astype(np.int64))
        with torch.inference_mode():
            log_probabilities = model(input_ids=tokens.unsqueeze(0)).logits[0].log_softmax(-1)
        said = [-log_probabilities[place, tokens[place + 1]].item() for place in range(length - 1)]
        losses.append(math.fsum(said) / len(said))
    return losses


def measure_held_out(model: Path, corpus: Corpus, length: int, out: Path, windows: int | None = None) -> SuiteResult:
    conditions = Conditions(split=corpus.split, length=length, windows=windows)
    (result,) = measure(Measurement(model, {"held_out": corpus.directory}, conditions), out).suites
    return result


def read_window_losses(out: Path) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = column(read_items(out)["held_out"], "loss").astype(np.float64)
    return losses


def marked(out: Path) -> SuiteResult:
    """The result in a file with a figure that only one has that is read, not made."""
    record = read_sealed(out)
    record["suites"][0]["figures"]["cross_entropy"]["value"] = -1.0
    write_sealed(out, record)
    return read_results(out).suites[0]


@pytest.mark.parametrize("length", [LENGTH, 7])
def test_it_is_the_mean_of_a_float64_loop_with_the_interval_of_its_units(
    teacher: Path, dev: Corpus, tmp_path: Path, length: int
) -> None:
    out = tmp_path / "deep" / "result.json"
    result = measure_held_out(teacher, dev, length, out)
    expected = losses_in_float64(teacher, dev, length)
    loss = result.figures["cross_entropy"]
    assert result.main == loss
    assert loss.n == len(expected)
    assert not loss.higher_is_better
    assert loss.value == pytest.approx(math.fsum(expected) / len(expected), abs=1e-5)
    # A few documents of some hundred tokens: each begins in a twentieth of its own.
    count = len(dev.document_starts)
    documents = np.searchsorted(dev.document_starts, np.arange(len(expected)) * length, side="right")
    sums, sizes = np.bincount(documents, expected)[1:], np.bincount(documents)[1:]
    error = math.sqrt(sum((sums - loss.value * sizes) ** 2)) / len(expected) * math.sqrt(count / (count - 1))
    interval = t.interval(0.95, count - 1, loc=loss.value, scale=error)
    assert loss.interval == pytest.approx(interval, abs=0.2 * error)
    assert result.facts == {"runs_of_documents": count, "blocks_of_text": 0}
    assert loss.tasks == {}
    assert read_results(out).suites == (result,)


def test_the_loss_of_every_window_lies_beside_it(teacher: Path, dev: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "point-0.5.json"
    result = measure_held_out(teacher, dev, LENGTH, out)
    losses = read_window_losses(out)
    assert float(losses.mean()) == pytest.approx(result.main.value)
    # The windows' order is that of their slots; the loop's is that of the text.
    np.testing.assert_allclose(np.sort(losses), np.sort(losses_in_float64(teacher, dev, LENGTH)), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(
        read_window_losses(out)[:5], _sample_of(teacher, dev, tmp_path / "sample.json", windows=5)
    )


def _sample_of(model: Path, corpus: Corpus, out: Path, windows: int) -> Any:
    measure_held_out(model, corpus, LENGTH, out, windows)
    return read_window_losses(out)


@pytest.mark.parametrize("damage", ["removed", "changed", "of another result"])
def test_losses_that_are_not_those_of_the_result_are_measured_again(
    teacher: Path, dev: Corpus, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "result.json"
    result = measure_held_out(teacher, dev, LENGTH, out)
    path = items_file(out)
    before = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(before[:-1] + b"x" if damage == "changed" else _other_losses(teacher, dev, tmp_path))
    with pytest.raises(UserError, match=r"result\.parquet is missing or not what result\.json was made with"):
        read_window_losses(out)
    marked(out)
    assert measure_held_out(teacher, dev, LENGTH, out) == result
    assert path.read_bytes() == before


def _other_losses(model: Path, corpus: Corpus, folder: Path) -> bytes:
    measure_held_out(model, corpus, LENGTH, folder / "other.json", windows=3)
    return items_file(folder / "other.json").read_bytes()


def test_words_and_bytes_are_those_of_the_predicted_text(teacher: Path, dev: Corpus, tmp_path: Path) -> None:
    result = measure_held_out(teacher, dev, LENGTH, tmp_path / "result.json")
    tokenizer = dev.tokenizer()
    words = num_bytes = 0
    for start in range(0, len(dev.tokens) - LENGTH + 1, LENGTH):
        texts = [
            str(tokenizer.decode([token], skip_special_tokens=True)) for token in dev.tokens[start : start + LENGTH]
        ]
        for before, text in pairwise(texts):  # the tests' corpus is ASCII: tokens are whole characters
            num_bytes += len(text)
            continues = before[-1:].strip() != "" and text[:1].strip() != ""
            words += len(text.split()) - continues
    loss, per_word, per_byte = (result.figures[name] for name in ("cross_entropy", "per_word", "per_byte"))
    assert (per_word.n, per_byte.n) == (words, num_bytes)
    assert loss.n is not None
    nats = loss.value * loss.n * (LENGTH - 1)
    assert per_word.value == pytest.approx(nats / words)
    assert per_byte.value == pytest.approx(nats / num_bytes)
    # But for what no window holds or predicts, and the space before each document, these are the corpus's own counts.
    predicted = loss.n * (LENGTH - 1) / len(dev.tokens)
    assert words == pytest.approx(dev.counts.words * predicted, rel=0.05)
    assert num_bytes == pytest.approx(dev.counts.bytes * predicted, rel=0.05)
    for figure in (per_word, per_byte):
        assert figure.interval is not None
        low, high = figure.interval
        assert low < figure.value < high < 1.3 * low


def test_batches_change_nothing_and_dropout_is_off(
    corpus: Corpus, dev: Corpus, make_shape: Callable[..., ModelShape]
) -> None:
    model = make_shape("gpt2", dropout=0.5).build(corpus, seed=0)
    model.train()
    windows = fixed_windows(dev, LENGTH)
    whole = np.concatenate(list(window_losses(model, windows, dev.vocabulary_size, micro_batch=1000)))
    parts = np.concatenate(list(window_losses(model, windows, dev.vocabulary_size, micro_batch=3)))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    assert model.training
    next(window_losses(model, windows, dev.vocabulary_size, micro_batch=4))  # given up half-way
    assert model.training


def test_the_windows_are_the_same_for_every_model_and_fewer_are_the_first_of_them(dev: Corpus) -> None:
    windows = fixed_windows(dev, LENGTH)
    whole = np.asarray(dev.tokens[: len(dev.tokens) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    assert sorted(map(tuple, windows.tolist())) == sorted(map(tuple, whole.tolist()))
    assert np.array_equal(fixed_windows(dev, LENGTH, at_most=20), windows[:20])


def test_a_result_is_used_again_for_the_same_weights_alone(
    teacher: Path, dev: Corpus, corpus: Corpus, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    result = measure_held_out(teacher, dev, LENGTH, out)
    for model, split, length in (
        (make_teacher("llama", seed=2), dev, LENGTH),
        (teacher, corpus, 32),
        (teacher, dev, 8),
    ):
        measure_held_out(teacher, dev, LENGTH, out)
        read = marked(out)
        assert measure_held_out(teacher, dev, LENGTH, out) == read
        assert measure_held_out(model, split, length, out).main.value > 0
    assert measure_held_out(teacher, dev, LENGTH, out) == result


def test_a_sample_is_never_taken_for_the_whole(teacher: Path, dev: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    sample = measure_held_out(teacher, dev, LENGTH, out, windows=5)
    assert sample.main.n == 5
    assert measure_held_out(teacher, dev, LENGTH, out, windows=5) == sample
    assert (measure_held_out(teacher, dev, LENGTH, out).main.n or 0) > 5
    assert measure_held_out(teacher, dev, LENGTH, out, windows=5) == sample


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_number_are_one_sentence_and_no_file(
    make_teacher: Callable[..., Path], dev: Corpus, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = make_teacher("llama", seed=10)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "results" / "result.json"
    options = ["--data", str(dev.directory), "--out", str(out), "--length", str(LENGTH), "--suite", "held_out"]
    assert main([str(broken), *options]) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(r"model .* gives a window of .* no finite loss; it is broken", told)
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".lock" and path.is_file()]


@pytest.mark.parametrize("content", ["precious", '{"thesis": 1}', "[]", "\N{SNOWMAN}"])
def test_a_file_that_is_something_else_is_left_alone(teacher: Path, dev: Corpus, tmp_path: Path, content: str) -> None:
    out = tmp_path / "thesis.json"
    out.write_text(content, encoding="utf-16" if content.isascii() is False else "utf-8")
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists and holds no results of .*; choose another out"):
        measure_held_out(teacher, dev, LENGTH, out)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"the figures go to a JSON file.*; give FILE.json"):
        measure_held_out(teacher, dev, LENGTH, tmp_path)


def test_an_output_that_cannot_be_written_is_one_sentence(teacher: Path, dev: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*: .*; choose another name, and run"):
        measure_held_out(teacher, dev, LENGTH, tmp_path / "file" / "result.json")


def test_what_does_not_fit_is_refused_with_both_sides(
    teacher: Path, dev: Corpus, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    with pytest.raises(UserError, match="windows have 33 tokens, but model .* has 32 positions"):
        measure_held_out(teacher, dev, 33, out)
    short = make_teacher("llama", max_position_embeddings=10**6)
    with pytest.raises(UserError, match=rf"has {len(dev.tokens)} tokens, fewer than one window of 130000"):
        measure_held_out(short, dev, 130_000, out)
    with pytest.raises(UserError, match="is not a Hugging Face model"):
        measure_held_out(tmp_path, dev, LENGTH, out)
    other = make_teacher("llama", seed=3)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        UserError, match=rf"has another tokenizer \(.*\) than corpus .* \(320 tokens, {dev.tokenizer_hash[:12]}\)"
    ):
        measure_held_out(other, dev, LENGTH, out)
    assert not out.exists()


def test_the_command(teacher: Path, corpus_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    options = ["--data", str(corpus_directory), "--out", str(out), "--length", str(LENGTH), "--suite", "held_out"]
    assert main([str(teacher), *options]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"cross entropy, nats per token {read_results(out).suites[0].main}" in told
    assert main(["--model", str(teacher), *options, "--split", "train"]) == 0
    assert (read_results(out).suites[0].main.n or 0) > 1000
