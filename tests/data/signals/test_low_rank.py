"""The tokens that are not kept by low rank, against teachers whose logits are known in float64."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.encoding import TeacherOutputs
from palenka.data.signals.encodings import LowRankEncoding, TopKEncoding
from palenka.data.signals.signal import TeacherSignal

Contents = Callable[[Path], dict[str, bytes]]

Normal = Callable[..., Tensor]
Outputs = Callable[..., TeacherOutputs]

VOCABULARY = 60
LossesOfLogits = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def decoded(
    encoding: LowRankEncoding, said: TeacherOutputs, sample: list[TeacherOutputs]
) -> Mapping[float, Distribution]:
    statics = encoding.measure(sample)
    arrays = encoding.encode(said, statics)
    stored = encoding.arrays(VOCABULARY)
    assert {name: (part.shape[-1], str(part.dtype)) for name, part in arrays.items() if name != "ids"} == {
        name: (row.width, f"torch.{row.dtype}") for name, row in stored.items() if name != "ids"
    }
    return {temperature: encoding.decode(arrays, statics, temperature) for temperature in encoding.temperatures}


@pytest.mark.parametrize(("models", "width"), [(("one",), 12), (("one", "two"), 12 + 7)])
def test_at_full_rank_in_float32_nothing_is_lost(
    models: tuple[str, ...], width: int, outputs_of_heads: Outputs
) -> None:
    said, sample = outputs_of_heads(99, models), [outputs_of_heads(seed, models) for seed in range(20)]
    encoding = LowRankEncoding(k=5, rank=width, codes="float32", values="float32")
    for temperature, found in decoded(encoding, said, sample).items():
        expected = (said.logits.double() / temperature).log_softmax(-1)
        torch.testing.assert_close(found.log_probabilities(VOCABULARY).double(), expected, rtol=0, atol=2e-4)


def test_a_rank_beyond_the_width_is_that_of_the_width(
    outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs]
) -> None:
    said = outputs_of_heads(98)
    encoding = LowRankEncoding(k=5, rank=12 + 9, codes="float32", values="float32")
    found = decoded(encoding, said, sample_of_heads)[1.0].log_probabilities(VOCABULARY)
    torch.testing.assert_close(found, said.logits.log_softmax(-1), rtol=0, atol=2e-4)


def test_kept_tokens_and_the_mass_of_the_others_are_exact_whatever_the_rank(
    outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs]
) -> None:
    said = outputs_of_heads(97)
    encoding = LowRankEncoding(k=6, rank=2, values="float32")
    for temperature, found in decoded(encoding, said, sample_of_heads).items():
        exact = (said.logits.double() / temperature).log_softmax(-1)
        whole = found.log_probabilities(VOCABULARY).double()
        assert found.ids is not None
        torch.testing.assert_close(whole.gather(-1, found.ids), exact.gather(-1, found.ids), rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 40, dtype=torch.float64), rtol=0, atol=1e-5)


def test_more_rank_leaves_less_and_little_beside_a_flat_tail(
    outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs]
) -> None:
    said = outputs_of_heads(96)
    exact = said.logits.double().log_softmax(-1)

    def left(found: Distribution) -> float:
        return float((exact.exp() * (exact - found.log_probabilities(VOCABULARY).double())).sum(-1).mean())

    by_rank = [left(decoded(LowRankEncoding(k=4, rank=rank), said, sample_of_heads)[1.0]) for rank in (1, 2, 4, 8)]
    assert by_rank == sorted(by_rank, reverse=True)
    kept = exact.topk(4).indices
    outside = exact.scatter(-1, kept, -torch.inf)
    flat = torch.full_like(exact, -np.log(VOCABULARY - 4)) + outside.logsumexp(-1, keepdim=True)
    truncated = torch.where(outside > -torch.inf, exact.exp() * (exact - flat), 0.0).sum(-1).mean()
    assert by_rank[-1] < 0.25 * float(truncated)


def test_a_head_that_caps_its_logits_is_met_by_regression(outputs_of_heads: Outputs) -> None:
    sample = [outputs_of_heads(seed, cap=4.0) for seed in range(20)]
    statics = LowRankEncoding(k=5, rank=12).measure(sample)
    by_head, by_regression = statics["errors"].tolist()
    assert by_regression < by_head
    headless = [replace(part, heads={}) for part in sample]
    errors = LowRankEncoding(k=5, rank=12).measure(headless)["errors"]
    assert bool(errors[0].isnan())
    assert errors[1] < 2 * by_regression


def test_both_maps_of_full_rank_leave_nothing(sample_of_heads: list[TeacherOutputs]) -> None:
    errors = LowRankEncoding(k=5, rank=12).measure(sample_of_heads)["errors"]
    assert errors.tolist() == pytest.approx([0.0, 0.0], abs=1e-4)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "js"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_and_gradients_are_those_of_the_dense_distribution(
    losses_of_logits: LossesOfLogits,
    divergence: str,
    temperature: float,
    outputs_of_heads: Outputs,
    sample_of_heads: list[TeacherOutputs],
    normal: Normal,
) -> None:
    said = outputs_of_heads(95)
    found = decoded(LowRankEncoding(k=5, rank=3), said, sample_of_heads)[temperature]
    student = (2 * normal(5, 2, 40, VOCABULARY)).requires_grad_()
    total, _ = losses_of_logits(student, {"t": found}, {"t": 0.7}, temperature, divergence)
    (gradient,) = torch.autograd.grad(total, student)
    exact = student.detach().double().requires_grad_()
    t, q = found.log_probabilities(VOCABULARY).double(), (exact / temperature).log_softmax(-1)
    middle = torch.logaddexp(t, q) - np.log(2.0)
    by_token = {
        "forward": t.exp() * (t - q),
        "reverse": q.exp() * (q - t),
        "js": (t.exp() * (t - middle) + q.exp() * (q - middle)) / 2,
    }
    expected = 0.7 * temperature**2 * by_token[divergence].sum(-1).mean()
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-7)


def test_full_rank_in_float32_gives_the_live_teachers_loss(
    losses_of_logits: LossesOfLogits, outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs], normal: Normal
) -> None:
    said, student = outputs_of_heads(94), 2 * normal(6, 2, 40, VOCABULARY)
    encoding = LowRankEncoding(k=5, rank=12, codes="float32", values="float32")
    live = TopKEncoding(k=VOCABULARY, values="float32")
    for temperature, found in decoded(encoding, said, sample_of_heads).items():
        whole = live.decode(live.encode(said, {}), {}, temperature)
        for divergence in ("forward", "reverse", "js"):
            ours, theirs = (
                losses_of_logits(student, {"t": each}, {"t": 1.0}, temperature, divergence)[0]
                for each in (found, whole)
            )
            assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_capture_keeps_what_it_measured_and_goes_on_with_it(
    capture_settings: CaptureSettings, contents: Contents, changed: Callable[..., CaptureSettings]
) -> None:
    settings = changed(capture_settings, logits={"kind": "low_rank", "rank": 4})
    capture(settings)
    whole = contents(settings.output)
    (settings.output / "commits" / "0-1.json").unlink()
    capture(settings)
    assert contents(settings.output) == whole
    cache = TeacherCache(settings.output)
    assert set(cache.measured.statics) == {"mean", "project", "basis", "centre", "errors", "prediction", "gain"}
    found = cache.read(0, np.arange(20, dtype=np.int64)).at(2.0)
    everything = found.log_probabilities(cache.manifest.vocabulary_size).exp().sum(-1)
    torch.testing.assert_close(everything, torch.ones_like(everything), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_student_in_half_precision_hears_its_teacher_in_float32(
    kind: torch.dtype,
    losses_of_logits: LossesOfLogits,
    outputs_of_heads: Outputs,
    sample_of_heads: list[TeacherOutputs],
    normal: Normal,
) -> None:
    encoding, said = LowRankEncoding(k=5, rank=8), outputs_of_heads(96)
    statics = encoding.measure(sample_of_heads)
    arrays = encoding.encode(said, statics)
    logits = normal(4, 2, 40, VOCABULARY).to(kind).float()
    found = []
    for is_half in (False, True):
        with torch.autocast("cpu", kind, enabled=is_half):
            heard = TeacherSignal(encoding, arrays, statics).at(2.0)
            assert heard.log_kept.dtype == torch.float32
            found.append((heard.log_kept, losses_of_logits(logits, {"t": heard}, {"t": 1.0}, 2.0)[0]))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=0)
