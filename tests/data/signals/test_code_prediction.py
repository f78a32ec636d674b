"""Codes predicted from the kept tokens, against least squares in numpy, and what the prediction saves."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from palenka.data.signals.code_prediction import CodeRegression, gains, predict
from palenka.data.signals.encoding import TeacherOutputs
from palenka.data.signals.encodings import LowRankEncoding
from palenka.data.signals.low_rank import LowRankMap, LowRankOthers, states_of

Outputs = Callable[..., TeacherOutputs]

VOCABULARY, RANK, KEPT, TEMPERATURES = 60, 5, 3, 2


def tokens(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kept ids, log-odds and codes of some tokens; the codes depend on the first two and on chance."""
    numbers = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (count, KEPT), generator=numbers)
    odds = 2 * torch.randn(count, TEMPERATURES, generator=numbers)
    rows = BASIS[ids].sum(-2)
    codes = rows * (1 + 0.3 * odds[:, :1]) + 0.1 * torch.randn(count, RANK, generator=numbers)
    return ids, odds, codes


BASIS = torch.randn(VOCABULARY, RANK, generator=torch.Generator().manual_seed(1))


def fitted(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    regression = CodeRegression(BASIS, TEMPERATURES)
    for ids, odds, codes in parts:
        regression.add(ids, odds, codes)
    return regression.finish()[0]


def test_the_prediction_is_that_of_least_squares() -> None:
    ids, odds, codes = tokens(2, 4000)
    found = predict(ids, odds, BASIS, fitted([(ids, odds, codes)])).double().numpy()
    one = np.ones((4000, 1))
    masses = np.concatenate([one, odds.double().clamp(-8, 8).numpy()], 1)
    rows = np.concatenate([one, BASIS.double().numpy()[ids.numpy()].sum(1)], 1)
    features = np.einsum("na,nb->nab", masses, rows).reshape(4000, -1)
    expected = features @ np.linalg.lstsq(features, codes.double().numpy(), rcond=None)[0]
    # The ridge moves a prediction by a thousandth of its size.
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_tokens_in_parts_and_in_any_order_give_the_same_weights() -> None:
    ids, odds, codes = tokens(3, 600)
    parts = [(ids[part], odds[part], codes[part]) for part in (slice(400, 600), slice(0, 150), slice(150, 400))]
    torch.testing.assert_close(fitted(parts), fitted([(ids, odds, codes)]), rtol=1e-5, atol=1e-6)


def test_it_explains_tokens_that_it_was_not_fitted_to() -> None:
    ids, odds, codes = tokens(5, 500)
    left = codes - predict(ids, odds, BASIS, fitted([tokens(4, 2000)]))
    assert left.square().mean() < 0.02 * codes.square().mean()


def test_without_any_token_and_with_infinite_odds_it_stays_finite() -> None:
    assert torch.equal(fitted([]), torch.zeros((1 + TEMPERATURES) * (1 + RANK), RANK))
    ids, odds, codes = tokens(6, 200)
    certain = torch.full_like(odds, torch.inf)
    assert predict(ids, certain, BASIS, fitted([(ids, odds, codes), (ids, certain, codes)])).isfinite().all()


def test_residuals_are_smaller_than_the_codes_and_decode_to_the_same(
    outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs]
) -> None:
    encoding, said = LowRankEncoding(k=6, rank=8, step=0.2), outputs_of_heads(93)
    statics = encoding.measure(sample_of_heads)
    blind = {**statics, "prediction": torch.zeros_like(statics["prediction"])}
    with_it, without = encoding.encode(said, statics), encoding.encode(said, blind)
    assert with_it["codes"].float().square().mean() < 0.8 * without["codes"].float().square().mean()
    near, same = (encoding.decode(*pair, 1.0).others for pair in ((with_it, statics), (without, blind)))
    assert isinstance(near, LowRankOthers)
    assert isinstance(same, LowRankOthers)
    # Both are the same codes, each rounded to the step and multiplied by a gain.
    assert (near.codes - same.codes).abs().max() <= 0.2 * 1.5 + 1e-5


def test_the_variance_is_that_of_the_residuals() -> None:
    ids, odds, codes = tokens(7, 800)
    regression = CodeRegression(BASIS, TEMPERATURES)
    regression.add(ids, odds, codes)
    weights, variance = regression.finish()
    left = (codes - predict(ids, odds, BASIS, weights)).double()
    torch.testing.assert_close(variance, left.square().mean(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("deviation", [0.4, 0.7, 1.0, 3.0])
def test_a_gain_undoes_what_rounding_takes_on_average(deviation: float) -> None:
    def product(z: float) -> float:
        return float(z * np.round(z) * stats.norm.pdf(z, scale=deviation))

    edges = np.arange(0.5, 8 * deviation + 1)
    limits = np.concatenate([[0.0], edges])
    half = sum(integrate.quad(product, *pair)[0] for pair in pairwise(limits))
    expected = deviation**2 / (2 * half)
    found = gains(torch.tensor([deviation**2], dtype=torch.float64), 1.0)
    assert found.item() == pytest.approx(np.clip(expected, 1, 1.5), rel=1e-5)


def test_gains_are_limited_and_finite_for_components_without_variance() -> None:
    found = gains(torch.tensor([0.0, 1e-12, 0.01, 1e9]), 0.1)
    assert found.tolist() == pytest.approx([1.5, 1.5, 1.0, 1.0], abs=1e-3)


def test_decoded_components_are_as_large_as_the_teachers(
    outputs_of_heads: Outputs, sample_of_heads: list[TeacherOutputs]
) -> None:
    encoding = LowRankEncoding(k=3, rank=12, step=4.0)
    statics = encoding.measure(sample_of_heads)
    exact, found = [], []
    for said in (outputs_of_heads(seed) for seed in range(50, 150)):
        arrays = encoding.encode(said, statics)
        predicted = encoding._predicted_codes(arrays, statics)
        exact.append((LowRankMap.of(statics).codes(states_of(said)) - predicted).flatten(0, 1))
        found.append((encoding._codes(arrays, statics) - predicted).flatten(0, 1))
    residuals, decoded = torch.cat(exact), torch.cat(found)
    slopes = (residuals * decoded).mean(0) / residuals.square().mean(0)
    gain = statics["gain"]
    corrected = (gain > 1.05) & (gain < 1.5)
    assert corrected.sum() >= 2
    torch.testing.assert_close(slopes[corrected], torch.ones_like(slopes[corrected]), rtol=0.1, atol=0)
    assert (slopes[corrected] / gain[corrected]).max() < 0.95


def test_where_all_tokens_are_kept_nothing_is_predicted(sample_of_heads: list[TeacherOutputs]) -> None:
    encoding = LowRankEncoding(k=VOCABULARY, rank=4)
    statics = encoding.measure(sample_of_heads)
    assert not statics["prediction"].any()
    assert encoding.decode(encoding.encode(sample_of_heads[0], statics), statics, 1.0).ids is None
