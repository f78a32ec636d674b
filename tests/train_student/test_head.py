"""The head with its terms in one function, against plain autograd, whatever the chunks and the precision."""

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from palenka.data.corpus import Corpus
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.stream import Batch
from palenka.train_student.model import head as head_module
from palenka.train_student.model.head import head_terms
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.objective.objective import Objective
from palenka.train_student.objective.settings import ObjectiveSettings

SignalOf = Callable[..., TeacherSignal]
Signals = Mapping[str, TeacherSignal]
Case = Callable[..., tuple[Tensor, Tensor, Signals]]

WIDTH = 8
WEIGHTS = {"a": 0.5, "b": 0.25}


def linear(vocabulary: int, seed: int = 0, *, bias: bool = True) -> nn.Linear:
    head, draw = nn.Linear(WIDTH, vocabulary, bias=bias), torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=draw)
    return head


@pytest.fixture
def case(signal_of: SignalOf, normal: Callable[..., Tensor], logits_of: Callable[..., Tensor]) -> Case:
    """Makes states, tokens and what two teachers say of them."""

    def make(windows: int, length: int, vocabulary: int, k: int = 5) -> tuple[Tensor, Tensor, Signals]:
        tokens = torch.randint(0, vocabulary, (windows, length), generator=torch.Generator().manual_seed(9))
        signals = {
            name: signal_of(logits_of(seed, windows, length, vocabulary), k)
            for seed, name in enumerate(WEIGHTS, start=10)
        }
        return normal(20, windows, length, WIDTH), tokens, signals

    return make


def plain(
    states: Tensor,
    head: nn.Linear,
    tokens: Tensor,
    signals: Mapping[str, TeacherSignal],
    hard: float,
    temperature: float,
) -> Tensor:
    """The sum of the terms by autograd, whole and in float64."""
    weight, bias = head.weight.double(), head.bias.double() if head.bias is not None else None
    logits = F.linear(states.double(), weight, bias)
    total = hard * F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    log_student = (logits / temperature).log_softmax(-1)
    for name, signal in signals.items():
        spoken = signal.at(temperature)
        assert spoken.ids is not None
        kept, tail = spoken.log_kept.double(), spoken.log_tail.double()
        outside = log_student.scatter(-1, spoken.ids, -torch.inf).logsumexp(-1)
        divergence = (kept.exp() * (kept - log_student.gather(-1, spoken.ids))).sum(-1) + tail.exp() * (tail - outside)
        total = total + WEIGHTS[name] * temperature**2 * divergence.mean()
    return total


def gradients(loss: Tensor, states: Tensor, head: nn.Linear) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, [states, *head.parameters()])]


def fused(states: Tensor, head: nn.Linear, tokens: Tensor, signals: Signals, hard: float, temperature: float) -> Tensor:
    return head_terms(states, head, terms_of(tokens, signals, hard, temperature, "forward"))[0]


