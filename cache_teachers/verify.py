"""Verify: is a cache what its teacher says? Random windows are computed again, and the kinds of error told apart.

codec             between what is decoded and what the teacher says now, over the kept tokens and their tail
truncation        what no codec could keep: the mass outside the kept tokens, and its divergence from a flat tail
nondeterminism    between two live passes, windows alone and in batches
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palenka.cache_teachers.capture import encode_windows, manifest_of
from palenka.cache_teachers.settings import VerifySettings
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache, read_manifest
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.manifest import codes_of
from palenka.data.windows import gather
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import damage_of
from palenka.ground.processes import open_processes


def verify(settings: VerifySettings) -> dict[str, Any]:
    """The errors of a cache, as means over the tokens of random windows.

    Returns:
        ``damaged``: what is wrong with shards that were captured, by record, with ``all``; ``windows``; by
        temperature ``codec_kl`` and ``truncation`` (``missing_mass``, ``kl``); ``nondeterminism`` (``kl``,
        ``largest_difference`` of log-probabilities); ``differing_codes``: the share of stored numbers that a capture
        would store otherwise now, by array; and ``hidden``: the relative squared error of every layer.

    Raises:
        UserError: if the cache is another one than the configuration asks for, or a shard of the sample is damaged.
    """
    cache = TeacherCache(settings.output, read_manifest(settings.output).hidden_keys())
    damaged = _damaged(cache) if settings.all else {}
    corpus = Corpus.open(settings.corpus, settings.split)
    teacher = Teacher(settings, corpus, settings.windows, open_processes(settings.device).device)
    expected = manifest_of(settings, corpus, teacher).as_plain()
    remedy = "verify it with the configuration that it was captured with"
    refuse_difference(f"cache {settings.output}", expected, cache.manifest.as_plain(), remedy)
    teacher.use(cache.measured)
    sums: dict[str, list[Any]] = {}
    sampled = 0
    for view, slots in _sample(cache, settings, damaged):
        sampled += len(slots)
        for start in range(0, len(slots), settings.micro_batch):
            measured = _errors(cache, corpus, teacher, view, slots[start : start + settings.micro_batch])
            for name, value in measured.items():
                sums.setdefault(name, []).append(value)
    return {"cache": str(settings.output), "damaged": damaged, "windows": sampled, **_collected(cache, sums, sampled)}


def refuse_damaged(cache: Path, damaged: Mapping[str, str]) -> NoReturn:
    """Raise a `UserError` that names all damaged shards."""
    raise UserError(
        f"{len(damaged)} shard(s) of {cache} are damaged: {'; '.join(damaged.values())}; "
        "`palenka cache run` captures them anew"
    )


def _damaged(cache: TeacherCache) -> dict[str, str]:
    """What is wrong with each shard that was captured, by its commit record."""
    damages = {shard.record: damage_of(cache.directory, shard.record) for shard in cache.committed()}
    return {record: damage for record, damage in damages.items() if damage}


def _sample(
    cache: TeacherCache, settings: VerifySettings, damaged: Mapping[str, str]
) -> list[tuple[int, NDArray[np.int64]]]:
    """Random slots of every view, among the shards that are whole."""
    generator = np.random.RandomState(settings.seed)
    rule = cache.manifest.windows
    whole = [shard for shard in cache.committed() if shard.record not in damaged]
    chosen = []
    for view in range(rule.views):
        ranges = [np.arange(shard.start, shard.stop) for shard in whole if shard.view == view]
        slots = np.concatenate(ranges) if ranges else np.empty(0, np.int64)
        count = min(len(slots), -(-settings.sample // rule.views))
        chosen.append((view, np.sort(generator.permutation(slots)[:count]).astype(np.int64)))
    if damaged and not whole:
        refuse_damaged(cache.directory, damaged)
    if not any(len(slots) for _, slots in chosen):
        raise UserError(f"cache {cache.directory} has no whole shard to verify; capture it with `palenka cache run`")
    return chosen


def _errors(
    cache: TeacherCache, corpus: Corpus, teacher: Teacher, view: int, slots: NDArray[np.int64]
) -> dict[str, Any]:
    """Errors of some windows, each a sum over them of means over their tokens; of differences the largest."""
    rule = cache.manifest.windows
    indices = rule.slots(len(corpus.tokens), view)[slots]
    tokens = gather(corpus.tokens, rule, view, indices)
    said = encode_windows(teacher, cache.manifest, tokens, view, indices)
    logits = said.outputs.logits.cpu().double()
    alone = torch.cat([teacher.outputs(torch.from_numpy(window[None])).logits.cpu() for window in tokens])
    first, second = logits.log_softmax(-1), alone.double().log_softmax(-1)
    errors: dict[str, Any] = {
        "nondeterminism/kl": _over_windows((first.exp() * (first - second)).sum(-1)),
        "nondeterminism/difference": float((first - second).abs().max()),
    }
    stored = cache.codes(view, slots)
    for name, codes in said.arrays.items():
        errors[f"differing/{name}"] = _over_windows(torch.from_numpy(codes != stored[name]).double())
    signal = cache.read(view, slots)
    if not cache.manifest.logits.is_estimate:
        for temperature in cache.manifest.logits.temperatures:
            errors |= _logit_errors(logits / temperature, signal.at(temperature), temperature)
    for key, states in said.states.items():
        there = torch.from_numpy(stored[codes_of(key)])
        errors[f"hidden/{key}"] = cache.measured.layers[key].squared_error(states, there)
    return errors


def _logit_errors(scaled: Tensor, decoded: Distribution, temperature: float) -> dict[str, float]:
    """Codec and truncation error at a temperature of logits / T, float64."""
    exact = scaled.log_softmax(-1)
    kept, tail = decoded.log_kept.double(), decoded.log_tail.double()
    ids = torch.arange(exact.shape[-1]).expand_as(exact) if decoded.ids is None else decoded.ids
    there = exact.gather(-1, ids)
    outside = exact.scatter(-1, ids, -torch.inf).logsumexp(-1)
    codec = (there.exp() * (there - kept)).sum(-1) + _times_log(outside, outside - tail)
    flat = outside - np.log(max(1, exact.shape[-1] - ids.shape[-1]))
    others = exact.scatter(-1, ids, -torch.inf)
    truncation = _times_log(others, others - flat.unsqueeze(-1)).sum(-1)
    return {
        f"codec/{temperature}": _over_windows(codec),
        f"missing/{temperature}": _over_windows(outside.exp()),
        f"truncation/{temperature}": _over_windows(truncation),
    }


def _over_windows(values: Tensor) -> float:
    """The sum over windows of the means over all that a window has, [B, …] to a number."""
    return float(values.flatten(1).mean(-1).sum())


def _times_log(log_weight: Tensor, difference: Tensor) -> Tensor:
    """exp(log_weight) · difference, 0 where the weight is 0."""
    return torch.where(log_weight > -torch.inf, log_weight.exp() * difference, 0.0)


def _collected(cache: TeacherCache, sums: dict[str, list[Any]], windows: int) -> dict[str, Any]:
    temperatures = [t for t in cache.manifest.logits.temperatures if f"codec/{t}" in sums]
    hidden = {
        key: sum(missed for missed, _ in sums[f"hidden/{key}"]) / sum(total for _, total in sums[f"hidden/{key}"])
        for key in cache.manifest.hidden_keys()
    }
    return {
        "codec_kl": {str(t): sum(sums[f"codec/{t}"]) / windows for t in temperatures},
        "truncation": {
            str(t): {
                "missing_mass": sum(sums[f"missing/{t}"]) / windows,
                "kl": sum(sums[f"truncation/{t}"]) / windows,
            }
            for t in temperatures
        },
        "nondeterminism": {
            "kl": sum(sums["nondeterminism/kl"]) / windows,
            "largest_difference": max(sums["nondeterminism/difference"]),
        },
        "differing_codes": {
            name.removeprefix("differing/"): sum(values) / windows
            for name, values in sums.items()
            if name.startswith("differing/")
        },
        "hidden": hidden,
    }
