"""`import palenka`: the few things that people need from Python, what they give, and what they say of mistakes."""

import ast
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import palenka
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.windows import gather
from palenka.train_student.settings import TrainSettings

HEAVY = {"torch", "transformers", "zarr", "pyarrow", "numpy", "pydantic", "rich"}


@pytest.fixture
def cache(cache_directory: Path) -> "palenka.TeacherCache":
    return palenka.TeacherCache.open(str(cache_directory))


def test_all_names_are_there_typed_and_documented() -> None:
    tree = ast.parse(Path(str(palenka.__file__)).read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    checked = next(branch for branch in branches if ast.unparse(branch.test) == "TYPE_CHECKING")
    typed = {
        alias.name: f"{node.module}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: f"palenka.{module}" for name, module in palenka._MODULES.items()} == typed
    assert sorted(palenka.__all__) == sorted(typed)
    manual = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    for name in palenka.__all__:
        found = getattr(palenka, name)
        assert found.__doc__, name
        assert name in dir(palenka)
        assert f"palenka.{name}" in manual, name
    with pytest.raises(AttributeError, match="has no attribute 'open'; it has Batches, "):
        _ = palenka.open  # type: ignore[attr-defined]


@pytest.mark.slow
def test_importing_it_waits_for_nothing() -> None:
    script = "import sys, palenka; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    "logits", [{"kind": "topk", "k": 8}, {"kind": "low_rank", "k": 8, "rank": 16}, {"kind": "topk", "k": 320}]
)
def test_a_look_shows_what_the_teacher_says_of_the_text(
    logits: dict[str, object], capture_settings: CaptureSettings, teacher: Path, changed: Callable[..., CaptureSettings]
) -> None:
    settings = changed(capture_settings, logits=logits)
    capture(settings)
    corpus = palenka.Corpus.open(settings.corpus)
    seen = palenka.look(palenka.TeacherCache.open(settings.output), corpus, slot=7, guesses=4)

    index = settings.windows.slots(len(corpus.tokens), 0)[7]
    tokens = gather(corpus.tokens, settings.windows, 0, np.array([index]))
    model: Any = AutoModelForCausalLM.from_pretrained(teacher).double().eval()
    with torch.no_grad():
        exact = model(input_ids=torch.from_numpy(tokens)).logits[0].softmax(-1)
    tokenizer = corpus.tokenizer()
    assert (seen.index, seen.text) == (index, tokenizer.decode(tokens[0].tolist()))
    for place, each in enumerate(seen.tokens):
        best = exact[place].topk(4)
        assert [p for _, p in each.guesses] == pytest.approx(best.values.tolist(), rel=0.2, abs=4e-3)
        if best.values[0] > 1.5 * best.values[1]:
            assert each.guesses[0][0] == tokenizer.decode([int(best.indices[0])])
        if place == len(seen.tokens) - 1:
            assert (each.following, each.probability) == (None, None)
            continue
        assert each.following == seen.tokens[place + 1].token
        following = int(tokens[0, place + 1])
        exactly = float(exact[place, following])
        if following in exact[place].topk(7).indices:  # surely among those that are kept one by one
            assert each.probability == pytest.approx(exactly, rel=0.2, abs=4e-3)
        elif logits != {"kind": "topk", "k": 8}:
            assert each.probability == pytest.approx(exactly, rel=0.7, abs=4e-3)
        elif following not in exact[place].topk(9).indices:
            assert each.probability is None
    shown = str(seen).splitlines()
    # The token that follows is the one of the next line.
    assert [line[15:29].strip() for line in shown[2:-1]] == [line[:14].strip() for line in shown[3:]]
    assert max(map(len, shown)) <= 80
    assert len(shown) == settings.windows.length + 2
    assert f"window {index:,} of view 0 (slot 7), T = 1" in shown[0]


def test_a_look_without_options_is_at_the_first_slot(cache: "palenka.TeacherCache", corpus_directory: Path) -> None:
    corpus = palenka.Corpus.open(corpus_directory)
    assert palenka.look(cache, corpus) == palenka.look(cache, corpus, slot=0, view=0, guesses=3, temperature=1.0)


def test_line_breaks_and_special_tokens_are_spelt(cache: "palenka.TeacherCache", corpus_directory: Path) -> None:
    corpus = palenka.Corpus.open(corpus_directory)
    slots = cache.manifest.windows.slots(len(corpus.tokens), 0)
    first = int(np.flatnonzero(slots == 0)[0])
    seen = palenka.look(cache, corpus, slot=first)
    assert seen.tokens[0].token == "<s>"
    assert '"\\n' in str(seen)


def test_what_was_not_captured_is_told_from_damage(capture_settings: CaptureSettings) -> None:
    settings = capture_settings.model_copy(update={"fraction": 0.1})
    capture(settings)
    cache = palenka.TeacherCache.open(settings.output)
    captured = cache.captured_slots()
    assert captured.tolist() == list(range(len(captured)))
    cache.read(0, captured[-1:])
    with pytest.raises(palenka.UserError, match=r"lacks the slots 1,024 to 1,\d+ of view 0, which were not captured"):
        cache.read(0, int(captured[-1]) + 1)
    with pytest.raises(palenka.UserError, match=r"lacks 1 of the shards needed: .*; read a smaller fraction"):
        palenka.Batches(palenka.Corpus.open(settings.corpus), {"t": cache})
    shard = settings.output / "logits/ids/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(palenka.UserError, match="is damaged: logits/ids"):
        palenka.TeacherCache.open(settings.output).read(0, 0)


@pytest.mark.parametrize(
    ("view", "slots", "sentence"),
    [
        (1, 0, r"view is 1, but teacher cache .* has 1, counted from 0"),
        (0, -1, r"slot -1 does not exist: view 0 of teacher cache .* has the slots 0 to 1,\d+"),
        (0, [0, 10**7], "slot 10,000,000 does not exist"),
        (0, [0.5], "slots are float64 numbers; give whole ones"),
    ],
)
def test_slots_that_do_not_exist_are_named(cache: "palenka.TeacherCache", view: int, slots: Any, sentence: str) -> None:
    with pytest.raises(palenka.UserError, match=sentence):
        cache.read(view, slots)


def test_one_slot_and_several_read_the_same(cache: "palenka.TeacherCache") -> None:
    both = cache.read(0, [5, 3]).at(1.0).log_kept
    assert torch.equal(both[:1], cache.read(0, 5).at(1.0).log_kept)
    assert torch.equal(both[1:], cache.read(0, np.array([3])).at(1.0).log_kept)


def test_mistakes_are_one_sentence(
    cache: "palenka.TeacherCache", corpus_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = palenka.Corpus.open(corpus_directory)
    monkeypatch.delenv("NOT_SET", raising=False)
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: palenka.Corpus.open("$NOT_SET/corpus"), "has .NOT_SET, which is not set"),
        (lambda: palenka.Corpus.open(""), "a path is empty"),
        (lambda: palenka.Corpus.open(tmp_path), "is no corpus"),
        (lambda: palenka.TeacherCache.open(tmp_path), "is not a teacher cache"),
        (lambda: palenka.TeacherCache.open(cache.directory, hidden=True), "holds no hidden states"),
        (lambda: palenka.Run.open(tmp_path), "is not a run"),
        (lambda: palenka.look(cache, palenka.Corpus.open(corpus_directory, "dev")), "does not match: corpus is"),
        (lambda: palenka.look(cache, corpus, temperature=3), "temperature is 3, but .* was captured at"),
        (lambda: palenka.look(cache, corpus, guesses=0), "guesses is 0"),
        (lambda: palenka.Batches(corpus, size=0), "size is 0"),
        (lambda: palenka.Batches(corpus, size=10**6), "but a batch has 1000000; lower size"),
        (lambda: palenka.Batches(corpus, {"t": cache}, windows=palenka.WindowRule()), "windows.length is 16 there"),
        (lambda: palenka.evaluate(tmp_path, corpus_directory, "blip"), "'blip' is no suite"),
        (lambda: palenka.evaluate(tmp_path, corpus_directory, lenght=3), "did you mean 'length'"),
    ]
    for mistake, sentence in mistakes:
        with pytest.raises(palenka.UserError, match=sentence):
            mistake()