def terms_of(tokens: Tensor, signals: Signals, hard: float, temperature: float, divergence: str) -> NextTokenTerms:
    spoken = [signal.at(temperature) for signal in signals.values()]
    return NextTokenTerms(tokens, hard, spoken, [*WEIGHTS.values()], DIVERGENCES[divergence], temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("logits_of_a_chunk", [2**26, 7 * 2**16, 1])
def test_chunks_give_the_value_and_gradients_of_the_whole(
    case: Case, monkeypatch: pytest.MonkeyPatch, *, temperature: float, bias: bool, logits_of_a_chunk: int
) -> None:
    monkeypatch.setattr(head_module, "_LOGITS", logits_of_a_chunk)
    states, tokens, signals = case(2, 20, 2**16)  # 32 tokens lie in a processor's cache together
    head = linear(2**16, bias=bias)
    states.requires_grad_()
    found = fused(states, head, tokens, signals, 0.7, temperature)
    expected = plain(states, head, tokens, signals, 0.7, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(gradients(found, states, head), gradients(expected, states, head), strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_a_second_derivative_is_refused(case: Case) -> None:
    states, tokens, signals = case(2, 3, 9, k=4)
    states.requires_grad_()
    loss = fused(states, linear(9), tokens, signals, 0.7, 1.0)
    (gradient,) = torch.autograd.grad(loss.square(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
def test_gradcheck_in_float64(case: Case, divergence: str, temperature: float) -> None:
    states, tokens, signals = case(2, 3, 9, k=4)
    head = linear(9).double()
    terms = terms_of(tokens, signals, 0.7, temperature, divergence)

    def total(states: Tensor, *parameters: Tensor) -> Tensor:
        moved = nn.Linear(WIDTH, 9)
        for name, parameter in zip(("weight", "bias"), parameters, strict=True):
            delattr(moved, name)
            setattr(moved, name, parameter)
        return head_terms(states, moved, terms)[0]

    assert torch.autograd.gradcheck(total, (states.double().requires_grad_(), *head.parameters()))


@pytest.mark.parametrize("logits_of_a_chunk", [2**26, 1])
def test_bf16_products_are_summed_in_float32(
    case: Case, monkeypatch: pytest.MonkeyPatch, logits_of_a_chunk: int
) -> None:
    monkeypatch.setattr(head_module, "_LOGITS", logits_of_a_chunk)
    states, tokens, signals = case(4, 64, 50)
    head = linear(50)
    states.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(states, head, tokens, signals, 1.0, 2.0)
    assert found.dtype == torch.float32
    expected = plain(states, head, tokens, signals, 1.0, 2.0)
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    for one, other in zip(gradients(found, states, head), gradients(expected, states, head), strict=True):
        # bf16 knows 8 bits; sums in it of one term for each of 256 tokens would be off by far more.
        assert (one - other).norm() < 6e-3 * other.norm()


def test_a_model_in_bf16_has_gradients_in_bf16(case: Case) -> None:
    states, tokens, signals = case(2, 8, 50)
    head = linear(50).bfloat16()
    loss = fused(states.bfloat16().requires_grad_(), head, tokens, signals, 1.0, 2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.bfloat16


def test_fp16_gradients_survive_until_the_loss_scaler_acts(case: Case) -> None:
    # 1 / N times a probability of 1 in 2,048 is nothing in fp16.
    states, tokens, signals = case(16, 128, 2048)
    states = states.half().requires_grad_()
    exact = states.detach().double().requires_grad_()
    head = linear(2048).half()
    scale = 16_384.0
    found = gradients(scale * fused(states, head, tokens, signals, 1.0, 2.0), states, head)
    expected = gradients(scale * plain(exact, head, tokens, signals, 1.0, 2.0), exact, head)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 3e-3 * other.norm()


def test_small_entries_of_the_heads_gradient_survive_in_fp16(case: Case) -> None:
    states, tokens, signals = case(16, 128, 2048)
    states = states.half().requires_grad_()
    head = linear(2048).half()
    scale = 16_384.0
    found = gradients(scale * fused(states, head, tokens, signals, 1.0, 2.0), states, head)[1]
    exact = states.detach().double().requires_grad_()
    expected = gradients(scale * plain(exact, head, tokens, signals, 1.0, 2.0), exact, head)[1]
    small = expected.abs() < expected.abs().quantile(0.1)
    assert ((found - expected).abs()[small] < 0.1 * expected.abs()[small]).double().mean() > 0.9
    assert (found[small & (expected != 0)] == 0).double().mean() < 1e-3


def test_sums_over_tokens_that_fp16_cannot_hold_are_finite(case: Case) -> None:
    states, tokens, signals = case(64, 128, 64)
    states[..., 0] = 100.0
    head = linear(64).half()
    with torch.no_grad():
        head.weight[:, 0] = 0.0
    loss = fused(states.half(), head, tokens.fill_(3), signals, 1.0, 1.0)
    # The sum over 8,192 tokens is above 65,504; the mean is not.
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient.isfinite().all()
    assert gradient[3, 0] < -50


def test_the_head_learns_in_float32_after_autocast_has_seen_it(case: Case) -> None:
    """Casts made for the terms must not be reused, without a gradient, by other users of the same weights."""
    states, tokens, signals = case(2, 4, 50)
    head = linear(50)
    with torch.autocast("cpu", torch.bfloat16):
        total = fused(states.requires_grad_(), head, tokens, signals, 1.0, 2.0) + head(states).float().sum()
    total.backward()
    alone = torch.autograd.grad(head(states).sum(), head.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        (without,) = torch.autograd.grad(fused(states, head, tokens, signals, 1.0, 2.0), head.weight)
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad - without, alone, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_the_hard_term_of_a_student_is_the_loss_of_its_own_model(
    architecture: str, corpus: Corpus, make_shape: Callable[..., ModelShape]
) -> None:
    student = make_shape(architecture).build(corpus, seed=3)
    tokens = torch.from_numpy(corpus.tokens[:128].astype("int64")).view(8, 16)
    loss, terms = Objective(student, ObjectiveSettings(), {}, seed=0)(Batch(tokens, tokens[:, :0], {}), {"hard": 0.5})
    parameters = list(student.parameters())
    found = torch.autograd.grad(loss, parameters)
    own = student(input_ids=tokens, labels=tokens).loss
    assert terms["hard"].item() == pytest.approx(own.item(), rel=1e-6)
    for one, other in zip(found, torch.autograd.grad(0.5 * own, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
