"""Encodings of a teacher's logits: bytes, divergence and gradient error on the same logits.

    python -m benchmarks.encodings --corpus CORPUS --teacher TEACHER [--windows 32]

Forward KL's gradient in the student's logits is q − t; its error is relative, the root of the mean square over tokens
(cache_teachers/fidelity.py), for a student that knows nothing and for one near the teacher. Bytes are those of one
compressed chunk, all arrays counted; what is measured once (`statics`) is measured on the same windows.
"""

import argparse
from pathlib import Path

import torch

from palenka.cache_teachers.fidelity import compare
from palenka.cache_teachers.settings import TeacherSettings
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.encodings import LowRankEncoding, SampledEncoding, TopKEncoding
from palenka.data.windows import WindowRule, gather

TEMPERATURES = (1.0, 2.0)
ENCODINGS: dict[str, LogitEncoding] = {
    **{f"top {k}": TopKEncoding(k=k) for k in (8, 32, 128)},
    "top 32, float32": TopKEncoding(k=32, values="float32"),
    **{f"top {k} and rank {rank}": LowRankEncoding(k=k, rank=rank) for k in (4, 7, 16) for rank in (16, 32, 64)},
    "top 7 and rank 64, step 0.1": LowRankEncoding(step=0.1),
    "top 7 and rank 64, float32": LowRankEncoding(codes="float32", values="float32"),
    **{
        f"{draws} draws at T = {t:g}": SampledEncoding(draws=draws, temperatures=(t,))
        for draws in (12, 50)
        for t in TEMPERATURES
    },
}


def main() -> None:
    """Compute and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    given = parser.parse_args()
    corpus, rule = Corpus.open(given.corpus, "train"), WindowRule()
    teacher = Teacher(TeacherSettings(teacher=given.teacher), corpus, rule, torch.device("cpu"))
    slots = rule.slots(len(corpus.tokens), 0)[: given.windows]
    parts = [slots[start : start + 8] for start in range(0, len(slots), 8)]
    sample = [teacher.outputs(torch.from_numpy(gather(corpus.tokens, rule, 0, part)), 0, part) for part in parts]
    entropy = [float(-(p := said.logits.log_softmax(-1)).exp().mul(p).sum(-1).mean()) for said in sample]
    print(f"vocabulary {corpus.vocabulary_size:,}, entropy {sum(entropy) / len(entropy):.2f} nats, T = 1\n")
    columns = [f"T = {t:g}, {student}" for t in TEMPERATURES for student in ("uniform", "near")]
    print(f"| kept | bytes a token | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    for name, found in compare(ENCODINGS, sample, corpus.vocabulary_size).items():
        errors = found["gradient_error"]
        cells = [
            f"{errors[str(t)][student]:.3f}" if str(t) in errors else "–"
            for t in TEMPERATURES
            for student in ("uniform", "near")
        ]
        print(f"| {name} | {found['bytes_per_token']:.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
