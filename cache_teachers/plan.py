"""Plan: the cost of a capture in bytes and seconds, estimated from a short timed sample."""

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palenka.cache_teachers.capture import capture_shards, free_bytes, manifest_of, require_windows
from palenka.cache_teachers.fidelity import compare
from palenka.cache_teachers.settings import PlanSettings
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache_writer import CacheWriter, create_cache
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.encodings import LowRankEncoding, TopKEncoding
from palenka.data.signals.manifest import Shard, num_used
from palenka.ground.processes import open_processes
from palenka.ground.progress import info

_SIZES, _RANKS = (8, 16, 32), (8, 16, 32)
"""Tokens kept and ranks of the encodings that are compared."""
_MOST_TOKENS, _MOST_SECONDS = 2**14, 60.0
"""Limits of the sample, and of a forward pass over it."""
_COMPARED_LOGITS = 2**25
"""Logits of the teacher in memory while encodings are compared: 128 MB."""


def plan(settings: PlanSettings) -> dict[str, Any]:
    """The cost of a capture with these settings: measured on a sample, scaled to the corpus.

    Returns:
        ``tokens``, ``bytes_per_token`` by array and in all, ``bytes`` and ``free_bytes`` of the disk,
        ``forward_seconds`` and ``seconds`` of one process, ``live_seconds_per_student``, ``break_even_students``; bytes
        and gradient errors of the asked and of other ``encodings`` (`fidelity.py`); ``padding_mass``, the mass of
        dropped logits by model, if a model has more logits than the tokenizer has tokens; and the ``sample``'s size.

    Raises:
        UserError: as a capture would.
    """
    device = open_processes(settings.device).device
    corpus = Corpus.open(settings.corpus, settings.split)
    require_windows(settings, corpus)
    rule = settings.windows
    teacher = Teacher(settings, corpus, rule, device)
    manifest = manifest_of(settings, corpus, teacher)
    count = _windows_to_time(teacher, settings)
    shard = Shard(0, 0, 0, min(count, manifest.windows_per_shard, manifest.num_windows(0)))
    sample_tokens = (shard.stop - shard.start) * rule.length
    info("measuring what the encoding needs, as the capture would")
    teacher.measure(settings.micro_batch)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cache"
        create_cache(place, manifest, teacher.measured.to(torch.device("cpu")))
        writer = CacheWriter(place, manifest)
        forward = _forward_seconds(teacher, teacher.first_windows(shard.stop - shard.start, settings.micro_batch))
        started = time.perf_counter()
        capture_shards([shard], corpus, teacher, writer, settings.micro_batch)
        seconds = time.perf_counter() - started
        sizes = {name: (place / shard.file_of(name)).stat().st_size / sample_tokens for name in manifest.arrays()}
    info("comparing encodings")
    count = max(2, min(settings.sample, _COMPARED_LOGITS // (rule.length * corpus.vocabulary_size)))
    # At least two passes: encodings are compared on another part than they are measured on.
    few = teacher.first_windows(count, min(settings.micro_batch, -(-count // 2)))
    said = [teacher.outputs(tokens, 0, indices, with_last=True) for indices, tokens in few]
    encodings = compare(_alternatives(settings.logits), said, corpus.vocabulary_size)
    padding = teacher.padding_mass(torch.cat([tokens for _, tokens in few]))
    # A capture has whole shards, whatever the fraction; a student reads just the fraction.
    tokens = sum(part.stop - part.start for part in manifest.shards(settings.fraction)) * rule.length
    used = [num_used(manifest.num_windows(view), settings.fraction) * rule.length for view in range(rule.views)]
    live = settings.epochs * sum(used) / rule.views * forward / sample_tokens
    whole = tokens * seconds / sample_tokens
    return {
        "tokens": tokens,
        "bytes_per_token": {**sizes, "all": sum(sizes.values())},
        "bytes": round(tokens * sum(sizes.values())),
        "forward_seconds": tokens * forward / sample_tokens,
        "seconds": whole,
        "epochs": settings.epochs,
        "live_seconds_per_student": live,
        "break_even_students": math.floor(whole / live) + 1,
        "free_bytes": free_bytes(settings.output),
        "encodings": encodings,
        **({"padding_mass": padding} if padding else {}),
        "sample": {"tokens": sample_tokens, "seconds": seconds, "forward_seconds": forward},
    }


def _windows_to_time(teacher: Teacher, settings: PlanSettings) -> int:
    """Number of windows that a plan reads: the sample asked for, or fewer if that would take long."""
    count = max(1, min(settings.sample, _MOST_TOKENS // settings.windows.length))
    first = teacher.first_windows(min(count, settings.micro_batch), settings.micro_batch)[:1]
    seconds = _forward_seconds(teacher, first) / len(first[0][0])
    return max(1, min(count, int(_MOST_SECONDS / max(seconds, 1e-9))))


def _alternatives(asked: LogitEncoding) -> dict[str, LogitEncoding]:
    """The requested encoding, and others at the same temperatures."""
    alternatives: dict[str, LogitEncoding] = {f"asked: {asked.summary()}": asked}
    others = [LowRankEncoding(k=k, rank=rank, temperatures=asked.temperatures) for k in _SIZES for rank in _RANKS]
    for encoding in [*others, TopKEncoding(k=32, temperatures=asked.temperatures)]:
        alternatives.setdefault(encoding.summary(), encoding)
    return alternatives


def _forward_seconds(teacher: Teacher, micro_batches: Sequence[tuple[NDArray[np.int64], Tensor]]) -> float:
    """Seconds of the bare forward pass over some windows.

    One pass of each size comes first, to warm up and to compile.
    """
    for tokens in {len(tokens): tokens for _, tokens in micro_batches}.values():
        teacher.outputs(tokens).logits[0, 0, 0].item()
    started = time.perf_counter()
    for _, tokens in micro_batches:
        teacher.outputs(tokens).logits[0, 0, 0].item()  # waits for an accelerator
    return time.perf_counter() - started
