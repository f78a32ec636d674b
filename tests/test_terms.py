"""The terms of the objective against dense float64 references."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.signal import TeacherSignal, top_k_signal
from train_student.terms import hard_loss, tail_bucket_kl


def logits_of(seed: int, vocabulary: int = 24, scale: float = 3.0) -> Tensor:
    return torch.randn(2, 3, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def dense_tail_bucket(student: Tensor, teacher: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The formula written down with full distributions in float64, differentiated by autograd."""
    t = (teacher.double() / temperature).softmax(-1)
    q = (student.double() / temperature).softmax(-1)
    kept = torch.zeros_like(t).scatter(-1, ids, 1.0)
    inside = (kept * t * (t.log() - q.log())).sum(-1)
    t_tail, q_tail = ((1 - kept) * t).sum(-1), ((1 - kept) * q).sum(-1)
    tail = t_tail * (t_tail.log() - q_tail.log()) if ids.shape[-1] < t.shape[-1] else 0.0
    return (inside + tail).mean()


@given(seed=st.integers(0, 10_000), k=st.integers(1, 24), temperature=st.sampled_from([1.0, 2.0]))
def test_value_and_gradient_equal_dense_autograd_in_float64(seed: int, k: int, temperature: float) -> None:
    teachers = {"a": logits_of(seed), "b": logits_of(seed + 1, scale=0.5)}
    weights = {"a": 0.3, "b": 1.7}
    signals = {name: top_k_signal(logits, k, (1.0, 2.0)) for name, logits in teachers.items()}
    student = logits_of(seed + 2).requires_grad_()
    total, divergences = tail_bucket_kl(student, signals, weights, temperature)
    total.backward()

    reference = student.detach().double().requires_grad_()
    expected = {
        name: dense_tail_bucket(reference, logits, signals[name].ids, temperature) for name, logits in teachers.items()
    }
    sum((weights[name] * expected[name] for name in expected), torch.zeros(())).backward()
    for name in teachers:
        torch.testing.assert_close(divergences[name].double(), expected[name].detach(), rtol=1e-4, atol=1e-6)
    assert student.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=1e-4, atol=1e-7)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 24), temperature=st.sampled_from([1.0, 2.0]))
def test_it_never_exceeds_the_full_divergence(seed: int, k: int, temperature: float) -> None:
    teacher, student = logits_of(seed), logits_of(seed + 1)
    bounded, _ = tail_bucket_kl(student, {"t": top_k_signal(teacher, k, (1.0, 2.0))}, {"t": 1.0}, temperature)
    full = F.kl_div(
        (student.double() / temperature).log_softmax(-1),
        (teacher.double() / temperature).log_softmax(-1),
        log_target=True,
        reduction="none",
    )
    assert -1e-6 <= bounded.item() <= full.sum(-1).mean().item() + 1e-5


def test_with_everything_kept_it_is_the_full_divergence() -> None:
    teacher, student = logits_of(0), logits_of(1)
    value, _ = tail_bucket_kl(student, {"t": top_k_signal(teacher, 24, (2.0,))}, {"t": 1.0}, 2.0)
    full = F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none").sum(-1).mean()
    torch.testing.assert_close(value, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("student_scale", [1.0, 1000.0])
@pytest.mark.parametrize("mass", ["kept mass exactly 1", "kept mass 1 in float32", "no kept mass to speak of"])
def test_extreme_masses_stay_finite(mass: str, student_scale: float) -> None:
    k = 2
    log_tail = {"kept mass exactly 1": -math.inf, "kept mass 1 in float32": -60.0, "no kept mass to speak of": -1e-7}
    ids = torch.tensor([3, 5]).expand(1, 4, k)
    values = torch.tensor([-0.5, -1.0]).expand(1, 4, k)
    signal = TeacherSignal(ids, values, torch.full((1, 4, 1), log_tail[mass]), (1.0,))
    student = (torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0)) * student_scale).requires_grad_()
    value, _ = tail_bucket_kl(student, {"t": signal}, {"t": 1.0}, 1.0)
    value.backward()
    assert student.grad is not None
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_gradcheck_in_float64() -> None:
    signals = {name: top_k_signal(logits_of(seed, 9), 4, (2.0,)) for seed, name in enumerate("ab")}
    student = logits_of(7, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: tail_bucket_kl(z, signals, {"a": 0.5, "b": 0.25}, 2.0)[0], student)


