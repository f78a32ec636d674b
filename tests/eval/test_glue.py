"""Fine-tuning by the recipe: metrics against scikit-learn, padding that changes nothing, one step by hand, resuming."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.data.model_files import load_model
from palenka.eval.__main__ import main
from palenka.eval.compare import compare
from palenka.eval.glue.classifier import Classifier, batch_of, encode_examples
from palenka.eval.glue.finetune import examples_read, fine_tune, parts_of, predict, rate_over
from palenka.eval.glue.metrics import accuracy, difference_over_seeds, f1, mcc, mean_over_seeds
from palenka.eval.glue.tasks import TASKS, Example, GlueTask, TaskData, read_task
from palenka.eval.model import EvaluatedModel
from palenka.eval.results import read_items, read_results
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError

DATA = Path(__file__).parents[3] / "shared" / "data" / "evaluation" / "glue_filtered"
NOUNS = ("teacher", "student", "river", "stone", "garden", "token")


@pytest.fixture(scope="module")
def model(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("gpt2", seed=1, max_position_embeddings=128)


def rows_of(task: str, count: int, seed: int) -> list[dict[str, object]]:
    """Made rows of a task's fields, whose label tells whether the first text has a word."""
    draw = np.random.RandomState(seed)
    fields = {
        "boolq": ("question", "passage"),
        "mnli": ("premise", "hypothesis"),
        "mrpc": ("sentence1", "sentence2"),
        "multirc": ("question", "answer", "paragraph"),
        "qqp": ("question1", "question2"),
        "rte": ("sentence1", "sentence2"),
        "wsc": ("span2_text", "span1_text", "text"),
    }[task]
    rows: list[dict[str, object]] = []
    for number in range(count):
        label = int(draw.randint(3 if task == "mnli" else 2))
        texts = [" ".join(["the", NOUNS[3 * label % 6], "sees", NOUNS[draw.randint(6)]])] * len(fields)
        rows.append(dict(zip(fields, texts, strict=True)) | {"label": label, "idx": number})
    return rows


