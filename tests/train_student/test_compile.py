"""Compiled blocks: the same numbers but for rounding, and nothing of it in what is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.blocks import compile_blocks
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.low_rank import LowRankOthers
from palenka.data.signals.top_k import top_k
from palenka.ground.command_line import parse
from palenka.ground.processes import is_compiled
from palenka.train_student.objective import next_token
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


def test_auto_compiles_on_cuda_alone() -> None:
    assert is_compiled("auto", torch.device("cuda"))
    assert not is_compiled("auto", torch.device("cpu"))
    assert is_compiled("true", torch.device("cpu"))
    assert not is_compiled("false", torch.device("cuda"))


@pytest.mark.parametrize(("word", "expected"), [("auto", "auto"), ("true", "true"), ("false", "false")])
def test_the_command_line_has_its_words(word: str, expected: object, settings_of_run: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings_of_run().as_plain()))
    assert parse(TrainSettings, ["--config", str(file), "--compile", word], "palenka train").compile == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_run_is_the_plain_one_within_rounding(
    architecture: str,
    hidden_capture: CaptureSettings,
    student_of_cache: Callable[..., TrainSettings],
    make_shape: Callable[..., Any],
    tmp_path: Path,
    log_of: Callable[..., list[dict[str, Any]]],
) -> None:
    capture(hidden_capture)
    found = {}
    for compiled in (False, True):
        settings = student_of_cache(
            output=tmp_path / f"compiled-{compiled}",
            model=make_shape(architecture),
            objective={"hard": 0.5, "logit": {"weight": 0.5, "schedule": {"start": 0.1}}, "hidden": 0.1},
            fraction=0.2,
            micro_batch=8,
            log_every=1,
            checkpoint_every=5,
            compile=compiled,
        )
        train(settings)
        losses = [line["loss"] for line in log_of(settings, "loss")]
        model = load_file(next(settings.output.glob("**/model.safetensors")))
        checkpoint = load_file(sorted(settings.output.glob("checkpoints/*/objective.safetensors"))[-1])
        found[compiled] = losses, model, checkpoint
    (plain, model, checkpoint), (losses, compiled_model, compiled_checkpoint) = found[False], found[True]
    assert len(plain) > 5
    assert losses == pytest.approx(plain, rel=1e-4)
    for ours, theirs in ((compiled_model, model), (compiled_checkpoint, checkpoint)):
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_compiled_teacher_says_the_same_within_rounding(
    hidden_capture: CaptureSettings, changed: Callable[..., CaptureSettings], tmp_path: Path
) -> None:
    caches = []
    for compiled in (False, True):
        settings = changed(hidden_capture, output=tmp_path / f"compiled-{compiled}", compile=compiled, fraction=0.1)
        capture(settings)
        caches.append(TeacherCache(settings.output, settings_keys(settings)))
    plain, compiled_cache = (cache.read(0, np.arange(40)) for cache in caches)
    torch.testing.assert_close(plain.at(1.0).log_tail, compiled_cache.at(1.0).log_tail, rtol=0, atol=0.1)
    for key, states in plain.hidden.items():
        torch.testing.assert_close(states, compiled_cache.hidden[key], rtol=0, atol=0.2)


def settings_keys(settings: CaptureSettings) -> tuple[str, ...]:
    from palenka.data.signals.store import read_manifest

    return read_manifest(settings.output).hidden_keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kept_tokens", [6, 12])
def test_compiled_masses_of_the_others_are_exact(kept_tokens: int, normal: Callable[..., torch.Tensor]) -> None:
    torch.compiler.reset()
    logits = 5 * normal(0, 40, 300)
    found = top_k(logits.bfloat16(), kept_tokens, (1.0, 2.0, 3.0), compiled=True)
    exact = logits.bfloat16().double()
    assert found.ids is not None
    for number, temperature in enumerate((1.0, 2.0, 3.0)):
        outside = (exact / temperature).log_softmax(-1).scatter(-1, found.ids, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(found.log_tail[:, number].double(), outside, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("are_others_known", [True, False])
@pytest.mark.parametrize("kept_tokens", [8, 12])
def test_compiled_terms_are_the_plain_ones_and_compiled_once_for_all_weights(
    kept_tokens: int, *, are_others_known: bool
) -> None:
    torch.compiler.reset()
    counters.clear()
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    def spoken() -> Distribution:
        kept, ids = random(4, 16, 500).log_softmax(-1).topk(kept_tokens)
        others = LowRankOthers(random(4, 16, 5), random(500, 5), random(500)) if are_others_known else None
        return Distribution(ids, kept, torch.log1p(-kept.exp().sum(-1)), others)

    tokens = torch.randint(500, (4, 16), generator=draw)
    for hard in (0.5, 0.3, 0.1):
        logits, teachers = random(64, 500).bfloat16(), [spoken(), spoken()]
        found = []
        for compiled in (False, True):
            gradient, sums = logits.clone(), torch.zeros(3)
            weights, divergence = [1 - hard, hard], DIVERGENCES["forward"]
            NextTokenTerms(tokens, hard, teachers, weights, divergence, 2.0, compiled).to_gradient(gradient, sums)
            found.append((gradient, sums))
        torch.testing.assert_close(found[0], found[1])
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_compiled_cross_entropy_alone_is_the_plain_one(kind: torch.dtype) -> None:
    torch.compiler.reset()
    tokens, logits = torch.randint(300, (4, 16)), torch.randn(64, 300).to(kind)
    found = []
    for compiled in (False, True):
        gradient, sums = logits.clone(), torch.zeros(1)
        NextTokenTerms(tokens, 0.7, [], [], DIVERGENCES["forward"], 2.0, compiled).to_gradient(gradient, sums)
        found.append((gradient, sums))
    torch.testing.assert_close(found[0], found[1])


def test_terms_whose_gradient_autograd_computes_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled() -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(next_token, "_compiled", compiled)
    kept, ids = torch.randn(64, 50).log_softmax(-1).topk(8)
    teacher = Distribution(ids.view(4, 16, 8), kept.view(4, 16, 8), torch.log1p(-kept.exp().sum(-1)).view(4, 16))
    tokens, logits, sums = torch.randint(50, (4, 16)), torch.randn(64, 50), torch.zeros(2)
    for name, has_gradient in (("reverse", False), ("js", False), ("forward", True)):
        terms = NextTokenTerms(tokens, 0.5, [teacher], [0.5], DIVERGENCES[name], 1.0, compiled=True)
        if has_gradient:
            with pytest.raises(AssertionError, match="compiled"):
                terms.to_gradient(logits, sums)
        else:
            terms.to_gradient(logits, sums)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_blocks_of_many_models_are_compiled_in_one_process(make_shape: Callable[..., Any], corpus: Corpus) -> None:
    torch.compiler.reset()
    counters.clear()
    for number in range(10):  # torch itself allows eight
        model = make_shape("llama", intermediate_size=8 + number).build(corpus, seed=0)
        compile_blocks(model)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    assert counters["stats"]["unique_graphs"] == 10