def test_chunks_give_the_gradient_of_the_whole() -> None:
    vocabulary = 2**18  # 8 tokens a chunk
    teacher, student = (
        torch.randn(1, 20, vocabulary, generator=torch.Generator().manual_seed(seed)) * 6 for seed in (0, 1)
    )
    signal = top_k_signal(teacher, 4, (1.0,))
    student.requires_grad_()
    value, _ = tail_bucket_kl(student, {"t": signal}, {"t": 1.0}, 1.0)
    value.backward()
    expected = dense_tail_bucket(student.detach(), teacher, signal.ids, 1.0)
    torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert student.grad is not None
    last = student.detach()[:, -1:].double().requires_grad_()
    dense_tail_bucket(last, teacher[:, -1:], signal.ids[:, -1:], 1.0).backward()
    assert last.grad is not None
    torch.testing.assert_close(student.grad[:, -1:].double(), last.grad / 20, rtol=1e-4, atol=1e-9)


def test_bf16_logits_are_summed_in_float32() -> None:
    teacher, student = logits_of(0), logits_of(1).bfloat16()
    signal = top_k_signal(teacher, 8, (2.0,))
    rough = student.clone().requires_grad_()
    exact = student.float().requires_grad_()
    for logits in (rough, exact):
        tail_bucket_kl(logits, {"t": signal}, {"t": 1.0}, 2.0)[0].backward()
    value, _ = tail_bucket_kl(rough, {"t": signal}, {"t": 1.0}, 2.0)
    assert value.dtype == torch.float32
    assert rough.grad is not None
    assert exact.grad is not None
    assert rough.grad.dtype == torch.bfloat16
    torch.testing.assert_close(rough.grad.float(), exact.grad, rtol=1e-2, atol=1e-5)


def test_fp16_gradients_survive_until_the_loss_scaler_acts() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(1, 4096, 512, generator=generator) * 3 for _ in range(2))
    signal = top_k_signal(teacher, 8, (2.0,))
    scale = 16_384.0
    rough, exact = student.half().requires_grad_(), student.half().float().requires_grad_()
    for logits in (rough, exact):
        (scale * tail_bucket_kl(logits, {"t": signal}, {"t": 1.0}, 2.0)[0]).backward()
    assert rough.grad is not None
    assert exact.grad is not None
    error = (rough.grad.float() - exact.grad).norm() / exact.grad.norm()
    assert error < 2e-3


def test_a_common_shift_of_the_logits_changes_nothing() -> None:
    teacher, student = logits_of(0), logits_of(1)
    signal = top_k_signal(teacher, 6, (1.0, 2.0))
    shifted = top_k_signal(teacher - 1000.0, 6, (1.0, 2.0))
    torch.testing.assert_close(shifted.log_tail, signal.log_tail, rtol=0, atol=2e-4)
    value, _ = tail_bucket_kl(student, {"t": signal}, {"t": 1.0}, 2.0)
    moved, _ = tail_bucket_kl(student - 1000.0, {"t": shifted}, {"t": 1.0}, 2.0)
    torch.testing.assert_close(moved, value, rtol=0, atol=2e-4)


def test_hard_loss_is_the_shifted_cross_entropy() -> None:
    logits, tokens = logits_of(0), torch.tensor([[1, 5, 9], [3, 3, 0]])
    log_probabilities = logits.double().log_softmax(-1)
    expected = -torch.stack(
        [log_probabilities[row, place, tokens[row, place + 1]] for row in range(2) for place in range(2)]
    ).mean()
    assert hard_loss(logits, tokens).item() == pytest.approx(expected.item(), rel=1e-6)
