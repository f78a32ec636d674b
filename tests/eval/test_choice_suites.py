"""Entity tracking, COMPS, Global PIQA and wug tests, against loops over single texts written from the protocols.

Of entity tracking and of the adjectives' wug test the items are real ones where the evaluation data are there; of the
others, files of the described form.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import rankdata
from transformers import AutoModelForCausalLM, AutoTokenizer

from palenka.eval.__main__ import main
from palenka.eval.compare import compare
from palenka.eval.measure import Measurement, measure
from palenka.eval.model import EvaluatedModel
from palenka.eval.results import read_items, read_results
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.eval.wug import Wug
from palenka.ground.errors import UserError

DATA = Path(__file__).parents[3] / "shared" / "data" / "evaluation"
CONDITIONS = Conditions(protocol="babylm-2025")
NOUNS = ("teacher", "student", "river", "stone", "garden", "token")


class Reference:
    """Log-probabilities of text, one forward pass a text, in float64."""

    def __init__(self, directory: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory).double().eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def terms(self, context: str, text: str) -> list[float]:
        """Of the tokens of ``context + text`` that end behind the context, but never of the first one."""
        encoded = self.tokenizer(context + text, return_offsets_mapping=True)
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0].log_softmax(-1)
        return [
            logits[place - 1, token].item()
            for place, (token, (_, end)) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
            if place > 0 and end > len(context)
        ]

    def score(self, context: str, text: str) -> float:
        return math.fsum(self.terms(context, text))


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def real_rows(folder: str, file: str, count: int) -> list[dict[str, Any]]:
    """Some rows of a real file, drawn with a fixed seed, in their order."""
    path = DATA / folder / file
    if not path.is_file():
        pytest.skip(f"needs the evaluation data in {DATA}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [rows[place] for place in sorted(np.random.RandomState(0).permutation(len(rows))[:count])]


@pytest.fixture(scope="module")
def model(make_teacher: Callable[..., Path]) -> Path:
    return make_teacher("llama", seed=1, max_position_embeddings=1024)


def measured(suite: str, folder: Path, model: Path, out: Path) -> tuple[Any, pa.Table]:
    (result,) = measure(Measurement(model, {suite: folder}, CONDITIONS), out).suites
    return result, read_items(out)[suite]


def boxes(box: int, numops: int, right: str, *others: str) -> dict[str, object]:
    prefix = f"Box 0 contains the river, Box 1 contains nothing. Box {box} contains "
    return {"input_prefix": prefix, "options": [f"{text}." for text in (right, *others)], "numops": numops}


@pytest.fixture
def made_boxes(tmp_path: Path) -> Path:
    """Files with other numbers of subsets; some items with "nothing" among their options."""
    folder = tmp_path / "entity_tracking"
    nouns = [f"the {noun}" for noun in NOUNS]
    rows = [boxes(place % 2, place % 3, nouns[place], *nouns[:place], *nouns[place + 1 :][:4]) for place in range(6)]
    write(folder / "regular.jsonl", [row for row in rows for _ in range(2)])
    write(folder / "ambiref.jsonl", [boxes(1, 0, *nouns[:5]), boxes(0, 0, nouns[3], "nothing", *nouns[:3])])
    return folder


@pytest.mark.parametrize("suite", ["entity_tracking", "entity_tracking_filtered"])
def test_entity_tracking_is_a_loop_over_options(suite: str, made_boxes: Path, model: Path, tmp_path: Path) -> None:
    result, items = measured(suite, made_boxes, model, tmp_path / "r.json")
    reference, decisions = Reference(model), dict[str, dict[str, list[bool]]]()
    for file in sorted(made_boxes.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            if suite.endswith("filtered") and any("nothing" in option for option in row["options"]):
                continue
            scores = [reference.score(row["input_prefix"], option) for option in row["options"]]
            subset = f"{file.stem}_{row['numops']}_ops"
            decisions.setdefault(file.stem, {}).setdefault(subset, []).append(scores[0] >= max(scores))
    subsets = {name: np.mean(right) for of in decisions.values() for name, right in of.items()}
    assert {name: score.value for name, score in result.main.tasks.items()} == pytest.approx(subsets)
    files = [np.mean([np.mean(right) for right in of.values()]) for of in decisions.values()]
    assert result.main.value == pytest.approx(np.mean(files))
    assert result.main.chance == 0.2
    assert len(items) == (14 if suite == "entity_tracking" else 13)


def test_real_entity_tracking_scores_are_those_of_the_loop(model: Path, tmp_path: Path) -> None:
    for file in ("regular", "ambiref", "move_contents"):
        write(tmp_path / "entity_tracking" / f"{file}.jsonl", real_rows("entity_tracking", f"{file}.jsonl", 4))
    _, items = measured("entity_tracking", tmp_path / "entity_tracking", model, tmp_path / "r.json")
    reference = Reference(model)
    expected = [
        [reference.score(row["input_prefix"], option) for option in row["options"]]
        for file in sorted((tmp_path / "entity_tracking").iterdir())
        for row in map(json.loads, file.read_text().splitlines())
    ]
    found = np.stack([items.column(f"score_{option}").to_numpy() for option in range(5)], axis=1)
    assert np.abs(found - expected).max() < 1e-4
    assert np.ptp(expected, axis=1).min() > 1e-3


def test_the_filter_leaves_the_numbers_that_the_pipeline_checks() -> None:
    if not (DATA / "entity_tracking").is_dir():
        pytest.skip(f"needs the evaluation data in {DATA}")
    items = SUITES["entity_tracking_filtered"].read(DATA / "entity_tracking", CONDITIONS)
    counts = {
        "regular": [517, 409, 405, 425, 388, 94],
        "ambiref": [508, 428, 413, 409, 434, 123],
        "move_contents": [516, 437, 399, 406, 353, 116],
    }
    tasks = [item.task for item in items]
    assert {name: [tasks.count(f"{name}_{n}_ops") for n in range(6)] for name in counts} == counts
    assert len(items) == sum(map(sum, counts.values()))


def test_comps_is_a_loop_over_phrases(model: Path, tmp_path: Path) -> None:
    folder, reference = tmp_path / "comps", Reference(model)
    names = ("comps_base", "comps_wugs", "comps_wugs_dist-before", "comps_wugs_dist-in-between")
    accuracies = {}
    for number, name in enumerate(names):
        rows = [
            {
                "prefix_acceptable": f"the {NOUNS[place % 6]}",
                "prefix_unacceptable": f"A {NOUNS[(place + number + 1) % 6]}",
                "property_phrase": f"keeps the {NOUNS[place // 6]} .",
            }
            for place in range(5 + 7 * number)
        ]
        write(folder / f"{name}.jsonl", rows)
        scores = [
            [
                reference.score(f"{row[side]} ", row["property_phrase"])
                for side in ("prefix_acceptable", "prefix_unacceptable")
            ]
            for row in rows
        ]
        accuracies[name.removeprefix("comps_").replace("-", "_")] = np.mean([good >= bad for good, bad in scores])
    result, items = measured("comps", folder, model, tmp_path / "r.json")
    assert {task: score.value for task, score in result.main.tasks.items()} == pytest.approx(accuracies)
    assert result.main.value == pytest.approx(np.mean(list(accuracies.values())))
    assert 0 < result.main.value < 1
    last = reference.score(f"{rows[-1]['prefix_unacceptable']} ", rows[-1]["property_phrase"])
    assert items.column("score_bad")[-1].as_py() == pytest.approx(last, abs=1e-4)


def test_global_piqa_compares_means_over_tokens(model: Path, tmp_path: Path) -> None:
    folder, reference = tmp_path / "global_piqa_parallel", Reference(model)
    endings = ("reads", "keeps the stone of the river", "sees it .", "crosses the garden and the lantern and it .")
    rows: list[dict[str, Any]] = [
        {"example_id": f"eng_{place}", "prompt": f"the {NOUNS[place % 6]}", "label": place % 4}
        | {f"solution{number}": endings[(place + number) % 4] for number in range(4)}
        for place in range(12)
    ]
    write(folder / "eng_latn.jsonl", rows)
    right, by_sum = [], []
    for row in rows:
        terms = [reference.terms(row["prompt"], f" {row[f'solution{number}']}") for number in range(4)]
        right.append(int(np.argmax([np.mean(each) for each in terms])) == row["label"])
        by_sum.append(int(np.argmax([np.sum(each) for each in terms])) == row["label"])
    result, items = measured("global_piqa_parallel", folder, model, tmp_path / "r.json")
    assert result.main.value == pytest.approx(np.mean(right))
    assert right != by_sum
    assert items.column("label").to_pylist() == [row["label"] for row in rows]
    suite = SUITES["global_piqa_parallel"]
    (path, groups), *_ = suite.predictions(folder, suite.read(folder, CONDITIONS), items).items()
    assert path == "zero_shot/causal/global_piqa_parallel/global_piqa_parallel/predictions.json"
    assert list(groups) == [row["example_id"] for row in rows]
    solutions = [str(row[f"solution{row['label']}"]) for row in rows]
    predicted = [groups[row["example_id"]]["predictions"][0]["pred"] for row in rows]
    chosen = [text == f" {solution}" for text, solution in zip(predicted, solutions, strict=True)]
    assert chosen == right


def spearman(values: Iterable[float], others: Iterable[float]) -> float:
    """Pearson's correlation of the ranks."""
    return float(np.corrcoef(rankdata(list(values)), rankdata(list(others)))[0, 1])


