"""The terms over next tokens, hard and logit, against dense float64 references."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.distribution import Distribution, Others
from palenka.data.signals.signal import TeacherSignal

Losses = Callable[..., tuple[Tensor, dict[str, Tensor]]]
LogitsOf = Callable[..., Tensor]
SpokenOf = Callable[[Tensor, Tensor], Distribution]
SignalOf = Callable[..., TeacherSignal]


def dense_tail_bucket(student: Tensor, teacher: Tensor, ids: Tensor | None, temperature: float) -> Tensor:
    """The formula written down with full distributions in float64, differentiated by autograd."""
    t = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)
    if ids is None:
        return (t * (t.log() - q.log())).sum(-1).mean()
    kept = torch.zeros_like(t).scatter(-1, ids, 1.0)
    inside = (kept * t * (t.log() - q.log())).sum(-1)
    t_tail, q_tail = ((1 - kept) * t).sum(-1), ((1 - kept) * q).sum(-1)
    return (inside + t_tail * (t_tail.log() - q_tail.log())).mean()


def shifted_cross_entropy(student: Tensor, tokens: Tensor) -> Tensor:
    log_probabilities = student.double().log_softmax(-1)
    rows, length = tokens.shape
    picked = [log_probabilities[row, at, tokens[row, at + 1]] for row in range(rows) for at in range(length - 1)]
    return -torch.stack(picked).mean()


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 24),
    temperature=st.sampled_from([1.0, 2.0]),
    hard=st.sampled_from([None, 0.0, 0.7]),
)
def test_values_and_gradient_equal_dense_autograd_in_float64(
    logits_of: LogitsOf,
    losses_of_logits: Losses,
    signal_of: SignalOf,
    seed: int,
    k: int,
    temperature: float,
    hard: float | None,
) -> None:
    teachers = {"a": logits_of(seed, 2, 3, 24), "b": logits_of(seed + 1, 2, 3, 24, scale=0.5)}
    weights = {"a": 0.3, "b": 1.7}
    spoken = {name: signal_of(logits, k).at(temperature) for name, logits in teachers.items()}
    student = logits_of(seed + 2, 2, 3, 24).requires_grad_()
    tokens = torch.randint(0, 24, (2, 3), generator=torch.Generator().manual_seed(seed))
    with_labels = {"tokens": tokens, "hard": hard} if hard is not None else {}
    total, values = losses_of_logits(student, spoken, weights, temperature, **with_labels)
    total.backward()

    reference = student.detach().double().requires_grad_()
    expected = {
        name: temperature**2 * dense_tail_bucket(reference, logits, spoken[name].ids, temperature)
        for name, logits in teachers.items()
    }
    if hard is not None:
        weights["hard"], expected["hard"] = hard, shifted_cross_entropy(reference, tokens)
    loss = sum((weights[name] * expected[name] for name in expected), torch.zeros(()))
    loss.backward()
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    for name in expected:
        assert not values[name].requires_grad
        torch.testing.assert_close(values[name].double(), expected[name].detach(), rtol=1e-4, atol=1e-6)
    assert student.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 24), temperature=st.sampled_from([1.0, 2.0]))
def test_it_never_exceeds_the_full_divergence(
    logits_of: LogitsOf, losses_of_logits: Losses, signal_of: SignalOf, seed: int, k: int, temperature: float
) -> None:
    teacher, student = logits_of(seed, 2, 3, 24), logits_of(seed + 1, 2, 3, 24)
    kept = signal_of(teacher, k).at(temperature)
    bounded, _ = losses_of_logits(student, {"t": kept}, {"t": 1.0}, temperature)
    full = F.kl_div(
        (student.double() / temperature).log_softmax(-1),
        (teacher.double() / temperature).log_softmax(-1),
        log_target=True,
        reduction="none",
    )
    assert -1e-6 <= bounded.item() <= temperature**2 * full.sum(-1).mean().item() + 1e-5


def test_with_everything_kept_it_is_the_full_divergence(
    losses_of_logits: Losses, signal_of: SignalOf, logits_of: LogitsOf
) -> None:
    teacher, student = logits_of(0, 2, 3, 24), logits_of(1, 2, 3, 24)
    value, _ = losses_of_logits(student, {"t": signal_of(teacher, 24).at(2.0)}, {"t": 1.0}, 2.0)
    full = F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none").sum(-1).mean()
    torch.testing.assert_close(value, 4 * full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gap", [0.0, 30.0, 300.0])
def test_a_student_without_mass_where_the_teacher_has_its_tail_is_pulled_there(
    losses_of_logits: Losses, gap: float, logits_of: LogitsOf, spoken_of: SpokenOf
) -> None:
    ids = torch.tensor([3, 5]).expand(2, 3, 2)
    spoken = spoken_of(ids, torch.full((2, 3), -2.0))
    student = logits_of(0, 2, 3, 16)
    student = student.scatter_add(-1, ids, torch.full(ids.shape, gap)).requires_grad_()
    value, _ = losses_of_logits(student, {"t": spoken}, {"t": 1.0}, 1.0)
    value.backward()
    exact = student.detach().double().requires_grad_()
    log_student = exact.log_softmax(-1)
    kept, tail = spoken.log_kept.double(), spoken.log_tail.double()
    outside = log_student.scatter(-1, ids, -math.inf).logsumexp(-1)
    expected = (kept.exp() * (kept - log_student.gather(-1, ids))).sum(-1) + tail.exp() * (tail - outside)
    expected.mean().backward()
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert student.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("student_scale", [1.0, 1000.0])
@pytest.mark.parametrize("mass", ["kept mass exactly 1", "kept mass 1 in float32", "no kept mass to speak of"])
def test_extreme_masses_stay_finite(
    losses_of_logits: Losses, mass: str, student_scale: float, logits_of: LogitsOf, spoken_of: SpokenOf
) -> None:
    log_tail = {"kept mass exactly 1": -math.inf, "kept mass 1 in float32": -60.0, "no kept mass to speak of": -1e-7}
    spoken = spoken_of(torch.tensor([3, 5]).expand(1, 4, 2), torch.full((1, 4), log_tail[mass]))
    student = logits_of(0, 1, 4, 16, scale=student_scale).requires_grad_()
    value, _ = losses_of_logits(student, {"t": spoken}, {"t": 1.0}, 1.0)
    value.backward()
    assert student.grad is not None
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_a_common_shift_of_the_logits_changes_nothing(
    losses_of_logits: Losses, signal_of: SignalOf, logits_of: LogitsOf
) -> None:
    teacher, student = logits_of(0, 2, 3, 24), logits_of(1, 2, 3, 24)
    spoken, shifted = (signal_of(logits, 6).at(2.0) for logits in (teacher, teacher - 1000.0))
    torch.testing.assert_close(shifted.log_tail, spoken.log_tail, rtol=0, atol=2e-4)
    value, _ = losses_of_logits(student, {"t": spoken}, {"t": 1.0}, 2.0)
    moved, _ = losses_of_logits(student - 1000.0, {"t": shifted}, {"t": 1.0}, 2.0)
    torch.testing.assert_close(moved, value, rtol=0, atol=2e-4)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@given(seed=st.integers(0, 10_000), k=st.integers(1, 23))
def test_with_the_others_known_it_is_the_divergence_over_all_tokens(
    logits_of: LogitsOf,
    losses_of_logits: Losses,
    signal_of: SignalOf,
    others_of: Callable[[Tensor], Others],
    divergence: str,
    seed: int,
    k: int,
) -> None:
    teacher = logits_of(seed, 2, 3, 24)
    bucketed, whole = signal_of(teacher, k).at(2.0), signal_of(teacher, 24).at(2.0)
    known = replace(bucketed, others=others_of(teacher / 2 + 5.0))
    found = []
    for spoken in (known, whole):
        student = logits_of(seed + 1, 2, 3, 24).requires_grad_()
        value, _ = losses_of_logits(student, {"t": spoken}, {"t": 1.0}, 2.0, divergence)
        value.backward()
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
