"""Logit encodings on a real teacher: bytes a token, what the codec loses, and what that does to a student's gradient.

    python benchmarks/encodings.py --corpus CORPUS --teacher TEACHER --student STUDENT

For every encoding and k, on the same random windows: bytes a token in the store; KL between exact and decoded values
over kept tokens and tail; and the relative L2 error of the gradient in the student's logits against that of the
full-vocabulary divergence, for exact values (truncation alone) and for decoded ones (codec too).
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from palenka.cache_teachers.plan import plan
from palenka.cache_teachers.settings import CaptureSettings, PlanSettings
from palenka.data.corpus import Corpus
from palenka.data.model_files import load_model
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.encoding import (
    HybridEncoding,
    LogitEncoding,
    SampledEncoding,
    TeacherOutputs,
    TopKEncoding,
)
from palenka.data.windows import WindowRule, gather
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms

WINDOWS, MICRO_BATCH = 64, 8
SIZES = (8, 16, 32, 64, 128)
TEMPERATURES = (1.0, 2.0)
CPU = torch.device("cpu")


class Logits:
    """Teacher's and student's logits on the sampled windows, a micro-batch at a time."""

    def __init__(self, corpus: Corpus, teacher: Path, student: Path) -> None:
        self.rule = WindowRule()
        self.indices = self.rule.slots(len(corpus.tokens), 0)[:WINDOWS]
        tokens = torch.from_numpy(gather(corpus.tokens, self.rule, 0, self.indices))
        models = load_model(teacher, CPU), load_model(student, CPU)
        with torch.no_grad():
            self.parts = [
                tuple(model(input_ids=part, use_cache=False).logits for model in models)
                for part in tokens.split(MICRO_BATCH)
            ]

    def decoded(self, encoding: LogitEncoding, number: int, temperature: float) -> Distribution:
        """What an encoding keeps of the teacher's distributions of a micro-batch."""
        chosen = self.indices[number * MICRO_BATCH : (number + 1) * MICRO_BATCH]

        def uniforms(count: int) -> Tensor:
            return torch.from_numpy(self.rule.uniforms(0, chosen, count))

        outputs = TeacherOutputs(self.parts[number][0], {}, {}, {}, uniforms)
        return encoding.decode(encoding.encode(outputs, {}), {}, temperature)

    def entropy(self) -> float:
        """Of the teacher at T = 1, in nats."""
        return float(torch.stack([_entropy(teacher) for teacher, _ in self.parts]).mean())


def _entropy(logits: Tensor) -> Tensor:
    log_probabilities = logits.double().log_softmax(-1)
    entropies: Tensor = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return entropies.mean()


def gradient(student: Tensor, teacher: Distribution, temperature: float) -> Tensor:
    """Of the divergence from a teacher, in the student's logits."""
    terms = NextTokenTerms(None, 0.0, [teacher], [1.0], DIVERGENCES["forward"], temperature)
    of_sum = terms.add(student.flatten(0, 1), slice(None), torch.zeros(2))
    return of_sum.view_as(student).double() / (temperature**2 * student.shape[0] * student.shape[1])


def full_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Of the divergence over the whole vocabulary."""
    tokens = student.shape[0] * student.shape[1]
    difference = (student.double() / temperature).softmax(-1) - (teacher.double() / temperature).softmax(-1)
    return difference / (temperature * tokens)


class Errors:
    """Sums of squares of gradient errors, and of codec divergences, over micro-batches."""

    def __init__(self) -> None:
        self.squares = {"truncation": 0.0, "both": 0.0, "full": 0.0}
        self.divergence = 0.0

    def add(self, full: Tensor, exact: Tensor | None, decoded: Tensor) -> None:
        """Count a micro-batch's gradients; `exact` is None where truncation is not apart from the encoding."""
        self.squares["full"] += float(full.square().sum())
        self.squares["both"] += float((decoded - full).square().sum())
        if exact is not None:
            self.squares["truncation"] += float((exact - full).square().sum())

    def relative(self, name: str) -> float:
        """Relative L2 error."""
        return math.sqrt(self.squares[name] / self.squares["full"])