def wug_reference(model: Path, rows: list[dict[str, Any]]) -> list[float]:
    reference, shares = Reference(model), []
    for row in rows:
        first, second = (reference.score("", text) for text in row["sentences"].split("\t"))
        shares.append(math.exp(first) / (math.exp(first) + math.exp(second)))
    return shares


@pytest.mark.parametrize("suite", ["wug_adj", "wug_past"])
def test_wug_correlations_are_those_of_the_loop(suite: str, model: Path, tmp_path: Path) -> None:
    if suite == "wug_adj":
        folder = tmp_path / "wug_adj_nominalization"
        rows = real_rows(folder.name, f"{folder.name}.jsonl", 30)
    else:
        folder = tmp_path / "wug_past_tense"
        rows = [
            {"sentences": f"the {noun} {verb}\tthe {noun} {verb}ed", "ratio": (3 * place + len(verb)) % 7 / 7}
            for place, noun in enumerate(NOUNS)
            for verb in ("keep", "read", "paint")
        ]
    write(folder / f"{folder.name}.jsonl", rows)
    result, items = measured(suite, folder, model, tmp_path / "r.json")
    shares = wug_reference(model, rows)
    assert result.main.value == pytest.approx(spearman(shares, [row["ratio"] for row in rows]), abs=5e-5)
    wug = SUITES[suite]
    assert isinstance(wug, Wug)
    np.testing.assert_allclose(wug.shares(items), shares, atol=2e-5)
    low, high = result.main.interval
    assert -1 < low < result.main.value < high < 1
    ((path, groups),) = wug.predictions(folder, wug.read(folder, CONDITIONS), items).items()
    assert path == f"zero_shot/causal/{suite}/{folder.name}/predictions.json"
    predictions = groups[folder.name]["predictions"]
    assert [each["id"] for each in predictions] == [f"{folder.name}_{number}" for number in range(len(rows))]
    texts = [row["sentences"].split("\t")[share < 0.5] for row, share in zip(rows, shares, strict=True)]
    assert [each["pred"] for each in predictions] == texts
    assert [each["prob"] for each in predictions] == pytest.approx(shares, abs=2e-5)


