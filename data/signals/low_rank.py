"""The tokens that are not kept, by low rank: a few numbers per token reconstruct the teacher's logits of them.

A teacher's logits are W h + b, with few degrees of freedom. Let H be the covariance of the last hidden states h, π the
mean of the teacher's probabilities over tokens and temperatures, w_j the rows of W and w̄ = Σ_j π_j w_j. The error that
matters is that of the logits under π, M = Σ_j π_j (w_j − w̄)(w_j − w̄)ᵀ. With L = M^½ and U the principal components of
L H L, a token's codes are z = Uᵀ L (h − mean), and its logits c + B z with B = W L⁺ U and c = W · mean + b. An ensemble
is one such map: its mean logits are linear in the states of its models side by side.

If a head is not a linear map (capped logits), or if it is better, B and c come from a regression of the
log-probabilities on the codes.

Shapes: V vocabulary, W width (of all models together), r rank, n tokens.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palenka.data.signals.distribution import token_chunks
from palenka.data.signals.encoding import OutputMatrix, TeacherOutputs

_LEAST_SHARE = 1e-10
"""Share of the largest eigenvalue: directions with less are not inverted."""
_ROWS = 2**13
"""Rows of a head processed at once in float64: a whole head of a large vocabulary would take gigabytes."""
_COMPARED_EVERY = 4
"""The two maps from codes to logits are compared on one token of so many, which the regression is not fitted to."""


@dataclass(frozen=True)
class LowRankOthers:
    """The logits of all tokens as centre + basis · codes; see `distribution.Others`.

    Attributes:
        codes: over the temperature, [..., r] float32.
        basis: [V, r] float32.
        centre: over the temperature, [V] float32.
    """

    codes: Tensor
    basis: Tensor
    centre: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same for other rows."""
        return type(self)(change(self.codes), self.basis, self.centre)

    def logits_of(self, ids: Tensor) -> Tensor:
        """Logits of some tokens [..., k], the same shape; memory for k · r numbers a token."""
        return self.centre[ids] + (self.basis[ids] @ self.codes.unsqueeze(-1)).squeeze(-1)

    def logits(self) -> Tensor:
        """Logits of all V tokens, [..., V]."""
        flat = torch.addmm(self.centre, self.codes.flatten(0, -2), self.basis.T)
        logits: Tensor = flat.unflatten(0, self.codes.shape[:-1])
        return logits


@dataclass(frozen=True)
class LowRankMap:
    """How codes are made from states, and logits from codes; float32.

    Attributes:
        mean: of the last hidden states, [W].
        project: from states without their mean to codes, [r, W].
        basis: from codes to logits, [V, r].
        centre: logits at codes of 0, [V].
    """

    mean: Tensor
    project: Tensor
    basis: Tensor
    centre: Tensor

    @classmethod
    def of(cls, statics: Mapping[str, Tensor]) -> Self:
        """The map from the arrays that `vars` gives."""
        return cls(statics["mean"], statics["project"], statics["basis"], statics["centre"])

    def codes(self, states: Tensor) -> Tensor:
        """The codes of last hidden states [..., W]: [..., r] float32, on their device."""
        return (states.float() - self.mean.to(states.device)) @ self.project.to(states.device).T


def measure(
    sample: Iterable[TeacherOutputs],
    k: int,
    rank: int,
    temperatures: Sequence[float],
) -> tuple[LowRankMap, dict[str, float]]:
    """The better of the two maps, by the remaining divergence of the tokens outside the k most probable.

    Codes are not rounded here. A regression on rounded codes would shrink towards the mean what it predicts: the
    distributions that it gives have too much entropy, and students of them learn more slowly.

    Reads the sample three times. Memory: some V · r numbers, and W² in float64.

    Args:
        sample: a teacher's outputs for some windows, readable several times.
        k: tokens that are kept one by one.
        rank: numbers per token; components beyond those of the states are 0.
        temperatures: at which the divergence is measured.

    Returns:
        The map; and by name, ``head`` and ``regression``, the KL in nats a token that each leaves, a mean over the
        temperatures.
    """
    head = _joint_head(next(iter(sample)))
    mean, covariance, probabilities = _moments(sample, temperatures)
    project, inverse = _coordinates(covariance, head, probabilities, rank)
    plain = LowRankMap(mean.float(), project.float(), torch.empty(0), torch.empty(0))
    maps = {"regression": _regressed(sample, plain)}
    if head is not None:
        maps["head"] = _of_head(plain, head, mean, inverse)
    errors = {name: _error(sample, found, k, temperatures) for name, found in maps.items()}
    return maps[min(errors, key=lambda name: errors[name])], errors


def _of_head(plain: LowRankMap, head: OutputMatrix, mean: Tensor, inverse: Tensor) -> LowRankMap:
    """The map from codes to logits that the head itself gives, W L⁺ U and W · mean + b."""
    found = [(rows @ inverse, rows @ mean) for rows in map(_exact, head.weight.split(_ROWS))]
    basis, centre = (torch.cat(parts) for parts in zip(*found, strict=True))
    if head.bias is not None:
        centre = centre + _exact(head.bias)
    return LowRankMap(plain.mean, plain.project, basis.float(), centre.float())


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()


