"""The terms over next tokens, hard and logit: their values and their gradient with respect to the student's logits.

The gradient is computed beside the values, from one softmax for each temperature. With t a teacher and q the student,
K the kept tokens, a = Σ_K t and b = Σ_K q, all at temperature T, forward KL has one bucket for all tokens not kept:

    KL = Σ_K t_i (log t_i − log q_i) + (1 − a) [log(1 − a) − log(1 − b)]

Its gradient with respect to the logits / T is q_j − t_j on K, exactly that of the full divergence, and
q_j − (1 − a) q_j / (1 − b) off K: the tail is distributed in proportion to the student's probabilities. It never
exceeds the full divergence. If a teacher has no tail, the second part is 0. If it knows the others one by one, the
divergence is over all of V and its gradient is q_j − t_j. Other divergences leave their gradient to autograd
(`divergences.py`).

Shapes: B batch, L window length, N = B · L tokens, n tokens of a chunk, V vocabulary, k kept tokens.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution
from palenka.data.signals.places import add_at, are_compared, fill_at, is_among
from palenka.train_student.objective.divergences import Divergence
from palenka.train_student.objective.outcomes import outcomes

_NEVER = -1e9
"""Logit of a token that is not among the others: its probability is exactly 0, and 0 times it is 0."""

_LARGEST_RATIO = 16.0
"""Largest ratio of a teacher's mass outside K to the student's at which one float32 softmax serves both."""


Weight = float | Tensor
"""Weight of a term: a number, or a scalar tensor."""


class NextTokenTerms:
    """The targets of the student's logits: the text's next tokens, and the teachers' distributions.

    Args:
        tokens: the windows, [B, L]; all tokens but the first are the labels of the hard term; None omits it.
        hard: weight of the hard term.
        distributions: the teachers' [B, L] at the temperature.
        weights: of these teachers.
        divergence: from the teachers.
        temperature: T.
        compiled: whether to compile the work on logits into a few passes over them instead of dozens; ignored if
            autograd computes a gradient.
    """

    def __init__(
        self,
        tokens: Tensor | None,
        hard: float,
        distributions: Sequence[Distribution],
        weights: Sequence[float],
        divergence: Divergence,
        temperature: float,
        compiled: bool = False,
    ) -> None:
        self.hard = hard
        self.labels = _labels(tokens) if tokens is not None else None
        self.divergence = divergence
        self.temperature = temperature
        self.compiled = compiled
        self.weights = list(weights)
        self.teachers = [distribution.flat() for distribution in distributions]

    def rows(self, rows: slice) -> "NextTokenTerms":
        """The same for some of the N tokens."""
        few = copy.copy(self)
        few.labels = None if self.labels is None else (self.labels[0][rows], self.labels[1][rows])
        few.teachers = [teacher.rows(rows) for teacher in self.teachers]
        return few

    def to_gradient(self, logits: Tensor, sums: Tensor) -> None:
        """Overwrite the student's logits [n, V] with the gradient of the weighted sum of the terms.

        Args:
            logits: for these tokens.
            sums: of the hard term and of every teacher's scaled divergence, to which those of these tokens are added;
                their type, float32 or float64, is that of the computation.
        """
        targets = [*([] if self.labels is None else [self.labels[0]]), *(teacher.ids for teacher in self.teachers)]
        # Here, before logits are overwritten: inside, looking them up would end a compiled pass.
        looked_up = [None if ids is None else logits.gather(-1, ids) for ids in targets]
        if self.compiled and (self.divergence.has_gradient or not self.teachers):
            # As a tensor on the CPU, whose numbers are passed to kernels: every new float would recompile the function.
            weights = (torch.tensor(weight) for weight in (self.hard, *self.weights))
            _compiled()(self, logits, looked_up, sums, *weights)
        else:
            _to_gradient(self, logits, looked_up, sums, self.hard, *self.weights)


def _to_gradient(
    terms: NextTokenTerms,
    logits: Tensor,
    looked_up: Sequence[Tensor | None],
    sums: Tensor,
    hard: Weight,
    *weights: Weight,
) -> None:
    """The work of `NextTokenTerms.to_gradient`, with the given weights instead of those of the terms.

    `looked_up` are the student's logits of the labels, if there are any, and of each teacher's kept tokens.
    """
    exact = logits.to(sums.dtype)
    scale, temperature = terms.divergence.scale(terms.temperature), terms.temperature
    softmaxes: dict[float, _Softmax] = {}
    if terms.labels is not None:
        of_labels, *looked_up = looked_up
        assert of_labels is not None
        softmaxes[1.0] = _Softmax(exact, 1.0)
        sums[0] += softmaxes[1.0].add_hard(hard, *terms.labels, of_labels)
    by_hand = len(terms.teachers) > 0 and terms.divergence.has_gradient
    if by_hand:
        if temperature not in softmaxes:
            softmaxes[temperature] = _Softmax(exact, temperature)
        parts = zip(weights, terms.teachers, looked_up, strict=True)
        for number, (weight, teacher, of_kept) in enumerate(parts, start=1):
            sums[number] += scale * softmaxes[temperature].add_forward(weight * scale, teacher, of_kept)
    gradients = [softmax.gradient() for softmax in softmaxes.values()]
    if len(terms.teachers) > 0 and not by_hand:
        gradients.append(_by_autograd(terms, exact, sums, weights))
    logits.copy_(gradients[0] if len(gradients) == 1 else gradients[0].add_(gradients[1]))


@cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_to_gradient, dynamic=False, fullgraph=True)


def _by_autograd(terms: NextTokenTerms, logits: Tensor, sums: Tensor, weights: Sequence[Weight]) -> Tensor:
    scale = terms.divergence.scale(terms.temperature)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        total = leaf.new_zeros(())
        for number, (weight, teacher) in enumerate(zip(weights, terms.teachers, strict=True), start=1):
            value = terms.divergence.formula(*outcomes(leaf, teacher, terms.temperature)).sum()
            sums[number] += scale * value.detach()
            total = total + weight * scale * value
        return torch.autograd.grad(total, leaf)[0]


def _labels(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The next token of each, and its share in the mean times N, [N, 1] both; a window's last token has share 0."""
    # Terms are sums over N = B · L places divided by N, but the cross-entropy is a mean over the B (L − 1) places that
    # have a next token: each of these has a share of N / (B (L − 1)), and a window's last place 0.
    counted = torch.ones_like(tokens, dtype=torch.float32)
    counted[:, -1] = 0
    shares = counted * counted.numel() / counted.sum()
    return tokens.roll(-1, dims=-1).reshape(-1, 1), shares.view(-1, 1)