def write_task(folder: Path, task: str, train: int, valid: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, count, seed in (("train", train, 0), ("valid", valid, 1)):
        lines = [json.dumps(row) + "\n" for row in rows_of(task, count, seed)]
        (folder / f"{task}.{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    folder = tmp_path / "glue_filtered"
    for task in ("rte", "mrpc", "mnli"):
        write_task(folder, task, 40, 30)
    return folder


LABELS = st.integers(2, 3).flatmap(
    lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=40)
)


@settings(max_examples=60)
@given(LABELS)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    weights = np.ones(len(labels))
    assert accuracy(labels, predictions, weights) == pytest.approx(accuracy_score(labels, predictions))
    expected = f1_score(labels == 1, predictions == 1, zero_division=0)
    assert f1(labels, predictions, weights) == pytest.approx(expected)
    if len(np.unique(np.concatenate([labels, predictions]))) > 1:
        assert mcc(labels, predictions, weights) == pytest.approx(matthews_corrcoef(labels, predictions))
    repeated = np.repeat(np.arange(len(labels)), 3)
    for metric in (accuracy, f1, mcc):
        thrice = float(metric(labels[repeated], predictions[repeated], np.ones(len(repeated))))
        both = metric(labels, predictions, np.stack([weights, 3 * weights])).tolist()
        assert both == pytest.approx([thrice, thrice])


@pytest.mark.parametrize("metric", [accuracy, f1, mcc])
def test_errors_are_those_of_drawing_examples_and_seeds_anew(metric: Any) -> None:
    draw = np.random.RandomState(0)
    found = []
    for _ in range(300):
        labels = draw.randint(2, size=200)
        rates = 0.7 + 0.05 * draw.normal(size=4)
        predictions = np.where(draw.random_sample((200, 4)) < rates, labels[:, None], 1 - labels[:, None])
        known = mean_over_seeds(metric, labels, predictions)
        found.append((known.value, known.error, known.deviation or 0.0))
    values, errors, deviations = np.array(found).T
    # Examples that are right or wrong by chance count in the seeds' deviation too: the error is a little too large.
    assert 1.0 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.5
    assert np.mean(deviations) > 0.04
    alone = mean_over_seeds(metric, labels, predictions[:, :1])
    assert alone.deviation is None
    assert difference_over_seeds(metric, labels, predictions, predictions).value == 0
    other = difference_over_seeds(metric, labels, predictions[:, :2], predictions[:, 2:])
    expected = [mean_over_seeds(metric, labels, part).value for part in (predictions[:, :2], predictions[:, 2:])]
    assert other.value == pytest.approx(expected[0] - expected[1])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_padding_changes_nothing(architecture: str, make_teacher: Callable[..., Path]) -> None:
    directory = make_teacher(architecture, seed=2, max_position_embeddings=128)
    torch.manual_seed(0)
    classifier = Classifier(load_model(directory, torch.device("cpu")), 3).eval()
    texts = [tuple(range(5, 5 + length)) for length in (1, 9, 40, 3, 17)]
    together = classifier(batch_of(texts, torch.device("cpu")))
    alone = torch.cat([classifier(batch_of([text], torch.device("cpu"))) for text in texts])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    head: Any = classifier.head
    bare: Any = AutoModelForCausalLM.from_pretrained(directory).double().base_model.eval()
    for text, logits in zip(texts, together, strict=True):
        states = bare(torch.tensor([text])).last_hidden_state[0, -1].float()
        torch.testing.assert_close(logits, head(states), atol=1e-5, rtol=0)
    # What a tokenizer says of its padding is never asked.
    encoded = []
    for side in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
        encoded.append(encode_examples(tokenizer, [Example("the river", "sees", 0), Example("it", "the stone", 1)], 9))
    assert encoded[0] == encoded[1]


@pytest.mark.parametrize("task", list(TASKS))
def test_texts_are_those_of_the_recipe(task: Any, tmp_path: Path, model: Path) -> None:
    write_task(tmp_path, task, 3, 2)
    row = rows_of(task, 3, 0)[0]
    first, second = {
        "boolq": (row.get("question"), row.get("passage")),
        "mnli": (row.get("premise"), row.get("hypothesis")),
        "mrpc": (row.get("sentence1"), row.get("sentence2")),
        "multirc": (f"Question: {row.get('question')} Answer: {row.get('answer')}", row.get("paragraph")),
        "qqp": (row.get("question1"), row.get("question2")),
        "rte": (row.get("sentence1"), row.get("sentence2")),
        "wsc": (f'Does "{row.get("span2_text")}" refer to "{row.get("span1_text")}" in this passage?', row.get("text")),
    }[task]
    data = read_task(tmp_path, task, None)
    assert data.train[0] == (first, second, row["label"])
    assert (len(data.train), len(data.valid), len(read_task(tmp_path, task, 1).train)) == (3, 2, 1)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    expected = tokenizer([first], [second], truncation=True, max_length=12)["input_ids"][0]
    assert encode_examples(tokenizer, data.train[:1], 12) == [tuple(expected)]


def test_real_files_are_read_whole() -> None:
    if not DATA.is_dir():
        pytest.skip(f"needs the evaluation data in {DATA}")
    sizes = {
        "mnli": (10_000, 4_908),
        "mrpc": (3_668, 204),
        "qqp": (10_000, 20_215),
        "rte": (2_490, 139),
        "wsc": (554, 52),
    }
    assert {task: tuple(map(len, read_task(DATA, task, None))) for task in sizes} == sizes  # type: ignore[arg-type]


def test_the_rate_warms_up_and_ends_at_a_tenth() -> None:
    rate = rate_over(200)
    assert [rate(step) for step in (0, 6, 12)] == [0, 0.5, 1]
    assert rate(106) == pytest.approx(0.55)
    assert rate(200) == pytest.approx(0.1)
    assert rate_over(1)(0) == 1


def test_an_epoch_is_the_recipe_written_out(model: Path, glue: Path) -> None:
    """A plain loop in float32: the same head, order and steps give the same predictions and scores."""
    task = GlueTask("{sentence1}", "{sentence2}", batch=8, epochs=3)
    data = read_task(glue, "rte", None)
    found = fine_tune(EvaluatedModel(model), task, data, seed=7)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(7)
    pretrained: Any = AutoModelForCausalLM.from_pretrained(model)
    head = torch.nn.Sequential(
        torch.nn.LayerNorm(16, elementwise_affine=False),
        torch.nn.Linear(16, 16),
        torch.nn.GELU(),
        torch.nn.LayerNorm(16, elementwise_affine=False),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(16, 2),
    )
    body = pretrained.base_model
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_over(15))
    order, scores = np.random.RandomState(7), []

    def logits_of(examples: list[Example]) -> torch.Tensor:
        encoded = tokenizer(
            [e.first for e in examples], [e.second for e in examples], padding=True, return_tensors="pt"
        )
        states = body(**encoded).last_hidden_state
        return head(states[torch.arange(len(examples)), encoded["attention_mask"].sum(1) - 1])  # type: ignore[no-any-return]

    best: list[int] = []
    for _ in range(3):
        body.train()
        head.train()
        shuffled = order.permutation(40)
        for start in range(0, 40, 8):
            batch = [data.train[place] for place in shuffled[start : start + 8]]
            loss = torch.nn.functional.cross_entropy(logits_of(batch), torch.tensor([e.label for e in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        body.eval()
        head.eval()
        with torch.inference_mode():
            predictions = logits_of(data.valid).argmax(-1).tolist()
        scores.append(float(np.mean([p == e.label for p, e in zip(predictions, data.valid, strict=True)])))
        best = predictions if scores[-1] > max([-1.0, *scores[:-1]]) else best
    assert found.scores == pytest.approx(scores)
    assert found.predictions == best


def test_a_model_learns_a_task_and_reads_what_it_says(model: Path, glue: Path) -> None:
    task = GlueTask("{sentence1}", "{sentence2}", batch=4, epochs=30)
    data = read_task(glue, "rte", None)
    told: list[int] = []
    found = fine_tune(EvaluatedModel(model), task, data, 0, told.append)
    assert sum(told) == examples_read(task, data) == 30 * 70
    assert max(found.scores) > found.scores[0] + 0.1
    assert np.mean([p == e.label for p, e in zip(found.predictions, data.valid, strict=True)]) == max(found.scores)
    again = fine_tune(EvaluatedModel(model), task, data, 0)
    assert again == found
    few = TaskData(data.train[:3], data.valid[:2])
    assert len(fine_tune(EvaluatedModel(model), GlueTask("", "", epochs=1), few, 0).predictions) == 2
    assert examples_read(GlueTask("", "", epochs=1), few) == 5


def test_a_step_in_passes_has_every_text_once_and_the_same_gradient(model: Path) -> None:
    texts = [tuple(range(3, 3 + length)) for length in (5, 90, 7, 40, 41, 6, 88, 5)]
    chosen = np.array([7, 1, 0, 6, 3, 2])
    parts = parts_of(chosen, texts, 180)
    assert [part.tolist() for part in parts] == [[1, 6], [3, 2, 7, 0]]
    assert [part.tolist() for part in parts_of(chosen, texts, 540)] == [chosen.tolist()]
    assert [part.tolist() for part in parts_of(chosen[:2], texts, 10)] == [[1], [7]]
    gradients = []
    for passes in ([chosen], parts):
        torch.manual_seed(0)
        classifier = Classifier(load_model(model, torch.device("cpu")), 2).eval()
        for part in passes:
            logits = classifier(batch_of([texts[place] for place in part], torch.device("cpu")))
            labels = torch.from_numpy(part % 2)
            (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / len(chosen)).backward()
        gradients.append([parameter.grad for parameter in classifier.parameters() if parameter.grad is not None])
    for whole, parted in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parted, atol=1e-6, rtol=1e-4)


def test_predictions_keep_the_order_of_the_examples(model: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(load_model(model, torch.device("cpu")), 3)
    texts = [tuple(np.random.RandomState(seed).randint(3, 300, 1 + seed % 50).tolist()) for seed in range(150)]
    alone = [int(classifier.eval()(batch_of([text], torch.device("cpu"))).argmax()) for text in texts]
    assert predict(classifier, texts).tolist() == alone
    assert len(set(alone)) > 1


def run(model: Path, data: Path, out: Path, *options: str) -> int:
    return main([str(model), "--suite", "glue", "--data", str(data), "--out", str(out), "--limit", "12", *options])


def test_the_suite_measures_every_task_and_seed(
    model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    assert run(model, glue, out, "--seeds", "1", "2") == 0
    told = capsys.readouterr()
    assert "has not both files of boolq, multirc, qqp, wsc: the mean is over the other tasks alone" in " ".join(
        told.err.split()
    )
    result, items = read_results(out).by_suite["glue"], read_items(out)["glue"].to_pylist()
    assert result.conditions == {"seeds": "1 2", "limit": 12}
    expected = {}
    for task in ("mnli", "mrpc", "rte"):
        rows = [row for row in items if row["task"] == task]
        metric: Any = f1_score if task == "mrpc" else accuracy_score
        labels = [row["label"] for row in rows]
        by_seed = [metric(labels, [row[f"prediction_{seed}"] for row in rows]) for seed in (1, 2)]
        expected[task] = np.mean(by_seed)
        assert result.facts[f"{task}_seed_deviation"] == pytest.approx(np.std(by_seed, ddof=1))
    assert {task: score.value for task, score in result.main.tasks.items()} == pytest.approx(expected)
    assert result.main.value == pytest.approx(np.mean(list(expected.values())))
    assert sorted(result.figures["f1"].tasks) == ["mrpc", "rte"]
    assert sorted(result.figures["mcc"].tasks) == ["mnli", "mrpc", "rte"]
    suite, conditions = SUITES["glue"], Conditions(seeds=(1, 2), limit=12)
    files = suite.predictions(glue, suite.read(glue, conditions), read_items(out)["glue"])
    assert files["finetune/rte/predictions.json"]["rte"]["predictions"][3] == {
        "id": "rte_3",
        "pred": [row["prediction_1"] for row in items if row["task"] == "rte"][3],
    }


def test_what_is_done_is_kept_and_what_is_asked_decides(
    model: Path,
    glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import palenka.eval.glue.finetune

    asked: list[int] = []
    original = fine_tune

    def counted(*arguments: Any) -> Any:
        asked.append(arguments[3])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(palenka.eval.glue.finetune, "fine_tune", counted)
    out = tmp_path / "r.json"
    assert run(model, glue, out, "--tasks", "rte", "mrpc", "--seeds", "1", "2") == 130
    assert not out.exists()
    assert sorted(path.name for path in (tmp_path / "r.glue").iterdir()) == ["rte-1.json", "rte-2.json"]
    kept = tmp_path / "r.glue" / "rte-1.json"
    whole = kept.read_text()
    found = json.loads(whole)
    kept.write_text(json.dumps(found | {"predictions": [1 - each for each in found["predictions"]]}))
    assert run(model, glue, out, "--tasks", "rte", "mrpc", "--seeds", "1", "2") == 2
    assert f"{kept} was changed since it was written" in " ".join(capsys.readouterr().err.split())
    kept.write_text(whole)
    assert run(model, glue, out, "--tasks", "rte", "mrpc", "--seeds", "1", "2") == 0
    assert asked == [1, 2, 1, 1, 2]
    assert run(model, glue, out, "--tasks", "rte", "--seeds", "2") == 0  # other seeds and tasks, nothing computed anew
    assert len(asked) == 5
    assert list(read_results(out).by_suite["glue"].main.tasks) == ["rte"]
    assert run(model, glue, out, "--tasks", "rte", "--seeds", "2", "--limit", "13") == 0
    assert len(asked) == 6


def test_two_models_are_compared_over_the_same_seeds(
    model: Path, make_teacher: Any, glue: Path, tmp_path: Path
) -> None:
    for name, each in (("a", model), ("b", make_teacher("llama", seed=3, max_position_embeddings=128))):
        assert run(each, glue, tmp_path / f"{name}.json", "--seeds", "1", "2") == 0
    row = compare(tmp_path / "a.json", tmp_path / "b.json")["suites"]["glue"]
    levels = [read_results(tmp_path / f"{name}.json").by_suite["glue"].main for name in ("a", "b")]
    assert [row["first"], row["second"]] == pytest.approx([level.value for level in levels])
    assert row["tasks"]["mrpc"]["second"] == pytest.approx(levels[1].tasks["mrpc"].value)
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert main(["export", str(tmp_path / "a.json"), "--published", "false", "--out", str(tmp_path / "t.md")]) == 0
    assert "| GLUE |" in (tmp_path / "t.md").read_text()


def test_mistakes_are_named(model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.json"
    for options, told in (
        (("--tasks", "wsc"), "wsc.train.jsonl is not there; get it with the official data, or choose other --tasks"),
        (("--tasks", "cola"), "tasks is cola, but it should be 'boolq', 'mnli'"),
        (("--limit", "0"), "greater than or equal to 1"),
        (("--seeds", "1", "1"), "seeds are [1, 1], but each should be given once"),
    ):
        assert run(model, glue, out, *options) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    (glue / "rte.valid.jsonl").write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 2}) + "\n")
    with pytest.raises(
        UserError, match=r"rte\.valid\.jsonl:1: label is 2, but it should be a whole number from 0 to 1"
    ):
        read_task(glue, "rte", None)
    table = pa.table({"task": ["rte"], "index": [0], "label": [1], "prediction_42": [0]})
    assert SUITES["glue"].figures(table).main.value == 0


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(model: Path, tmp_path: Path) -> None:
    glue = tmp_path / "glue_filtered"
    for task in ("rte", "mrpc", "wsc"):
        write_task(glue, task, 600, 60)
    arguments = [sys.executable, "-m", "palenka.eval", str(model), "--suite", "glue", "--data", str(glue)]
    killed, whole = tmp_path / "killed.json", tmp_path / "whole.json"
    process = subprocess.Popen([*arguments, "--out", str(killed), "--seeds", "1", "2"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed.glue" / "mrpc-2.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed.glue").glob("*.json")}
    assert (
        {"mrpc-1.json", "mrpc-2.json"}
        <= done.keys()
        < {f"{t}-{s}.json" for t in ("mrpc", "rte", "wsc") for s in (1, 2)}
    )
    for out in (killed, whole):
        subprocess.run([*arguments, "--out", str(out), "--seeds", "1", "2"], check=True, stderr=subprocess.DEVNULL)
    for name, modified in done.items():
        assert (tmp_path / "killed.glue" / name).stat().st_mtime_ns == modified
    first, second = (read_results(out).by_suite["glue"] for out in (killed, whole))
    assert first == second
    assert math.isfinite(first.main.value)