def test_a_correlations_error_is_that_of_resampling_and_of_many_samples() -> None:
    draw = np.random.RandomState(0)
    found, errors, covered = [], [], 0
    for _ in range(100):
        people = draw.normal(size=150)
        first = 0.8 * people + draw.normal(size=150)
        table = pa.table({"score_0": first, "score_1": np.zeros(150), "ratio": people})
        (figure,) = SUITES["wug_adj"].figures(table).figures.values()
        assert figure.interval is not None
        assert figure.stderr is not None
        found.append(figure.value)
        errors.append(figure.stderr)
        covered += figure.interval[0] < 0.6085 < figure.interval[1]  # 6 / π · asin(r / 2) with r = 0.8 / √1.64
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.15)
    assert 88 <= covered <= 99


def test_two_models_correlations_are_compared_item_by_item(tmp_path: Path, model: Path, make_teacher: Any) -> None:
    rows = real_rows("wug_adj_nominalization", "wug_adj_nominalization.jsonl", 25)
    folder = write(tmp_path / "wug" / "wug.jsonl", rows).parent
    other = make_teacher("gpt2", seed=5, max_position_embeddings=1024)
    for name, each in (("a", model), ("b", other)):
        measured("wug_adj", folder, each, tmp_path / f"{name}.json")
    row = compare(tmp_path / "a.json", tmp_path / "b.json")["suites"]["wug_adj"]
    ratios = [row["ratio"] for row in rows]
    values = [spearman(wug_reference(each, rows), ratios) for each in (model, other)]
    assert (row["first"], row["second"]) == pytest.approx(values, abs=5e-5)
    assert row["difference"] == pytest.approx(values[0] - values[1], abs=1e-4)
    assert row["interval"][0] < row["difference"] < row["interval"][1]
    assert 0 < row["p_value"] <= 1
    assert main(["export", f"a={tmp_path / 'a.json'}", "--published", "false", "--out", str(tmp_path / "t.md")]) == 0
    assert "wug adjectives, Spearman's correlation" in (tmp_path / "t.md").read_text()