class _Softmax:
    """The student's distribution q at a temperature, the gradient of the terms at it, and their values.

    The gradient is coefficient · q, plus additions for some tokens or at some places.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        self.temperature = temperature
        self.logits = logits if temperature == 1 else logits / temperature
        # All logits may share a large offset: the logarithm of q is relative to that of the most probable token.
        self.probabilities, self.peak, self.log_of_peak = _softmax(self.logits)
        self.coefficient = torch.zeros_like(self.peak)
        self.dense: list[tuple[Tensor, Tensor]] = []
        self.scattered: list[tuple[Tensor, Tensor]] = []
        self.rows: list[tuple[Tensor, Tensor]] = []

    def log_probabilities(self, logits: Tensor | None) -> Tensor:
        """Log-probabilities of the tokens with these logits [n, k], as the student gave them; or of all, [n, V]."""
        scaled = self.logits if logits is None else logits.to(self.logits.dtype) / self.temperature
        return scaled - self.peak + self.log_of_peak

    def gradient(self) -> Tensor:
        """The gradient in the logits, [n, V]; overwrites q."""
        gradient = self.probabilities.mul_(self.coefficient)
        for values, factors in self.dense:
            gradient.addcmul_(values, factors)
        for ids, values in self.scattered:
            gradient = add_at(gradient, ids, values)
        for rows, values in self.rows:
            gradient.index_add_(0, rows, values)
        return gradient

    def add_hard(self, weight: Weight, labels: Tensor, shares: Tensor, logits: Tensor) -> Tensor:
        """Add the cross-entropy of labels [n, 1] with shares and logits [n, 1]; returns its sum."""
        self.coefficient += weight * shares
        self.scattered.append((labels, (-weight * shares).to(self.logits.dtype)))
        return -(shares * self.log_probabilities(logits)).sum()

    def add_forward(self, weight: Weight, teacher: Distribution, logits: Tensor | None) -> Tensor:
        """Add forward KL from a teacher's distributions of n tokens, times a weight; returns its sum without it.

        `logits` are the student's for the kept tokens, [n, k].

        With r = (1 − a) / (1 − b) a teacher's t is r · q off K: the gradient is (1 − r) · q there, and on K r · q − t
        is added. So one softmax serves all teachers. If r is large, this would cancel, or 1 − b has underflowed: these
        rare tokens are computed separately, from the logits outside K. A GPU computes all tokens so, since selecting
        them would wait for it.
        """
        scale = weight / self.temperature  # by the chain rule, through logits / T
        ids, log_kept, log_tail = teacher.ids, teacher.log_kept, teacher.log_tail
        log_q = self.log_probabilities(logits)
        if ids is None:
            kept = log_kept.to(self.logits.dtype).exp()
            self.coefficient += scale
            self.dense.append((kept, -scale * torch.ones_like(self.peak)))
            return (kept * (log_kept - log_q)).sum()
        if teacher.others is not None:
            return self._add_whole(scale, teacher, log_q, teacher.others.logits())
        kept = log_kept.exp()
        divergence = (kept * (log_kept - log_q)).sum(dim=-1)
        student, outside = self._on_and_off(ids, log_q)
        tail, log_outside = log_tail.exp(), outside.log()
        is_rare = tail > _LARGEST_RATIO * outside
        if self.logits.device.type == "cpu" and not torch.compiler.is_compiling():
            rare = is_rare.nonzero().flatten()
            if len(rare):
                exact, gradient = self._apart(ids[rare], tail[rare], scale, rare)
                log_outside[rare] = exact
                self.rows.append((rare, gradient))
        else:
            # Selecting the rows would wait for the device: all are computed, and theirs are used.
            exact, gradient = self._apart(ids, torch.where(is_rare, tail, 0.0), scale)
            log_outside = torch.where(is_rare, exact, log_outside)
            self.dense.append((gradient, torch.ones_like(self.peak)))
        outside = outside.masked_fill(is_rare, math.inf)
        divergence += torch.where(tail > 0, tail * (log_tail - log_outside), 0.0)
        ratio = torch.where(tail > 0, tail / outside, 0.0).unsqueeze(-1)
        self.coefficient += scale * (1 - ratio)
        self.scattered.append((ids, scale * (ratio * student - kept)))
        return divergence.sum()

    def _on_and_off(self, ids: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities on K, [n, k], and their mass off K, [n]. 1 minus the mass on K would lose digits."""
        if are_compared(ids):
            return log_q.exp(), torch.where(is_among(ids, self.probabilities), 0.0, self.probabilities).sum(dim=-1)
        # Set to 0 on K, summed and put back, in place: a copy would be as large as the logits.
        on = self.probabilities.gather(-1, ids)
        off = self.probabilities.scatter_(-1, ids, 0.0).sum(dim=-1)
        self.probabilities.scatter_(-1, ids, on)
        return on, off

    def _apart(self, ids: Tensor, tail: Tensor, scale: Weight, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log of q outside the ids of some rows, or of all, and the gradient of the teacher's mass there."""
        logits, peak, log_of_peak = (
            part if rows is None else part[rows] for part in (self.logits, self.peak, self.log_of_peak)
        )
        complement = fill_at(logits, ids, -math.inf, in_place=False)
        beside_peak = (complement - peak).logsumexp(dim=-1, keepdim=True)
        gradient = complement.softmax(dim=-1).mul_(-scale * tail.unsqueeze(-1))
        return (beside_peak + log_of_peak).squeeze(-1), gradient

    def _add_whole(self, scale: Weight, teacher: Distribution, log_q: Tensor, others: Tensor) -> Tensor:
        """The same if the others are known, by logits [n, V] that are overwritten; `log_q` is of K, [n, k].

        With o the others' distribution, 0 on K, and Z their log-normaliser, they add
        tail · [log tail + Σ o (logit_o − logit_q) − Z + log-normaliser of q]. The gradient is q − t everywhere.
        """
        ids, log_kept, log_tail = teacher.ids, teacher.log_kept, teacher.log_tail
        assert ids is not None
        others = fill_at(others.to(self.logits.dtype), ids, _NEVER)
        shares, peak, log_of_peak = _softmax(others)
        normalizers = (self.peak - self.log_of_peak) - (peak - log_of_peak)
        apart = others.sub_(self.logits).mul_(shares).sum(dim=-1) + normalizers.squeeze(-1)
        kept, tail = log_kept.exp(), log_tail.exp()
        divergence = (kept * (log_kept - log_q)).sum(dim=-1)
        divergence += torch.where(tail > 0, tail * (log_tail + apart), 0.0)
        self.coefficient += scale
        self.dense.append((shares, (-scale * tail).to(shares.dtype).unsqueeze(-1)))
        self.scattered.append((ids, (-scale * kept).to(shares.dtype)))
        return divergence.sum()


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities [n, V] of logits, the largest logit, and the logarithm of its probability, [n, 1] both."""
    peak = logits.amax(dim=-1, keepdim=True)
    if torch.compiler.is_compiling():  # one pass less than a maximum of the probabilities, which need not be stored
        total = (logits - peak).exp().sum(dim=-1, keepdim=True)
        return (logits - peak).exp() / total, peak, -total.log()  # not the same tensor: torch 2.13 fails to compile it
    probabilities = logits.softmax(dim=-1)
    # Two maxima are ten times as fast as one with its place.
    return probabilities, peak, probabilities.amax(dim=-1, keepdim=True).log()
