"""The same scores and decisions as lm-eval, by a local task built from the JSON lines; where lm-eval is installed."""

import json
import warnings
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from palenka.eval.measure import Measurement, measure
from palenka.eval.results import Results
from palenka.templates import write_pairs

pytestmark = [
    pytest.mark.slow,
    # Those of lm-eval and of what it brings along are not ours.
    pytest.mark.filterwarnings("ignore"),
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -e '.[lm-eval]'")

REAL_PAIRS = Path(__file__).parents[3] / "shared" / "data" / "evaluation"
EVERY = 97
"""Of the real pairs, one in so many is scored."""

TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{train: "{file}"}}}}
validation_split: train
output_type: multiple_choice
doc_to_text: "{context}"
doc_to_target: 0
doc_to_choice: "{{{{[{good}, {bad}]}}}}"
metric_list: [{{metric: acc}}]
"""
SENTENCES = {"context": "", "good": "sentence_good", "bad": "sentence_bad"}
TARGETS = {"context": "{{Context1}}", "good": "Target1", "bad": "Target2"}


@pytest.fixture(params=["templates", "blimp_filtered", "supplement_filtered"])
def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Pairs of our own, and a part of the real ones where they are."""
    folder = tmp_path / "pairs"
    if request.param == "templates":
        write_pairs(folder)
        return folder
    if not REAL_PAIRS.is_dir():
        pytest.skip(f"needs the evaluation data in {REAL_PAIRS}")
    folder.mkdir()
    for file in (REAL_PAIRS / request.param).glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[::EVERY]), encoding="utf-8")
    return folder


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Pairs in EWoK's form, a file for each of two domains."""
    folder = tmp_path / "domains"
    folder.mkdir()
    for domain in ("social", "spatial"):
        rows = [
            {
                "Domain": domain,
                "Context1": f"The {a} keeps the {b}.",
                "Target1": f"The {b} stays.",
                "Target2": f"{a} it.",
            }
            for a, b in permutations(["teacher", "student", "river", "stone", "garden", "token"], 2)
        ]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_sentences_are_scored_as_by_lm_eval(
    architecture: str, pairs: Path, make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = make_teacher(architecture, max_position_embeddings=256)
    results = measure(Measurement(model, {"minimal_pairs": pairs}), tmp_path / "result.json")
    require_agreement(results, tmp_path / "result.parquet", by_lm_eval(model, pairs, SENTENCES, tmp_path / "tasks"))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_targets_after_a_context_are_scored_as_by_lm_eval(
    architecture: str, domains: Path, make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = make_teacher(architecture, max_position_embeddings=256)
    results = measure(Measurement(model, {"ewok_filtered": domains}), tmp_path / "result.json")
    require_agreement(results, tmp_path / "result.parquet", by_lm_eval(model, domains, TARGETS, tmp_path / "tasks"))


def by_lm_eval(model: Path, pairs: Path, fields: dict[str, str], tasks: Path) -> dict[str, Any]:
    """What lm-eval makes of each file as a task of its own, every sample logged."""
    from lm_eval.tasks import TaskManager

    tasks.mkdir()
    wanted = [name.strip("{}") for name in fields.values() if name]
    for file in pairs.glob("*.jsonl"):
        # Only these columns: the others of the filtered files differ from line to line.
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        data = tasks / file.name
        lines = [json.dumps({key: row[key] for key in wanted}) + "\n" for row in rows]
        data.write_text("".join(lines), encoding="utf-8")
        task = TASK.format(task=f"local_{file.stem}", file=data, **fields)
        (tasks / f"{file.stem}.yaml").write_text(task, encoding="utf-8")
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[f"local_{file.stem}" for file in pairs.glob("*.jsonl")],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=64,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
    )
    return found


def require_agreement(results: Results, scores: Path, found: dict[str, Any]) -> None:
    """Every score to 1e-4 nats, every decision and every accuracy."""
    compared = 0
    for row in pq.read_table(scores).to_pylist():
        (sample,) = (s for s in found["samples"][f"local_{row['task']}"] if s["doc_id"] == row["index"])
        (good, _), (bad, _) = sample["filtered_resps"]
        assert row["score_good"] == pytest.approx(good, abs=1e-4)
        assert row["score_bad"] == pytest.approx(bad, abs=1e-4)
        assert (row["score_good"] >= row["score_bad"]) == bool(sample["acc"])
        compared += 1
    (result,) = results.suites
    assert compared == result.main.n
    assert compared > 50
    for task, score in result.main.tasks.items():
        assert score.value == pytest.approx(found["results"][f"local_{task}"]["acc,none"])
