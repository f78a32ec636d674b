"""Ages of acquisition: curves whose ages are known, and the whole way from a run's revisions to the score."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.eval.__main__ import main
from palenka.eval.age_of_acquisition import _crossing, acquisition, children_ages, model_age
from palenka.eval.learning_curve import read_curve
from palenka.eval.results import read_items
from palenka.ground.errors import UserError
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

MONTHS = np.arange(16, 31)
WORDS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, *range(10, 101, 10)]) * 10**6
CHILDREN = {"dog": 18.5, "ball": 21.0, "water": 24.0, "because": 28.5}
NEVER = {"yesterday": 40.0}


def write_children(folder: Path) -> None:
    """Shares of children that follow a sigmoid whose half is at a known month, with an empty field."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cdi_human.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["word", "category", *map(str, MONTHS)])
        for word, age in (CHILDREN | NEVER).items():
            shares = [f"{1 / (1 + math.exp(-0.4 * (month - age))):.9f}" for month in MONTHS]
            writer.writerow([word, "x", "", *shares[1:]])


def surprisal(place: float, middle: float) -> float:
    """From 15 nats to 5 along the logarithm of the words."""
    return 15 - 10 / (1 + math.exp(-4 * (place - middle)))


def surprisals_of(middle: float) -> NDArray[np.float64]:
    return np.array([surprisal(math.log10(words + 1), middle) for words in WORDS])


def age_of(middle: float) -> float:
    """Where that curve is half-way between guessing and its least value, by bisection, which knows nothing of fits."""
    half_way = (math.log2(300_000) + surprisal(math.log10(WORDS[-1] + 1), middle)) / 2
    low, high = 0.0, 12.0
    for _ in range(80):
        place = (low + high) / 2
        low, high = (place, high) if surprisal(place, middle) > half_way else (low, place)
    return low


def test_the_ages_of_known_curves_are_found(tmp_path: Path) -> None:
    write_children(tmp_path)
    found = children_ages(tmp_path)
    assert found == pytest.approx(CHILDREN, abs=1e-3)
    for middle in (6.5, 7.0, 7.6):
        assert model_age(WORDS, surprisals_of(middle)) == pytest.approx(age_of(middle), abs=1e-3)
    assert model_age(WORDS, np.full(len(WORDS), 18.9)) is None
    assert model_age(WORDS[:2], np.array([9.0, 8.0])) is None


def test_an_age_beyond_all_numbers_of_words_is_none() -> None:
    noise = (12.6, 2.3, 9.9, 17.9, 12.4, 14.3, 0.0, 17.6, 9.9, 2.7, 5.8, 16.3, 5.6, 15.6, 4.0, 16.7, 7.1, 5.0, 14.6)
    assert model_age(WORDS, np.array(noise)) is None


@pytest.mark.parametrize(
    ("size", "slope", "middle", "base", "height"),
    [(3.0, 2.0, 7.0, 0.4, 3.4), (10.0, 9.0, 6.8, -7.0, 3.0), (0.2, 9.0, 6.8, -0.1, 0.09999999999999999)],
)
def test_a_height_just_below_the_top_of_the_sigmoid_has_a_place(
    size: float, slope: float, middle: float, base: float, height: float
) -> None:
    places = np.log10(WORDS + 1)
    curve = size / (1 + np.exp(-slope * (places - middle))) + base
    found = _crossing(places, curve, [1.5 * size, 0.7 * slope, middle, base - 0.05], height)
    # Rounding decides whether the fitted curve comes so high, and where: far behind the middle.
    assert found is None or found > middle + 10 / slope


