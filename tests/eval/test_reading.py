"""Reading times against the protocol's own words: one word at a time in float64, regressions by formula."""

import csv
import importlib.util
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.eval.__main__ import main
from palenka.eval.measure import Measurement, measure
from palenka.eval.reading import encode_word
from palenka.eval.reading_scores import EYE_TRACKING, NUMBERS, SELF_PACED, ReadingScores
from palenka.eval.results import read_items
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError

DATA = Path(__file__).parents[3] / "shared" / "data" / "evaluation" / "reading" / "reading_data.csv"
VERBS = ("sees", "keeps", "reads", "crosses")


@pytest.fixture(scope="module")
def model(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("llama", seed=1, max_position_embeddings=256)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def made_rows(sentences: int = 30) -> list[dict[str, str]]:
    """Words of made sentences with times that are noise; one sentence begins with the word None."""
    draw = np.random.RandomState(0)
    rows = []
    for sentence in range(sentences):
        words = ["None" if sentence == 3 else "the", "river", VERBS[sentence % 4], "the", "stône", "."]
        for place in range(1, len(words)):
            numbers = {
                name: f"{value:.3f}" for name, value in zip(NUMBERS, 200 + 50 * draw.rand(len(NUMBERS)), strict=True)
            }
            context = [" ".join(words[:until]) for until in (place, place - 1)]
            row = numbers | {
                "item": "" if context[0] == "None" else context[0],
                "word": words[place],
                "prev_item": context[1],
                "prev_word": words[place - 1] if place > 1 else "",
                "sent_id": str(sentence),
                "context_length": str(place),
                "prev_length": numbers["prev_length"] if place > 1 else "-1",
                "Subtlex_log10": "" if sentence == 5 else numbers["Subtlex_log10"],
            }
            rows.append(row)
    return rows


@cache
def loaded(directory: Path) -> tuple[Any, Any]:
    """The model in float64, and its tokenizer."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    return model, AutoTokenizer.from_pretrained(directory)


def surprisal(directory: Path, context: str, word: str) -> float:
    """Minus the log of the product of each token's probability after the text before it, encoded anew."""
    model, tokenizer = loaded(directory)
    total, text = 0.0, context
    for place, token in enumerate(tokenizer(word, add_special_tokens=False)["input_ids"]):
        piece = tokenizer.decode(token)
        target = token if place == 0 else tokenizer(piece, add_special_tokens=False)["input_ids"][0]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        total -= logits.log_softmax(-1)[target].item()
        text += piece
    return total


def by_formula(frame: Any) -> list[float]:
    """The scores by statsmodels' formulas, as the protocol writes them; the means first."""
    import statsmodels.formula.api as smf

    def score(measure: str, names: list[str]) -> float:
        found = frame[[measure, *names, "pred"]].dropna()
        products = [f"{one}:{other}" for place, one in enumerate(names) for other in names[place + 1 :]]
        formula = f"{measure} ~ {' + '.join([*names, *products])}"
        without, within = (smf.ols(each, found).fit().rsquared for each in (formula, f"{formula} + pred"))
        return float(100 * (within - without) / (1 - without))

    names = ["Subtlex_log10", "length", "context_length"]
    eyes = sum(score(measure, names) for measure in EYE_TRACKING) / len(EYE_TRACKING)
    self_paced = score(SELF_PACED, [*names, "prev_length", "prev_pred"])
    return [(eyes + self_paced) / 2, eyes, self_paced]


def check(path: Path, model: Path, out: Path) -> pa.Table:
    """Measure a file, and hold surprisals and scores against the references; returns the items."""
    import pandas as pd

    (result,) = measure(Measurement(model, {"reading": path.parent}, Conditions()), out).suites
    items = read_items(out)["reading"]
    frame = pd.read_csv(path, dtype={"item": str})
    frame["item"] = frame["item"].fillna("None")
    frame["pred"] = [surprisal(model, item, word) for item, word in zip(frame["item"], frame["word"], strict=True)]
    frame["prev_pred"] = [
        surprisal(model, row.prev_item, row.prev_word) if isinstance(row.prev_item, str) else math.nan
        for row in frame.itertuples()
    ]
    for name, column in (("surprisal", "pred"), ("prev_surprisal", "prev_pred")):
        np.testing.assert_allclose(items.column(name).to_numpy(), frame[column], atol=5e-5)
    found = [result.figures[name].value for name in ("reading", "eye_tracking", "self_paced")]
    assert found == pytest.approx(by_formula(frame), abs=5e-5)
    assert result.main.stderr is not None
    assert result.main.interval is not None
    return items


def test_made_words_are_scored_as_the_protocol_has_it(model: Path, tmp_path: Path) -> None:
    items = check(write(tmp_path / "reading" / "reading_data.csv", made_rows()), model, tmp_path / "r.json")
    # The first word of each sentence has none before it; and None, as a data frame reads it, is no word.
    assert np.isnan(items.column("prev_surprisal").to_numpy()).sum() == 31


def test_real_words_are_scored_as_the_protocol_has_it(model: Path, tmp_path: Path) -> None:
    if not DATA.is_file():
        pytest.skip(f"needs the evaluation data in {DATA}")
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["sent_id"]) % 10 == 4]
    assert any(row["item"] == "" for row in rows)
    check(write(tmp_path / "reading" / "reading_data.csv", rows), model, tmp_path / "r.json")


