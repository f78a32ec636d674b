"""`palenka eval` on minimal pairs: figures from their definition, files whole, nothing twice, mistakes named."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import palenka.eval.scoring
from palenka.eval.__main__ import main
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import items_file, read_items, read_results
from palenka.eval.statistics import share_interval
from palenka.eval.suite import Conditions
from palenka.ground.errors import UserError

TASKS = {"agreement": 12, "order": 30, "single": 1}
NOUNS = ("teacher", "student", "river", "stone", "garden", "token")


def write_blimp(parent: Path) -> Path:
    """Three tasks of pairs, some of which tie since the tokenizer (NFKC) reads both sentences alike."""
    folder = parent / "blimp_filtered"
    folder.mkdir()
    for task, count in TASKS.items():
        rows = []
        for number in range(count):
            noun, other = NOUNS[number % 6], NOUNS[number // 6]
            good, bad = f"the {noun} sees the {other} .", f"the {noun} {noun} the {other} ."
            rows.append({"sentence_good": good, "sentence_bad": "ﬁ" if task == "order" and number < 3 else bad})
            if task == "order" and number < 3:
                rows[-1]["sentence_good"] = "fi"
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """Minimal pairs of the test's own: they may be changed."""
    return write_blimp(tmp_path)


@pytest.fixture
def ewok(tmp_path: Path) -> Path:
    folder = tmp_path / "ewok_filtered"
    folder.mkdir()
    rows = [
        {"Domain": domain, "Context1": f"the {noun} sees .", "Target1": "the stone .", "Target2": f"the {noun} ."}
        for domain in ("social", "spatial")
        for noun in NOUNS
    ]
    (folder / "ewok.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(model: Path, data: Path, out: Path, *options: str) -> int:
    return main([str(model), "--data", str(data), "--out", str(out), *options])


@dataclass(frozen=True)
class Scored:
    """One suite as it was measured: what is in the file, its items, and what was printed."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    said: str

    @property
    def accuracy(self) -> dict[str, Any]:
        """The figure of the suite."""
        figure: dict[str, Any] = self.result["figures"]["accuracy"]
        return figure

    def of_task(self, task: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores of good and bad sentences."""
        rows = [row for row in self.rows if row["task"] == task]
        return np.array([row["score_good"] for row in rows]), np.array([row["score_bad"] for row in rows])

    def error(self, task: str) -> float:
        """The standard error of a task's accuracy."""
        good, bad = self.of_task(task)
        return float(np.std(good >= bad, ddof=1)) / math.sqrt(len(good)) if len(good) > 1 else 0.0


@pytest.fixture(scope="module")
def scored(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The minimal pairs, measured in a folder that was not there."""
    folder = tmp_path_factory.mktemp("scored")
    out = folder / "deep" / "result.json"
    options = ["--suite", "blimp_filtered", "--protocol", "babylm-2024"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run(teacher, write_blimp(folder), out, *options) == 0
    (result,) = json.loads(out.read_text())["suites"]
    return Scored(result, pq.read_table(out.with_suffix(".parquet")).to_pylist(), said.getvalue())


def test_every_pair_is_kept_with_its_scores(scored: Scored) -> None:
    assert set(scored.rows[0]) == {"suite", "task", "index", "score_good", "score_bad"}
    assert [(row["suite"], row["task"], row["index"]) for row in scored.rows] == [
        ("blimp_filtered", task, index) for task, count in TASKS.items() for index in range(count)
    ]


def test_a_result_names_its_suite_and_protocol(scored: Scored) -> None:
    assert (scored.result["suite"], scored.result["conditions"]["protocol"]) == ("blimp_filtered", "babylm-2024")


@pytest.mark.parametrize("task", TASKS)
def test_the_accuracy_of_a_task_is_that_of_its_scores(scored: Scored, task: str) -> None:
    good, bad = scored.of_task(task)
    accuracy = float(np.mean(good >= bad))
    assert scored.accuracy["tasks"][task] == {
        "value": pytest.approx(accuracy),
        "stderr": pytest.approx(scored.error(task)),
        "interval": pytest.approx(share_interval(accuracy, TASKS[task])),
        "n": TASKS[task],
    }


def test_the_accuracy_is_the_mean_over_tasks(scored: Scored) -> None:
    means = [np.mean(good >= bad) for good, bad in map(scored.of_task, TASKS)]
    assert scored.accuracy["value"] == pytest.approx(np.mean(means))
    assert scored.accuracy["higher_is_better"]


def test_ties_are_counted_and_halved_beside_the_accuracy(scored: Scored) -> None:
    halves = [np.mean((good > bad) + 0.5 * (good == bad)) for good, bad in map(scored.of_task, TASKS)]
    assert scored.result["facts"]["ties"] == 3
    assert scored.result["facts"]["tie_half_accuracy"] == pytest.approx(np.mean(halves))


def test_the_standard_error_is_that_of_a_mean_over_tasks_and_the_other_is_pooled(scored: Scored) -> None:
    errors, sizes = [scored.error(task) for task in TASKS], list(TASKS.values())
    assert scored.accuracy["stderr"] == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / len(sizes))
    pooled = sum((n - 1) * e**2 * n for n, e in zip(sizes, errors, strict=True)) / (sum(sizes) - len(sizes))
    assert scored.accuracy["pooled_stderr"] == pytest.approx(math.sqrt(pooled / sum(sizes)))


def test_the_interval_is_that_of_the_normal_distribution(scored: Scored) -> None:
    low, high = scored.accuracy["interval"]
    expected = (scored.accuracy["value"], 1.959964 * scored.accuracy["stderr"])
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx(expected)


def test_the_accuracy_with_its_interval_and_the_ties_are_printed(scored: Scored) -> None:
    low, high = scored.accuracy["interval"]
    assert f"{scored.accuracy['value']:.4f} ({low:.4f} to {high:.4f})" in scored.said
    assert "ties 3, tie rate" in scored.said


def test_several_suites_share_a_file_and_are_read_one_by_one(
    teacher: Path, blimp: Path, ewok: Path, corpus_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.json"
    folders = [f"--data.blimp_filtered={blimp}", f"--data.ewok_filtered={ewok}", f"--data.held_out={corpus_directory}"]
    suites = ["--suite", "blimp_filtered", "ewok_filtered", "--suite", "held_out"]
    assert main([str(teacher), *suites, *folders, "--out", str(out), "--length", "16"]) == 0
    assert list(json.loads(out.read_text())) == ["name", "model", "parameters", "items", "suites", "checksum"]
    results = read_results(out)
    assert list(results.by_suite) == ["blimp_filtered", "ewok_filtered", "held_out"]
    assert results.name == teacher.name
    assert list(results.by_suite["ewok_filtered"].main.tasks) == ["social", "spatial"]
    assert results.by_suite["held_out"].main.unit == "nats per token"
    # Each suite has its own columns again, and what it has alone.
    items = read_items(out)
    assert {"loss", "words"} < set(items["held_out"].column_names)
    assert set(items["ewok_filtered"].column_names) == {"task", "index", "score_good", "score_bad"}
    for suite, folder in (("blimp_filtered", blimp), ("ewok_filtered", ewok), ("held_out", corpus_directory)):
        alone = tmp_path / f"{suite}.json"
        assert run(teacher, folder, alone, "--suite", suite, "--length", "16") == 0
        assert read_results(alone).by_suite[suite] == results.by_suite[suite]
        assert read_items(alone)[suite].select(items[suite].column_names).equals(items[suite])


@pytest.mark.parametrize(
    "suites",
    [
        ["--suite", "blimp_filtered", "ewok_filtered"],
        ["--suite=[blimp_filtered, ewok_filtered]"],
        ["--suite", "blimp_filtered", "--suite=ewok_filtered"],
    ],
)
def test_suites_are_listed_as_comes_naturally(
    suites: list[str], teacher: Path, blimp: Path, ewok: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    assert ewok.parent == blimp.parent
    assert main([*suites, "--data", str(blimp.parent), "--out", str(out), "--model", str(teacher)]) == 0
    assert list(read_results(out).by_suite) == ["blimp_filtered", "ewok_filtered"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when something is scored."""
    calls: list[int] = []
    original = palenka.eval.scoring.log_likelihoods

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(palenka.eval.scoring, "log_likelihoods", counting)
    return calls


def test_the_same_is_not_computed_again(teacher: Path, blimp: Path, tmp_path: Path, computed: list[int]) -> None:
    out, asked = tmp_path / "result.json", Measurement(teacher, {"blimp_filtered": blimp})
    first = measure(asked, out)
    assert computed
    computed.clear()
    stamp = out.stat().st_mtime_ns
    assert measure(asked, out) == first
    assert (computed, out.stat().st_mtime_ns) == ([], stamp)


def test_a_further_suite_is_computed_alone_and_what_was_there_stays(
    teacher: Path, blimp: Path, ewok: Path, tmp_path: Path, computed: list[int]
) -> None:
    out, asked = tmp_path / "result.json", Measurement(teacher, {"blimp_filtered": blimp})
    first = measure(asked, out)
    both = measure(Measurement(teacher, {"ewok_filtered": ewok, "blimp_filtered": blimp}), out)
    assert list(both.by_suite) == ["ewok_filtered", "blimp_filtered"]
    assert both.by_suite["blimp_filtered"] == first.suites[0]
    items = pq.read_table(out.with_suffix(".parquet"))
    assert set(items.column("suite").to_pylist()) == {"blimp_filtered", "ewok_filtered"}
    computed.clear()
    stamp = out.stat().st_mtime_ns
    assert measure(asked, out).suites == first.suites
    assert list(read_results(out).by_suite) == ["blimp_filtered", "ewok_filtered"]
    assert (computed, out.stat().st_mtime_ns) == ([], stamp)


@pytest.mark.parametrize("conditions", [{"protocol": "babylm-2025"}, {"precision": "bf16"}], ids=str)
def test_other_conditions_make_another_result(
    teacher: Path, blimp: Path, tmp_path: Path, computed: list[int], conditions: dict[str, Any]
) -> None:
    folders = {"blimp_filtered": blimp}
    measure(Measurement(teacher, folders), tmp_path / "result.json")
    computed.clear()
    measure(Measurement(teacher, folders, Conditions(**conditions)), tmp_path / "result.json")
    assert computed


def test_other_weights_make_another_result(
    teacher: Path, blimp: Path, make_teacher: Callable[..., Path], tmp_path: Path, computed: list[int]
) -> None:
    measure(Measurement(teacher, {"blimp_filtered": blimp}), tmp_path / "result.json")
    computed.clear()
    measure(Measurement(make_teacher("llama", seed=8), {"blimp_filtered": blimp}), tmp_path / "result.json")
    assert computed


def test_a_changed_tokenizer_and_changed_data_and_items_that_are_gone_are_measured_again(
    blimp: Path, make_teacher: Callable[..., Path], tmp_path: Path, computed: list[int]
) -> None:
    items, other = tmp_path / "result.parquet", make_teacher("llama", seed=8)
    config, asked = other / "tokenizer_config.json", Measurement(other, {"blimp_filtered": blimp})
    measure(asked, tmp_path / "result.json")
    for change in (
        lambda: config.write_text(config.read_text() + " "),
        lambda: (blimp / "single.jsonl").write_text((blimp / "order.jsonl").read_text()),
        items.unlink,
        lambda: items.write_bytes(b""),
    ):
        change()
        computed.clear()
        measure(asked, tmp_path / "result.json")
        assert computed
    assert not list(tmp_path.glob("*.partial"))


def test_a_suite_that_fails_loses_none_before_it(teacher: Path, blimp: Path, ewok: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    (ewok / "ewok.jsonl").write_text(
        json.dumps({"Domain": "d", "Context1": "the " * 99, "Target1": "a", "Target2": "b"})
    )
    with pytest.raises(UserError, match=r"ewok\.jsonl:1 has .* but the model has 32 positions"):
        measure(Measurement(teacher, {"blimp_filtered": blimp, "ewok_filtered": ewok}), out)
    assert list(read_results(out).by_suite) == list(read_items(out)) == ["blimp_filtered"]


def test_bf16_tells_how_far_it_agrees(teacher: Path, blimp: Path, tmp_path: Path) -> None:
    folders, outs = {"blimp_filtered": blimp}, [tmp_path / "float32.json", tmp_path / "bf16.json"]
    (exact,) = measure(Measurement(teacher, folders), outs[0]).suites
    (coarse,) = measure(Measurement(teacher, folders, Conditions(precision="bf16")), outs[1]).suites
    assert not any(name.startswith("agreement") for name in exact.facts)
    columns = [pq.read_table(items_file(out)).to_pydict() for out in outs]
    good, bad = ([np.array(column[key]) for column in columns] for key in ("score_good", "score_bad"))
    same = (good[0] >= bad[0]) == (good[1] >= bad[1])
    # All pairs are fewer than the sample would take.
    assert coarse.facts["agreement_pairs"] == sum(TASKS.values())
    assert coarse.facts["agreement_decisions"] == same.mean()
    difference = max(np.abs(good[0] - good[1]).max(), np.abs(bad[0] - bad[1]).max())
    assert coarse.facts["agreement_largest_difference"] == pytest.approx(difference, abs=1e-4)
    assert 0 < difference < 2


def test_a_file_that_is_something_else_is_left_alone(
    teacher: Path, blimp: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    asked = Measurement(teacher, {"blimp_filtered": blimp})
    for content in ("precious", '{"thesis": 1}', '{"suites": 3}', '{"suites": [3]}'):
        out = tmp_path / "thesis.json"
        out.write_text(content)
        with pytest.raises(UserError, match="exists and holds no results of .*; choose another out"):
            measure(asked, out)
        assert out.read_text() == content
    out = tmp_path / "both.json"
    other = make_teacher("llama", seed=9)
    measure(Measurement(other, {"minimal_pairs": blimp, "blimp_filtered": blimp}), out)
    with pytest.raises(UserError, match=r"holds results of minimal_pairs too, of another model .* with the others"):
        measure(asked, out)
    with pytest.raises(UserError, match="the figures go to a JSON file and the items beside it"):
        measure(asked, tmp_path / "x.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*; choose another name, and run"):
        measure(asked, tmp_path / "file" / "result.json")


@pytest.fixture
def why_refused(blimp: Path, tmp_path: Path, refused: Callable[..., str]) -> Callable[[Path], str]:
    """Why a model cannot be measured on the minimal pairs; nothing is written."""

    def why(model: Path) -> str:
        out = tmp_path / "result.json"
        said = refused("eval", model, "--data", blimp, "--out", out, "--suite", "blimp_filtered")
        assert not out.exists()
        return said

    return why


@pytest.fixture
def copy(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher, which may be damaged."""
    return Path(shutil.copytree(teacher, tmp_path / "model"))


def test_a_tokenizer_with_more_or_fewer_tokens_than_the_model_is_refused(
    copy: Path, why_refused: Callable[[Path], str]
) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = len(tokenizer["model"]["vocab"])
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has 321 tokens, but the model has a vocabulary of 320; put the tokenizer that the model" in why_refused(
        copy
    )
    vocabulary = {token: number for token, number in tokenizer["model"]["vocab"].items() if number < 100}
    tokenizer["model"] |= {"vocab": vocabulary, "merges": []}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has 100 tokens, but the model has a vocabulary of 320" in why_refused(copy)


def test_a_tokenizer_that_cannot_be_read_or_is_not_there_is_refused(
    copy: Path, why_refused: Callable[[Path], str]
) -> None:
    (copy / "tokenizer.json").write_text("{}")
    assert f"the tokenizer in {copy} cannot be read" in why_refused(copy)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert f"model {copy} has no tokenizer beside it" in why_refused(copy)


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(
    copy: Path, why_refused: Callable[[Path], str]
) -> None:
    (copy / "inputs.json").write_text('{"corpus": "c", "tokenizer": "t"}')
    assert "but the model was trained with tokenizer t; put the tokenizer" in why_refused(copy)


def test_a_text_that_is_longer_than_the_model_is_not_cut_off(
    make_teacher: Callable[..., Path], why_refused: Callable[[Path], str]
) -> None:
    said = why_refused(make_teacher("gpt2", max_position_embeddings=4))
    assert "agreement.jsonl:1 has" in said
    assert "before its last, but the model has 4 positions; nothing is cut off" in said


def test_a_folder_without_a_model_is_refused(tmp_path: Path, why_refused: Callable[[Path], str]) -> None:
    assert "is not a Hugging Face model" in why_refused(tmp_path)


def test_weights_that_give_no_number_are_refused(
    make_teacher: Callable[..., Path], blimp: Path, tmp_path: Path
) -> None:
    broken = make_teacher("llama", seed=10)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"gives .*agreement\.jsonl:1 no finite log-probability"):
        measure(Measurement(broken, {"blimp_filtered": blimp}), tmp_path / "result.json")
