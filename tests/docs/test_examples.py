"""What the documents show in Python runs: docs/python.md, the script of stage two, the loss of one's own, the notebook.

Each runs in a folder like that of the demo, at a size of seconds.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import palenka
from palenka.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"
LENGTH = 64
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def demo(corpus_directory: Path, make_teacher: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a demo's folder that documents name, made of a small corpus and small models."""
    folder = tmp_path_factory.mktemp("demo")
    runs = folder / "runs" / "demo"
    runs.mkdir(parents=True)
    (runs / "corpus").symlink_to(corpus_directory)
    logits, hidden = {"kind": "low_rank", "k": 8, "rank": 8}, {"components": 8, "sample_windows": 40}
    for seed, architecture in enumerate(("llama", "gpt2"), start=1):
        teacher = make_teacher(architecture, seed=seed, max_position_embeddings=LENGTH)
        (runs / f"teacher-{architecture}").symlink_to(teacher)
        palenka.capture(
            palenka.CaptureSettings(
                teacher=teacher,
                corpus=corpus_directory,
                output=runs / f"cache-{architecture}",
                windows={"length": LENGTH},
                logits=logits,
                hidden=hidden,
            )
        )
    settings = {
        "corpus": "runs/demo/corpus",
        "output": "runs/demo/distilled",
        "model": {"architecture": "llama", "max_position_embeddings": LENGTH, **SHAPE},
        "windows": {"length": LENGTH},
        "teachers": {"llama": {"cache": "runs/demo/cache-llama", "model": "runs/demo/teacher-llama"}},
        "objective": {"hard": 0.5, "logit": 0.5, "temperature": 1.0},
        "global_batch": 16,
        "fraction": 0.5,
        "log_every": 1,
    }
    (folder / "configs" / "demo").mkdir(parents=True)
    (folder / "configs" / "demo" / "distilled.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(autouse=True)
def folder(demo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder, with the demo's student trained."""
    monkeypatch.chdir(demo)
    palenka.train(palenka.read_settings(palenka.TrainSettings, "configs/demo/distilled.yaml"))
    return demo


@pytest.fixture
def own_module(plug_in: Callable[..., None]) -> None:
    """The example's loss, importable for one test."""
    plug_in(DOCS / "examples")


def logged(output: str, name: str) -> list[float]:
    return [float(value) for value in palenka.Run.open(output).metrics[name][1]]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manual_runs_from_start_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "best guesses for the next" in said
    assert f"torch.Size([3, {LENGTH}, 320])" in said
    assert palenka.Run.open("runs/mine").settings.objective.terms["logit"].weight == 0.3
    assert names["terms"].keys() == {"hard", "logit/llama"}


def test_the_loop_of_stage_two_is_that_of_the_trainer() -> None:
    loop = script("stage_two")
    assert len((DOCS / "examples" / "stage_two.py").read_text(encoding="utf-8").splitlines()) <= 150
    loop.SHAPE, loop.EPOCHS = SHAPE, 3
    steps = loop.distil(Path("runs/demo/corpus"), Path("runs/demo/cache-llama"), Path("runs/loop"), fraction=0.5)
    settings = palenka.read_settings(
        palenka.TrainSettings,
        "configs/demo/distilled.yaml",
        output="runs/trained",
        objective={**loop.WEIGHTS, "temperature": loop.TEMPERATURE},
        optimizer={"learning_rate": loop.LEARNING_RATE},
        epochs=loop.EPOCHS,
        seed=loop.SEED,
    )
    result = palenka.train(settings)
    assert len(steps) == result.steps > 20
    for ours, theirs in (("loss", "loss"), ("hard", "hard"), ("logit", "logit/llama"), ("hidden", "hidden/llama")):
        assert [step[ours] for step in steps] == pytest.approx(logged("runs/trained", theirs), rel=2e-4), ours
    trained, looped = (AutoModelForCausalLM.from_pretrained(f"runs/{name}") for name in ("trained", "loop"))
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(looped.state_dict()[name], weight, rtol=1e-3, atol=2e-4)


@pytest.mark.usefixtures("own_module")
def test_a_loss_of_ones_own_is_one_file_of_thirty_lines() -> None:
    assert len((DOCS / "examples" / "best_guess.py").read_text(encoding="utf-8").splitlines()) <= 30
    options = ["--plugins", "best_guess", "--objective.best_guess", "0.3", "--output", "runs/sure"]
    assert main(["train", "configs/demo/distilled.yaml", *options]) == 0

    # By its definition: the teacher's argmax of each token, and its probability, from the model itself.
    settings = palenka.Run.open("runs/sure").settings
    corpus = palenka.Corpus.open(settings.corpus)
    batch = next(iter(palenka.Batches(corpus, size=16, windows=settings.windows, fraction=settings.fraction)))
    model: Any = AutoModelForCausalLM.from_pretrained("runs/demo/teacher-llama").eval()
    student: Any = settings.model.build(corpus, 0)
    with torch.no_grad():
        sureness, guess = model(input_ids=batch.tokens).logits.softmax(-1).max(-1)
        said = student(input_ids=batch.tokens).logits.log_softmax(-1)
    expected = -(sureness * said.gather(-1, guess[..., None])[..., 0]).mean()
    assert logged("runs/sure", "best_guess/llama")[0] == pytest.approx(float(expected), rel=2e-2)


def test_the_notebook_runs_from_start_to_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot.switch_backend("agg")
    notebook = json.loads((DOCS / "notebooks" / "distil.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= {"FRACTION": 0.5, "MODEL": {"architecture": "llama", **SHAPE}}
    entropy, curves = (pyplot.figure(number).axes for number in pyplot.get_fignums())
    said = capsys.readouterr().out
    assert "best guesses for the next" in said
    assert "320 tokens, mass 1.0000" in said
    assert len(entropy[0].lines[0].get_xdata()) == LENGTH
    assert len(entropy[1].patches) == 8
    for line, name in zip(curves[0].lines, ("taught", "alone"), strict=True):
        assert line.get_label() == name
        assert list(line.get_ydata()) == logged(f"runs/notebook/{name}", "hard")
        assert f"{name}: validation " in said
    pyplot.close("all")