def test_tokens_that_are_parts_of_characters_are_scored_by_what_stands_for_them(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert any("�" in tokenizer.decode(token) for token in tokenizer.encode("€", add_special_tokens=False))
    from palenka.data.model_files import load_model
    from palenka.eval.scoring import log_likelihoods

    ours = load_model(model, torch.device("cpu"))
    for word in ("€", "stône", "the"):
        found = -log_likelihoods(ours, encode_word(tokenizer, "the river", word), False).sum()
        assert found == pytest.approx(surprisal(model, "the river", word), abs=5e-5)


def items_with(effect: float, seed: int) -> pa.Table:
    """Items of 60 sentences whose times depend on the surprisal by so much, beside noise that sentences share."""
    draw = np.random.RandomState(seed)
    sentences = np.repeat(np.arange(60), 6)
    columns = {name: draw.rand(360) for name in NUMBERS} | {"sent_id": sentences}
    surprisals = draw.rand(360) * 5
    for name in (*EYE_TRACKING, SELF_PACED):
        columns[name] = effect * surprisals + draw.normal(size=360) + draw.normal(size=60)[sentences]
    columns |= {"surprisal": surprisals, "prev_surprisal": draw.rand(360), "index": np.arange(360)}
    return pa.table({"task": ["reading"] * 360, **columns})


def test_standard_errors_are_those_of_many_samples() -> None:
    found, errors = [], []
    for seed in range(40):
        table = items_with(0.3, seed)
        found.append(ReadingScores(table).of(np.ones(360, dtype=np.bool_))[0])
        if seed < 3:
            figure = SUITES["reading"].figures(table).main
            assert figure.stderr is not None
            errors.append(figure.stderr)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.35)


def test_two_models_are_compared_sentence_by_sentence() -> None:
    ours = items_with(0.3, 0)
    shuffled = np.random.RandomState(1).permutation(360)
    theirs = ours.set_column(ours.column_names.index("surprisal"), "surprisal", ours.column("surprisal").take(shuffled))
    row = SUITES["reading"].compare(ours, theirs)
    first, second = (SUITES["reading"].figures(items).main.value for items in (ours, theirs))
    assert [row["first"], row["second"], row["difference"]] == pytest.approx([first, second, first - second])
    assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
    assert row["p_value"] < 0.01
    assert SUITES["reading"].compare(ours, ours)["p_value"] == 1


def test_the_command_line_shows_all_figures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "reading" / "reading_data.csv", made_rows()).parent
    assert main([str(model), "--suite", "reading", "--data", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert "self paced, % of variance left" in printed
    suite = SUITES["reading"]
    items = read_items(tmp_path / "r.json")["reading"]
    (path, content), *_ = suite.predictions(folder, suite.read(folder, Conditions()), items).items()
    assert path == "zero_shot/causal/reading/predictions.json"
    (first, *_), count = content["reading"]["predictions"], len(content["reading"]["predictions"])
    assert (count, first["id"], first["pred"]) == (150, 0, items.column("surprisal")[0].as_py())
    assert math.isnan(first["prev_pred"])
    assert json.loads(json.dumps(content))["reading"]["predictions"][1]["prev_pred"] > 0


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made_rows(2)
    for change, told in (
        ({"length": "long"}, r"csv:2: length is 'long', but it should be a number or empty"),
        ({"RTgopast": "inf"}, r"csv:2: RTgopast is inf, but it should be a finite number"),
        ({"word": ""}, r"csv:2: word is '', but it should be a text that is not empty"),
    ):
        write(tmp_path / "a.csv", [rows[0] | change, *rows[1:]])
        with pytest.raises(UserError, match=told):
            SUITES["reading"].read(tmp_path, Conditions())
    write(tmp_path / "a.csv", [{name: value for name, value in row.items() if name != "RTgopast"} for row in rows])
    with pytest.raises(UserError, match="has no field RTgopast; get reading_data.csv again"):
        SUITES["reading"].read(tmp_path, Conditions())
    table = items_with(0.3, 0)
    with pytest.raises(UserError, match="of 6 words is known .* 8 coefficients; give the whole reading_data.csv"):
        ReadingScores(table.slice(0, 6)).of(np.ones(6, dtype=np.bool_))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"reading needs statsmodels, not installed here; pip install 'palenka\[reading\]'"
    ):
        SUITES["reading"].read(tmp_path, Conditions())