def codec_divergence(exact: Distribution, decoded: Distribution) -> float:
    """KL(exact ‖ decoded) over kept tokens and tail, a mean over tokens."""
    kept, tail = exact.log_kept.double(), exact.log_tail.double()
    found, found_tail = decoded.log_kept.double(), decoded.log_tail.double()
    return float(((kept.exp() * (kept - found)).sum(-1) + tail.exp() * (tail - found_tail)).mean())


def measure(logits: Logits, encoding: LogitEncoding, temperature: float) -> tuple[Errors, float]:
    """Gradient errors and codec divergence of an encoding at a temperature."""
    errors, divergences = Errors(), []
    for number, (teacher, student) in enumerate(logits.parts):
        decoded, exact = logits.decoded(encoding, number, temperature), None
        if isinstance(encoding, TopKEncoding):
            exact = logits.decoded(encoding.model_copy(update={"values": "float32"}), number, temperature)
            divergences.append(codec_divergence(exact, decoded))
        errors.add(
            full_gradient(student, teacher, temperature),
            gradient(student, exact, temperature) if exact is not None else None,
            gradient(student, decoded, temperature),
        )
    return errors, sum(divergences) / max(1, len(divergences))


def renormalised(logits: Logits, k: int, temperature: float) -> float:
    """Relative gradient error when the kept tokens' probabilities are scaled to sum to 1."""
    errors = Errors()
    encoding = TopKEncoding(k=k, temperatures=(temperature,), values="float32")
    for number, (teacher, student) in enumerate(logits.parts):
        kept = logits.decoded(encoding, number, temperature)
        nothing = torch.full_like(kept.log_tail, -math.inf)
        alone = replace(kept, log_kept=kept.log_kept.log_softmax(-1), log_tail=nothing)
        errors.add(full_gradient(student, teacher, temperature), None, gradient(student, alone, temperature))
    return errors.relative("both")


def bytes_per_token(given: argparse.Namespace, encoding: LogitEncoding) -> float:
    """On disk, of the logits, in a store of one block of windows."""
    settings = CaptureSettings(
        teacher=given.teacher, corpus=given.corpus, output=Path("unused"), logits=encoding, micro_batch=MICRO_BATCH
    )
    return float(plan(PlanSettings(**settings.model_dump(), sample=WINDOWS))["bytes_per_token"]["all"])


def encodings(k: int, temperature: float) -> dict[str, LogitEncoding]:
    """The encodings of one size; draws serve one temperature, so they are made at it."""
    half = max(1, k // 2)
    both = TEMPERATURES
    return {
        "topk uint8": TopKEncoding(k=k, temperatures=both),
        "topk float16": TopKEncoding(k=k, temperatures=both, values="float16"),
        "sampled": SampledEncoding(draws=k, temperatures=(temperature,)),
        "hybrid uint8": HybridEncoding(k=half, draws=half, temperatures=(temperature,)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "teacher", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    corpus = Corpus.open(given.corpus, "train")
    logits = Logits(corpus, given.teacher, given.student)
    print(f"Entropy of the teacher: {logits.entropy():.2f} nats; {WINDOWS} windows of {logits.rule.length} tokens.\n")
    columns = ["k or draws", "encoding", "bytes a token", "codec KL T=1", "codec KL T=2"]
    columns += [f"gradient error T={t:g}, {kind}" for t in TEMPERATURES for kind in ("truncation", "with codec")]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for k in SIZES:
        for name in encodings(k, 1.0):
            measured = [measure(logits, encodings(k, t)[name], t) for t in TEMPERATURES]
            size = bytes_per_token(given, encodings(k, 1.0)[name])
            kl = [f"{divergence:.1e}" if name.startswith("topk") else "–" for _, divergence in measured]
            errors = [
                f"{found.relative('truncation'):.3f} | {found.relative('both'):.3f}"
                if name.startswith("topk")
                else f"– | {found.relative('both'):.3f}"
                for found, _ in measured
            ]
            print(f"| {k} | {name} | {size:.1f} | {' | '.join(kl)} | {' | '.join(errors)} |", flush=True)
        scaled = [f"– | {renormalised(logits, k, t):.3f}" for t in TEMPERATURES]
        print(f"| {k} | topk, renormalised | – | – | – | {' | '.join(scaled)} |", flush=True)


if __name__ == "__main__":
    main()