def test_in_bf16_a_sample_is_scored_in_float32_too(made_boxes: Path, model: Path, tmp_path: Path) -> None:
    conditions = Conditions(protocol="babylm-2025", precision="bf16")
    (result,) = measure(Measurement(model, {"entity_tracking": made_boxes}, conditions), tmp_path / "r.json").suites
    assert result.facts["agreement_items"] == 14
    assert 0 < result.facts["agreement_largest_difference"] < 3
    assert 0 <= result.facts["agreement_decisions"] <= 1


def test_these_suites_know_one_protocol(made_boxes: Path, model: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(model), "--suite", "entity_tracking", "--data", str(made_boxes), "--out", str(tmp_path / "r.json")]
    assert main(arguments) == 2
    assert "scored by protocol babylm-2025 alone, but protocol is babylm-2024; give --protocol babylm-2025" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main([*arguments, "--protocol", "babylm-2025"]) == 0
    assert read_results(tmp_path / "r.json").suites[0].conditions["protocol"] == "babylm-2025"


BOX = boxes(0, 1, "the river", "the stone", "the garden", "it", "the token")
PIQA = {"prompt": "the river", "solution0": "sees", "solution1": "reads", "label": 0, "example_id": "a"}
WUG = {"sentences": "the river\tthe stone", "ratio": 0.5}


@pytest.mark.parametrize(
    ("suite", "row", "told"),
    [
        ("entity_tracking", BOX | {"options": "the river"}, "options is 'the river', but it should be a list of at"),
        ("entity_tracking", BOX | {"options": ["a"]}, r"options is \['a'\], but it should be a list of at least 2"),
        ("entity_tracking", BOX | {"options": ["a", " "]}, "options is ' ', but it should be a text that is not empty"),
        ("entity_tracking", BOX | {"numops": 1.5}, "numops is 1.5, but it should be a whole number"),
        ("entity_tracking", {"options": ["a", "b"], "numops": 0}, "has no field input_prefix"),
        ("entity_tracking_filtered", BOX | {"options": ["nothing.", "b"]}, "every item of .* measure entity_tracking"),
        ("comps", {"prefix_acceptable": "a", "property_phrase": "b"}, "has no field prefix_unacceptable; each line"),
        ("global_piqa_parallel", PIQA | {"label": 2}, "label is 2, but it should be a whole number from 0 to 1"),
        ("global_piqa_parallel", {"prompt": "a", "solution0": "b", "label": 0}, "has 1 solutions, but it should have"),
        ("wug_adj", WUG | {"sentences": "the river"}, "sentences has 1 texts, but it should have 2, by a tab"),
        ("wug_adj", WUG | {"ratio": "0.5"}, "ratio is '0.5', but it should be a number"),
        ("wug_adj", WUG | {"ratio": float("nan")}, "ratio is nan, but it should be a number"),
    ],
)
def test_a_wrong_line_is_named(suite: str, row: dict[str, object], told: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=told):
        SUITES[suite].read(tmp_path, CONDITIONS)


def test_predictions_are_those_of_the_pipeline(made_boxes: Path, model: Path) -> None:
    suite = SUITES["entity_tracking_filtered"]
    data = suite.read(made_boxes, CONDITIONS)
    items = suite.measure(data, EvaluatedModel(model), CONDITIONS)
    files = suite.predictions(made_boxes, data, items)
    (groups,) = files.values()
    assert list(files) == ["zero_shot/causal/entity_tracking/entity_tracking/predictions.json"]
    sizes = {name: len(group["predictions"]) for name, group in groups.items()}
    assert sizes == {"ambiref_0_ops": 1, "regular_0_ops": 4, "regular_1_ops": 4, "regular_2_ops": 4}
    assert groups["regular_1_ops"]["predictions"][3]["id"] == "regular_1_ops_3"
    right = dict.fromkeys(groups, 0)
    for choice, text in zip(data, _in_order(groups, data), strict=True):
        right[choice.task] += text == choice.options[0].text
    accuracies = {task: score.value for task, score in suite.figures(items).main.tasks.items()}
    assert {task: count / sizes[task] for task, count in right.items()} == pytest.approx(accuracies)
    assert SUITES["entity_tracking"].predictions(made_boxes, data, items) == {}


def _in_order(groups: Any, data: list[Any]) -> list[str]:
    seen = dict.fromkeys(groups, 0)
    texts = []
    for choice in data:
        texts.append(groups[choice.task]["predictions"][seen[choice.task]]["pred"])
        seen[choice.task] += 1
    return texts