def test_the_score_is_the_correlation_of_the_ages(tmp_path: Path) -> None:
    write_children(tmp_path)
    middles = dict(zip(CHILDREN, (6.6, 7.4, 6.9, 7.6), strict=True)) | {"yesterday": 7.0, "unknown": 7.0}
    curves = {word: surprisals_of(middle) for word, middle in middles.items()}
    items = [
        pa.table(
            {"task": list(curves), "index": [0] * len(curves), "score_0": [-curve[at] for curve in curves.values()]}
        )
        for at in range(len(WORDS))
    ]
    ages = children_ages(tmp_path)
    score = acquisition(WORDS.tolist(), items, ages)
    expected = float(np.corrcoef([age_of(middles[word]) for word in CHILDREN], list(CHILDREN.values()))[0, 1])
    assert score.value == pytest.approx(expected, abs=1e-3)
    assert score.n == 4
    assert score.interval is not None
    few = acquisition(WORDS.tolist(), [table.slice(0, 2) for table in items], ages)
    assert (few.value, few.n, few.interval) == (0.0, 2, None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation_data" / "full_eval" / "aoa"
    write_children(folder)
    contexts = [
        {"context": f" the {noun} {verb} a "} for noun in ("river", "stone") for verb in ["sees", "keeps", "reads"]
    ]
    many = [contexts[number % len(contexts)] for number in range(20)]
    words = {"dog": many, "ball": [*many, {"context": "the river"}], "water": many, "I": many, "rare": contexts}
    (folder / "cdi_childes.json").write_text("\ufeff" + json.dumps(words), encoding="utf-8")
    return tmp_path / "evaluation_data"


def test_words_are_scored_in_their_contexts_over_a_runs_revisions(
    settings_of_run: Callable[..., TrainSettings], data: Path, tmp_path: Path
) -> None:
    train(settings_of_run(output=tmp_path / "run", revisions=[100, 300, 900], fraction=0.3))
    out = tmp_path / "out" / "run.json"
    assert main([str(tmp_path / "run"), "--revisions", "--babylm", str(data), "--out", str(out)]) == 0
    curve = read_curve(out)
    assert curve.age_of_acquisition is not None
    place = tmp_path / "run" / "revisions" / "chck_300"
    rows = read_items(tmp_path / "out" / "run" / "chck_300.json")["aoa"].to_pylist()
    counts = {word: sum(row["task"] == word for row in rows) for word in ("dog", "ball", "water", "I", "rare")}
    assert counts == {"dog": 20, "ball": 21, "water": 20, "I": 0, "rare": 0}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place).double(), AutoTokenizer.from_pretrained(place)
    for row, context in zip(rows[20:23], ("the river sees a", "the river keeps a", "the river reads a"), strict=True):
        encoded = tokenizer(f"{context} {row['task']}", return_offsets_mapping=True)
        logits = model(torch.tensor([encoded.input_ids])).logits[0].detach().log_softmax(-1)
        scored = [at for at, (_, end) in enumerate(encoded.offset_mapping) if end > len(context) + 1]
        expected = sum(float(logits[at - 1, encoded.input_ids[at]]) for at in scored)
        assert row["score_0"] == pytest.approx(expected, abs=1e-4)
    written = tmp_path / "out" / "results" / "run" / "main" / "zero_shot" / "causal" / "AoA_word" / "surprisal.json"
    found = json.loads(written.read_text())["results"]
    assert len(found) == 3 * 61
    assert {row["step"]: row["word_count"] for row in found} == {"chck_100": 100, "chck_300": 300, "chck_900": 900}
    assert found[61 + 20]["surprisal"] == pytest.approx(-rows[20]["score_0"])
    assert (found[81]["target_word"], found[81]["context_id"], found[81]["context"]) == (
        "ball",
        0,
        " the river sees a".strip(),
    )


def test_what_children_say_is_read_before_any_model_is(
    settings_of_run: Callable[..., TrainSettings], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings_of_run(output=tmp_path / "run", revisions=[100, 300], fraction=0.1))
    (data / "full_eval" / "aoa" / "cdi_human.csv").unlink()
    out = tmp_path / "out" / "run.json"
    assert main([str(tmp_path / "run"), "--revisions", "--babylm", str(data), "--out", str(out)]) == 2
    assert "has no CSV of the words that children say" in " ".join(capsys.readouterr().err.split())
    assert not out.parent.exists()


def test_data_of_another_form_is_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    folder = data / "full_eval" / "aoa"
    (folder / "cdi_human.csv").unlink()
    with pytest.raises(UserError, match="has no CSV of the words that children say"):
        children_ages(folder)
    (folder / "cdi_human.csv").write_text("word,sixteen\ndog,0.5\n")
    with pytest.raises(UserError, match="has no column of a month from 16 to 30"):
        children_ages(folder)
    for content in ("[]", '{"dog": [{"text": "a"}]}', "{"):
        (folder / "cdi_childes.json").write_text(content)
        words = [
            "--suite",
            "aoa",
            "--protocol",
            "babylm-2025",
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "x.json"),
        ]
        assert main([str(teacher), *words]) == 2
