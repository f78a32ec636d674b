"""Fidelity: the effect of an encoding on a student's gradient, measured without training a student.

The gradient of forward KL in the student's logits is q − t. If a cache decodes to t′, the error of the gradient is t′ −
t. Two students represent all: one that knows nothing (uniform), and one near the teacher (the teacher itself at twice
the temperature).

Shapes: n tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution, token_chunks
from palenka.data.signals.encoding import LogitEncoding, TeacherOutputs
from palenka.data.signals.manifest import compressed_bytes

STUDENTS = ("uniform", "near")


def whole(decoded: Distribution, log_student: Tensor) -> Tensor:
    """A decoded distribution as the probabilities of all V tokens [n, V] in a student's gradient, float64.

    The mass of a bucket is distributed over its tokens in proportion to the student's probabilities.
    """
    if decoded.ids is None or decoded.others is not None:
        return decoded.log_probabilities(log_student.shape[-1]).double().exp()
    outside = log_student.scatter(-1, decoded.ids, -torch.inf).softmax(-1) * decoded.log_tail.double().exp().unsqueeze(
        -1
    )
    return outside.scatter_add(-1, decoded.ids, decoded.log_kept.double().exp())


def gradient_errors(logits: Tensor, decoded: Distribution, temperature: float) -> dict[str, tuple[float, float]]:
    """Squared norms of the gradient's error and of the gradient, summed over tokens, for each of the two students.

    Args:
        logits: of the teacher, [n, V].
        decoded: the decoded distribution for the same tokens.
        temperature: T.
    """
    found = dict.fromkeys(STUDENTS, (0.0, 0.0))
    start = 0
    for few in token_chunks(logits):
        exact = few.double() / temperature
        teacher = exact.softmax(-1)
        students = {"uniform": torch.zeros_like(exact), "near": exact / 2}
        for name, scores in students.items():
            log_student = scores.log_softmax(-1)
            kept = whole(decoded.rows(slice(start, start + len(few))), log_student)
            error, gradient = (kept - teacher).square().sum(), (log_student.exp() - teacher).square().sum()
            found[name] = (found[name][0] + float(error), found[name][1] + float(gradient))
        start += len(few)
    return found


def compare(
    encodings: Mapping[str, LogitEncoding], sample: Sequence[TeacherOutputs], vocabulary_size: int
) -> dict[str, dict[str, Any]]:
    """Bytes per token and relative gradient errors of encodings of a teacher's outputs, by the encodings' names.

    Args:
        encodings: by name.
        sample: of the teacher. The encodings are measured on every other part and encode the rest, so a map is not
            judged on the tokens that it was fitted to, unless there is only one part.
        vocabulary_size: V.

    Returns:
        ``bytes_per_token``, and ``gradient_error`` by temperature and student: the root of the mean squared error over
        the mean square.
    """
    return {
        name: _measured(encoding, encoding.measure(sample[::2]), sample[1::2] or sample, vocabulary_size)
        for name, encoding in encodings.items()
    }


def _measured(
    encoding: LogitEncoding, statics: Mapping[str, Tensor], sample: Sequence[TeacherOutputs], vocabulary_size: int
) -> dict[str, Any]:
    encoded = [encoding.encode(outputs, statics) for outputs in sample]
    sums: dict[tuple[float, str], list[float]] = {}
    for outputs, arrays in zip(sample, encoded, strict=True):
        for temperature in encoding.temperatures:
            decoded = encoding.decode(arrays, statics, temperature).flat()
            for student, squares in gradient_errors(outputs.logits.flatten(0, -2), decoded, temperature).items():
                before = sums.setdefault((temperature, student), [0.0, 0.0])
                before[:] = [before[0] + squares[0], before[1] + squares[1]]
    errors: dict[str, dict[str, float]] = {}
    for (temperature, student), (error, gradient) in sums.items():
        errors.setdefault(str(temperature), {})[student] = (error / gradient) ** 0.5
    stored = {name: np.concatenate([arrays[name].cpu().numpy() for arrays in encoded]) for name in encoded[0]}
    size = sum(compressed_bytes(encoding.arrays(vocabulary_size), stored).values())
    tokens = sum(outputs.logits.shape[0] * outputs.logits.shape[1] for outputs in sample)
    return {"bytes_per_token": size / tokens, "gradient_error": errors}
