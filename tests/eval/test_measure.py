"""`palenka eval` on minimal pairs: figures from their definition, files whole, nothing twice, mistakes named."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
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


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """Three tasks of pairs, some of which tie since the tokenizer (NFKC) reads both sentences alike."""
    folder = tmp_path / "blimp_filtered"
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


def test_figures_are_those_of_the_scores(
    teacher: Path, blimp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "result.json"
    assert run(teacher, blimp, out, "--suite", "blimp_filtered", "--protocol", "babylm-2024") == 0
    (result,) = json.loads(out.read_text())["suites"]
    accuracy, facts = result["figures"]["accuracy"], result["facts"]
    rows = pq.read_table(out.with_suffix(".parquet")).to_pylist()
    assert set(rows[0]) == {"suite", "task", "index", "score_good", "score_bad"}
    assert [(row["suite"], row["task"], row["index"]) for row in rows] == [
        ("blimp_filtered", task, index) for task, count in TASKS.items() for index in range(count)
    ]
    assert (result["suite"], result["conditions"]["protocol"]) == ("blimp_filtered", "babylm-2024")
    assert facts["ties"] == 3
    accuracies, halves, errors = [], [], []
    for task, count in TASKS.items():
        good = np.array([row["score_good"] for row in rows if row["task"] == task])
        bad = np.array([row["score_bad"] for row in rows if row["task"] == task])
        accuracies.append(np.mean(good >= bad))
        halves.append(np.mean((good > bad) + 0.5 * (good == bad)))
        errors.append(np.std(good >= bad, ddof=1) / math.sqrt(count) if count > 1 else 0)
        assert accuracy["tasks"][task] == {
            "value": pytest.approx(accuracies[-1]),
            "stderr": pytest.approx(errors[-1]),
            "interval": pytest.approx(share_interval(float(accuracies[-1]), count)),
            "n": count,
        }
    assert accuracy["value"] == pytest.approx(np.mean(accuracies))
    assert accuracy["higher_is_better"]
    assert facts["tie_half_accuracy"] == pytest.approx(np.mean(halves))
    sizes = list(TASKS.values())
    pooled = sum((n - 1) * e**2 * n for n, e in zip(sizes, errors, strict=True)) / (sum(sizes) - len(sizes))
    assert accuracy["pooled_stderr"] == pytest.approx(math.sqrt(pooled / sum(sizes)))
    assert accuracy["stderr"] == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / len(sizes))
    low, high = accuracy["interval"]
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((accuracy["value"], 1.959964 * accuracy["stderr"]))
    told = capsys.readouterr().out
    assert f"{accuracy['value']:.4f} ({low:.4f} to {high:.4f})" in told
    assert "ties 3, tie rate" in told


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


def test_the_same_is_not_computed_again(
    teacher: Path,
    blimp: Path,
    ewok: Path,
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, items = tmp_path / "result.json", tmp_path / "result.parquet"
    asked = Measurement(teacher, {"blimp_filtered": blimp})
    first = measure(asked, out)
    computed: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        computed.append(1)
        return original(*arguments, **options)

    original = palenka.eval.scoring.log_likelihoods
    monkeypatch.setattr(palenka.eval.scoring, "log_likelihoods", counting)
    stamp = out.stat().st_mtime_ns
    assert measure(asked, out) == first
    assert (computed, out.stat().st_mtime_ns) == ([], stamp)

    # A further suite is computed alone, and what was there stays.
    both = measure(Measurement(teacher, {"ewok_filtered": ewok, "blimp_filtered": blimp}), out)
    assert list(both.by_suite) == ["ewok_filtered", "blimp_filtered"]
    assert both.by_suite["blimp_filtered"] == first.suites[0]
    assert set(pq.read_table(items).column("suite").to_pylist()) == {"blimp_filtered", "ewok_filtered"}
    count, stamp = len(computed), out.stat().st_mtime_ns
    assert measure(asked, out).suites == first.suites
    assert list(read_results(out).by_suite) == ["blimp_filtered", "ewok_filtered"]
    assert (len(computed), out.stat().st_mtime_ns) == (count, stamp)

    out.unlink()
    # Whatever decides a result makes another one: conditions, weights, tokenizer, data; and items that are gone.
    other = make_teacher("llama", seed=8)
    for changed in (
        Measurement(teacher, asked.folders, Conditions(protocol="babylm-2025")),
        Measurement(other, asked.folders),
        Measurement(teacher, asked.folders, Conditions(precision="bf16")),
    ):
        measure(asked, out)
        computed.clear()
        measure(changed, out)
        assert computed
    config = other / "tokenizer_config.json"
    measure(Measurement(other, asked.folders), out)
    for change in (
        lambda: config.write_text(config.read_text() + " "),
        lambda: (blimp / "single.jsonl").write_text((blimp / "order.jsonl").read_text()),
        items.unlink,
        lambda: items.write_bytes(b""),
    ):
        change()
        computed.clear()
        measure(Measurement(other, asked.folders), out)
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


def test_what_does_not_match_the_model_is_refused(
    teacher: Path, blimp: Path, make_teacher: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(model: Path) -> str:
        assert run(model, blimp, tmp_path / "result.json", "--suite", "blimp_filtered") == 2
        assert not (tmp_path / "result.json").exists()
        return " ".join(capsys.readouterr().err.split())

    copy = tmp_path / "model"
    shutil.copytree(teacher, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = len(tokenizer["model"]["vocab"])
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has 321 tokens, but the model has a vocabulary of 320; put the tokenizer that the model" in told(copy)
    vocabulary = {token: number for token, number in tokenizer["model"]["vocab"].items() if number < 100}
    tokenizer["model"] |= {"vocab": vocabulary, "merges": []}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has 100 tokens, but the model has a vocabulary of 320" in told(copy)
    (copy / "tokenizer.json").write_text("{}")
    assert f"the tokenizer in {copy} cannot be read" in told(copy)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert f"model {copy} has no tokenizer beside it" in told(copy)
    run_directory = tmp_path / "run"
    shutil.copytree(teacher, run_directory)
    (run_directory / "inputs.json").write_text('{"corpus": "c", "tokenizer": "t"}')
    assert "but the model was trained with tokenizer t; put the tokenizer" in told(run_directory)
    short = make_teacher("gpt2", max_position_embeddings=4)
    assert "agreement.jsonl:1 has" in (said := told(short))
    assert "before its last, but the model has 4 positions; nothing is cut off" in said
    assert "is not a Hugging Face model" in told(tmp_path)


def test_weights_that_give_no_number_are_refused(
    make_teacher: Callable[..., Path], blimp: Path, tmp_path: Path
) -> None:
    broken = make_teacher("llama", seed=10)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"gives .*agreement\.jsonl:1 no finite log-probability"):
        measure(Measurement(broken, {"blimp_filtered": blimp}), tmp_path / "result.json")