def _joint_head(outputs: TeacherOutputs) -> OutputMatrix | None:
    """The map from the states of all models side by side to the mean of their logits, if each has one."""
    if set(outputs.heads) != set(outputs.last):
        return None
    heads = [outputs.heads[name] for name in outputs.last]
    weight = torch.cat([head.weight.float() / len(heads) for head in heads], dim=-1)
    biases = [head.bias.float() / len(heads) for head in heads if head.bias is not None]
    return OutputMatrix(weight, torch.stack(biases).sum(0) if biases else None)


def states_of(outputs: TeacherOutputs) -> Tensor:
    """The last hidden states of all models side by side, [B, L, W]."""
    return torch.cat(list(outputs.last.values()), dim=-1)


def _tokens(sample: Iterable[TeacherOutputs], compared: bool | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The sample a few tokens at a time: states [n, W] and logits [n, V] in float32.

    These are copies, so that a reference to the last of them does not keep all logits of a pass, up to a gigabyte.

    Args:
        sample: all outputs.
        compared: yield only the tokens on which maps are compared, or only the others; default: all.
    """
    first = 0
    for outputs in sample:
        states, start = states_of(outputs).flatten(0, -2), 0
        for few in token_chunks(outputs.logits.flatten(0, -2)):
            rows = torch.arange(start, start + len(few), device=few.device)
            start += len(few)
            if compared is not None:
                # By the place in the whole sample, so that the choice does not depend on how it is cut into passes.
                rows = rows[((first + rows) % _COMPARED_EVERY == 0) == compared]
            yield states[rows].float(), few[rows - (start - len(few))].float()
        first += start
        del outputs, few


def _moments(sample: Iterable[TeacherOutputs], temperatures: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [W] and covariance [W, W] of the states, and mean probabilities [V], float64 on the CPU."""
    count, total, squares, probabilities = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for states, logits in _tokens(sample):
        exact = states.cpu().double()
        count, total, squares = count + len(exact), total + exact.sum(0), squares + exact.T @ exact
        for temperature in temperatures:
            probabilities = probabilities + (logits / temperature).softmax(-1).sum(0).cpu().double()
    mean = total / count
    return mean, squares / count - torch.outer(mean, mean), probabilities / (count * len(temperatures))


def _coordinates(
    covariance: Tensor, head: OutputMatrix | None, probabilities: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """From centred states to codes, Uᵀ L [r, W], and back, L⁺ U [W, r]; of the states' own variance without a head."""
    width = len(covariance)
    root = inverse = torch.eye(width, dtype=torch.float64)
    if head is not None:
        parts = list(zip(head.weight.split(_ROWS), probabilities.split(_ROWS), strict=True))
        mean = torch.stack([share @ _exact(rows) for rows, share in parts]).sum(0)
        metric = torch.zeros(width, width, dtype=torch.float64)
        for rows, share in parts:
            centred = _exact(rows) - mean
            metric += (centred * share.unsqueeze(-1)).T @ centred
        root, inverse = _root_and_inverse(metric)
    vectors = torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(-1)[:, :rank]
    missing = torch.zeros(width, max(0, rank - width), dtype=torch.float64)
    components = torch.cat([vectors, missing], dim=-1)
    return components.T @ root, inverse @ components


def _root_and_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """L = M^½ and L⁺ of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp_min(0).sqrt()
    inverses = torch.where(values > _LEAST_SHARE * values.max(), 1 / roots, 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T


def _regressed(sample: Iterable[TeacherOutputs], plain: LowRankMap) -> LowRankMap:
    """The map whose logits are closest to the centred log-probabilities: least squares for every token, float64."""
    gram, moments = torch.zeros(()), torch.zeros(())
    for states, logits in _tokens(sample, compared=False):
        codes = plain.codes(states)
        design = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=-1)
        centred = logits - logits.mean(dim=-1, keepdim=True)
        gram = gram + (design.T @ design).cpu().double()
        moments = moments + (design.T @ centred).cpu().double()
    solved = torch.linalg.lstsq(gram, moments, driver="gelsd").solution.float()
    return LowRankMap(plain.mean, plain.project, solved[:-1].T.contiguous(), solved[-1])


def _error(
    sample: Iterable[TeacherOutputs],
    found: LowRankMap,
    k: int,
    temperatures: Sequence[float],
) -> float:
    """KL in nats a token that is left of the tokens outside the k most probable, a mean over the temperatures."""
    total, count = 0.0, 0
    for states, logits in _tokens(sample, compared=True):
        device = logits.device
        codes = found.codes(states)
        approximate = torch.addmm(found.centre.to(device), codes, found.basis.to(device).T)
        kept = logits.topk(k, dim=-1).indices
        for temperature in temperatures:
            exact = (logits / temperature).log_softmax(-1)
            outside = exact.scatter(-1, kept, -math.inf)
            tail = outside.logsumexp(-1, keepdim=True)
            others = (approximate / temperature).scatter(-1, kept, -math.inf).log_softmax(-1) + tail
            difference = torch.where(outside > -math.inf, outside.exp() * (outside - others), 0.0)
            total += float(difference.sum()) / len(temperatures)
        count += len(logits)
    return total / count
