"""A teacher's distribution: rows and positions of it, its entropy and all its tokens, against float64."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palenka.data.signals.distribution import Distribution, Others, log1mexp
from palenka.data.signals.low_rank import LowRankOthers
from palenka.data.signals.signal import TeacherSignal

VOCABULARY = 12
KNOWN = {"a part": 5, "all": VOCABULARY}


WithOthers = Callable[[Distribution, Tensor], Distribution]


@pytest.fixture(scope="module")
def with_others(others_of: Callable[[Tensor], Others]) -> WithOthers:
    """The same where the others' logits are known, up to a shift, and whatever they say of the kept tokens."""

    def known(distribution: Distribution, logits: Tensor) -> Distribution:
        assert distribution.ids is not None
        return replace(distribution, others=others_of(logits.scatter(-1, distribution.ids, 99.0) + 7.0))

    return known


@pytest.mark.parametrize("known", ["a part", "all", "others"])
def test_rows_and_positions_are_those_of_the_tokens(
    signal_of: Callable[..., TeacherSignal], with_others: WithOthers, known: str, logits_of: Callable[..., Tensor]
) -> None:
    logits = logits_of(0, 4, 6, VOCABULARY)
    whole = signal_of(logits, KNOWN.get(known, 5)).at(2.0)
    if known == "others":
        whole = with_others(whole, logits / 2)
    positions = torch.tensor([[5, 0, 3], [1, 2, 0], [4, 3, 1], [0, 5, 2]])
    picked, some = whole.at(positions), whole.flat().rows(slice(7, 17))
    for window in range(4):
        for place, position in enumerate(positions[window]):
            same(picked, (window, place), whole, (window, int(position)))
    assert some.log_tail.shape == (10,)
    for row in range(10):
        same(some, (row,), whole, ((row + 7) // 6, (row + 7) % 6))


def same(one: Distribution, here: tuple[int, ...], other: Distribution, there: tuple[int, ...]) -> None:
    assert torch.equal(one.log_kept[here], other.log_kept[there])
    assert torch.equal(one.log_tail[here], other.log_tail[there])
    assert (one.ids is None) == (other.ids is None)
    if one.ids is not None and other.ids is not None:
        assert torch.equal(one.ids[here], other.ids[there])
    if one.others is not None and other.others is not None:
        assert torch.equal(one.others.logits()[here], other.others.logits()[there])


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([1.0, 2.0]))
def test_with_the_others_known_it_is_the_whole_distribution(
    logits_of: Callable[..., Tensor],
    signal_of: Callable[..., TeacherSignal],
    with_others: WithOthers,
    seed: int,
    temperature: float,
) -> None:
    logits = logits_of(seed, 4, 6, VOCABULARY)
    exact = (logits.double() / temperature).log_softmax(-1)
    known = with_others(signal_of(logits, 5).at(temperature), logits / temperature)
    torch.testing.assert_close(known.log_probabilities(VOCABULARY).double(), exact, rtol=0, atol=1e-4)
    everything = signal_of(logits, VOCABULARY).at(temperature)
    torch.testing.assert_close(everything.log_probabilities(VOCABULARY).double(), exact, rtol=0, atol=1e-4)
    entropy = -(exact.exp() * exact).sum(-1)
    for whole in (known, everything):
        torch.testing.assert_close(whole.entropy(), entropy, rtol=1e-4, atol=1e-5)


def test_the_entropy_of_many_tokens_takes_the_memory_of_few() -> None:
    seen: list[int] = []

    class Large(LowRankOthers):
        def logits(self) -> Tensor:
            seen.append(len(self.codes))
            return super().logits()

    draw = torch.Generator().manual_seed(0)
    codes, basis = torch.randn(3, 100, 2, generator=draw), torch.randn(500, 2, generator=draw)
    logits = codes @ basis.T
    exact = logits.double().log_softmax(-1)
    kept, ids = exact[..., :5].float(), torch.arange(5).expand(3, 100, 5)
    tail = exact[..., 5:].logsumexp(-1).float()
    found = Distribution(ids, kept, tail, Large(codes, basis, torch.zeros(500))).entropy()
    torch.testing.assert_close(found, -(exact.exp() * exact).sum(-1), rtol=1e-5, atol=1e-5)
    assert sum(seen) == 300
    assert max(seen) < 100


@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY - 1))
def test_with_the_others_unknown_its_entropy_is_that_of_one_bucket(
    logits_of: Callable[..., Tensor], signal_of: Callable[..., TeacherSignal], seed: int, k: int
) -> None:
    probabilities = logits_of(seed, 4, 6, VOCABULARY).double().softmax(-1).sort(-1, descending=True).values
    bucketed = torch.cat([probabilities[..., :k], probabilities[..., k:].sum(-1, keepdim=True)], dim=-1)
    found = signal_of(logits_of(seed, 4, 6, VOCABULARY), k).at(1.0).entropy()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, -(bucketed * bucketed.log()).sum(-1), rtol=1e-4, atol=1e-5)
    assert bool((found <= -(probabilities * probabilities.log()).sum(-1) + 1e-6).all())


def test_what_is_not_known_of_the_others_is_not_invented(
    signal_of: Callable[..., TeacherSignal], logits_of: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match="5 of 12 tokens are known one by one, the others are not"):
        signal_of(logits_of(0, 4, 6, VOCABULARY), 5).at(1.0).log_probabilities(VOCABULARY)


@given(x=st.floats(-80, -1e-30))
def test_log1mexp_agrees_with_float64(x: float) -> None:
    expected = math.log(-math.expm1(x)) if x > -0.5 else math.log1p(-math.exp(x))
    assert log1mexp(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
