"""Reverse KL and Jensen-Shannon against dense float64 references, and the properties that define them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.signal import TeacherSignal
from palenka.ground.errors import UserError
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import open_teachers

Losses = Callable[..., tuple[Tensor, dict[str, Tensor]]]
LogitsOf = Callable[..., Tensor]
SpokenOf = Callable[[Tensor, Tensor], Distribution]
SignalOf = Callable[..., TeacherSignal]
Measure = Callable[[str, Tensor, Tensor, int, float], Tensor]

VOCABULARY = 24
KINDS = ["forward", "reverse", "js"]


def coarsened(probabilities: Tensor, ids: Tensor | None) -> Tensor:
    """Probabilities [B, L, V] of the kept ids [B, L, k] and of all others as one; of all if all are kept."""
    if ids is None:
        return probabilities
    kept = probabilities.gather(-1, ids)
    others = torch.ones_like(probabilities).scatter(-1, ids, 0.0)
    return torch.cat([kept, (others * probabilities).sum(-1, keepdim=True)], dim=-1)


def dense(kind: str, t: Tensor, q: Tensor) -> Tensor:
    """The definition, of probabilities [B, L, outcomes] in float64; a mean over tokens."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    m = (t + q) / 2
    values = {"forward": kl(t, q), "reverse": kl(q, t), "js": (kl(t, m) + kl(q, m)) / 2}
    return values[kind].mean()


@pytest.fixture(scope="session")
def measured(losses_of_logits: Losses, signal_of: SignalOf) -> Measure:
    """A divergence, not scaled by T²."""

    def divergence(kind: str, student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
        spoken = signal_of(teacher, k).at(temperature)
        return losses_of_logits(student, {"t": spoken}, {"t": 1.0}, temperature, kind)[0] / temperature**2

    return divergence


@pytest.mark.parametrize("kind", ["reverse", "js"])
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY), temperature=st.sampled_from([1.0, 2.0]))
def test_value_and_gradient_equal_dense_autograd_in_float64(
    logits_of: LogitsOf, losses_of_logits: Losses, signal_of: SignalOf, kind: str, seed: int, k: int, temperature: float
) -> None:
    teachers = {"a": logits_of(seed, 2, 3, VOCABULARY), "b": logits_of(seed + 1, 2, 3, VOCABULARY, scale=0.5)}
    weights = {"a": 0.3, "b": 1.7}
    spoken = {name: signal_of(logits, k).at(temperature) for name, logits in teachers.items()}
    student = logits_of(seed + 2, 2, 3, VOCABULARY).requires_grad_()
    tokens = torch.randint(0, VOCABULARY, (2, 3), generator=torch.Generator().manual_seed(seed))
    total, values = losses_of_logits(student, spoken, weights, temperature, kind, tokens=tokens, hard=0.7)
    total.backward()
    reference = student.detach().double().requires_grad_()
    q = (reference / temperature).softmax(-1)
    expected = {}
    for name, logits in teachers.items():
        ids = spoken[name].ids
        t = (logits.double() / temperature).softmax(-1)
        expected[name] = temperature**2 * dense(kind, coarsened(t, ids), coarsened(q, ids))
    expected["hard"] = F.cross_entropy(reference[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    sum((({"hard": 0.7} | weights)[name] * expected[name] for name in expected), torch.zeros(())).backward()
    for name, value in values.items():
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), expected[name].detach(), rtol=1e-4, atol=1e-5)
    assert student.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_with_everything_kept_it_is_the_divergence_over_all_tokens(
    measured: Measure, kind: str, logits_of: LogitsOf
) -> None:
    teacher, student = logits_of(0, 2, 3, VOCABULARY), logits_of(1, 2, 3, VOCABULARY)
    t, q = (Categorical(logits=logits.double() / 2) for logits in (teacher, student))
    m = Categorical(probs=(t.probs + q.probs) / 2)
    full = {
        "forward": kl_divergence(t, q),
        "reverse": kl_divergence(q, t),
        "js": (kl_divergence(t, m) + kl_divergence(q, m)) / 2,
    }
    value = measured(kind, student, teacher, VOCABULARY, 2.0).item()
    assert value == pytest.approx(full[kind].mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY - 1))