def test_settings_are_read_as_the_command_line_reads_them(tmp_path: Path, student_of_cache: Callable[..., Any]) -> None:
    settings: TrainSettings = student_of_cache(objective={"hard": 0.5, "logit": 0.5})
    settings.write_yaml(tmp_path / "student.yaml")
    assert palenka.read_settings(palenka.TrainSettings, str(tmp_path / "student.yaml")) == settings
    changed = palenka.read_settings(
        palenka.TrainSettings, tmp_path / "student.yaml", epochs=2, **{"objective.logit": 0.3, "output": tmp_path}
    )
    assert (changed.epochs, changed.objective.terms["logit"].weight) == (2, 0.3)
    assert changed.output == tmp_path
    with pytest.raises(palenka.UserError, match="did you mean 'epochs'"):
        palenka.read_settings(palenka.TrainSettings, tmp_path / "student.yaml", epoch=2)


def test_a_run_is_trained_read_and_measured(
    capture_settings: CaptureSettings, student_of_cache: Callable[..., TrainSettings]
) -> None:
    palenka.capture(capture_settings)
    settings = student_of_cache(objective={"hard": 0.5, "logit": 0.5}, fraction=0.3, log_every=1)
    with pytest.raises(palenka.UserError, match="is not a run"):
        palenka.Run.open(settings.output)
    result = palenka.train(settings)
    run = palenka.Run.open(str(settings.output))
    assert run.result == result
    measured = palenka.evaluate(str(settings.output), str(settings.corpus), length=16)
    figure = measured.by_suite["held_out"].main
    assert figure.value == pytest.approx(result.validation_cross_entropy, abs=0.2)

    # The terms of the first batch, without a trainer.
    corpus = palenka.Corpus.open(settings.corpus)
    teachers = palenka.open_teachers(settings, corpus)
    batches = palenka.Batches(corpus, teachers.caches, 16, seed=settings.seed, fraction=0.3)
    assert len(batches) == result.steps
    objective = palenka.Objective(settings.model.build(corpus, settings.seed), settings.objective, teachers.pairs)
    loss, terms = objective(next(iter(batches)))
    for name, value in {"loss": loss, **terms}.items():
        assert float(value.detach()) == pytest.approx(run.metrics[name][1][0], rel=1e-5), name
    assert math.isfinite(float(loss.detach()))
    (settings.output / "result.json").unlink()
    with pytest.raises(palenka.UserError, match="is not finished; train it to its end"):
        palenka.Run.open(settings.output)