def test_keeping_more_tokens_never_lowers_it_and_it_stays_within_its_bounds(
    logits_of: LogitsOf, measured: Measure, kind: str, seed: int, k: int
) -> None:
    teacher, student = logits_of(seed, 2, 3, VOCABULARY), logits_of(seed + 1, 2, 3, VOCABULARY)
    fewer, more = (measured(kind, student, teacher, kept, 2.0).item() for kept in (k, k + 1))
    assert -1e-6 <= fewer <= more + 1e-5
    if kind == "js":
        assert more <= math.log(2) + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_zero_with_no_gradient_where_student_and_teacher_agree(
    measured: Measure, kind: str, logits_of: LogitsOf
) -> None:
    teacher = logits_of(4, 2, 3, VOCABULARY)
    student = teacher.clone().requires_grad_()
    value = measured(kind, student, teacher, 6, 2.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_js_is_symmetric_and_reverse_is_forward_with_sides_exchanged(measured: Measure, logits_of: LogitsOf) -> None:
    a, b = logits_of(0, 2, 3, VOCABULARY), logits_of(1, 2, 3, VOCABULARY)
    assert measured("js", a, b, VOCABULARY, 1.0).item() == pytest.approx(measured("js", b, a, VOCABULARY, 1.0).item())
    reverse, forward = measured("reverse", a, b, VOCABULARY, 1.0), measured("forward", b, a, VOCABULARY, 1.0)
    assert reverse.item() == pytest.approx(forward.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["reverse", "js"])
def test_gradcheck_in_float64(measured: Measure, kind: str, logits_of: LogitsOf) -> None:
    teacher = logits_of(3, 2, 3, 9)
    student = logits_of(7, 2, 3, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: measured(kind, z, teacher, 4, 2.0), student)


@pytest.mark.parametrize("kind", ["reverse", "js"])
@pytest.mark.parametrize("student_scale", [1.0, 1000.0])
@pytest.mark.parametrize("log_tail", [-math.inf, -60.0, -1e-7])
def test_extreme_masses_stay_finite(
    losses_of_logits: Losses, kind: str, student_scale: float, log_tail: float, logits_of: LogitsOf, spoken_of: SpokenOf
) -> None:
    spoken = spoken_of(torch.tensor([3, 5]).expand(1, 4, 2), torch.full((1, 4), log_tail))
    student = logits_of(0, 1, 4, 16, scale=student_scale).requires_grad_()
    value, _ = losses_of_logits(student, {"t": spoken}, {"t": 1.0}, 1.0, kind)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("encoding", [{"kind": "sampled"}, {"kind": "hybrid", "k": 4, "draws": 4}])
def test_draws_are_refused_for_what_they_estimate_with_a_bias(
    encoding: dict[str, Any],
    capture_settings: CaptureSettings,
    corpus: Corpus,
    settings_of_run: Callable[..., TrainSettings],
    changed: Callable[..., CaptureSettings],
) -> None:
    settings = changed(capture_settings, logits=encoding, fraction=0.05)
    capture(settings)
    for kind in KINDS:
        objective = {"logit": 1.0, "temperature": 1.0, "divergence": kind}
        student = settings_of_run(fraction=0.05, teachers={"t": {"cache": settings.output}}, objective=objective)
        if kind == "forward":
            open_teachers(student, corpus, torch.device("cpu"))
            continue
        message = rf"holds {encoding['kind']} logits, but objective.divergence is {kind}; draws are unbiased for "
        with pytest.raises(UserError, match=message):
            open_teachers(student, corpus, torch.device("cpu"))


def test_a_divergence_that_is_not_known_is_refused_by_name(settings_of_run: Callable[..., TrainSettings]) -> None:
    with pytest.raises(ValueError, match=r"forward.*reverse.*js") as refusal:
        settings_of_run(objective={"divergence": "sideways"})
    assert "objective.divergence" in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_square_of_the_temperature_scales_those_that_ask_for_it(
    signal_of: SignalOf, kind: str, logits_of: LogitsOf
) -> None:
    spoken, student = (
        [signal_of(logits_of(0, 2, 3, VOCABULARY), 5).at(2.0)],
        logits_of(1, 2, 3, VOCABULARY).flatten(0, 1),
    )
    found = []
    for squared in (True, False):
        divergence = replace(DIVERGENCES[kind], squares_temperature=squared)
        sums, gradient = torch.zeros(2), student.clone()
        NextTokenTerms(None, 0.0, spoken, [0.3], divergence, 2.0).to_gradient(gradient, sums)
        found.append((sums, gradient))
    assert found[0][0][1] > 0.1
    torch.testing.assert_close(found[0][0], 4 * found[1][0])
    torch.testing.assert_close(found[0][1], 4 * found[1][1])
