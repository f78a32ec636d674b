"""Verify: compares a cache with its teacher on random windows, and separates the kinds of error.

truncation        error of the kept tokens alone: their missing mass, and its divergence from a flat tail
low_rank          remaining error with the others by low rank: KL(teacher ‖ cache without rounding)
rounding          additional error of rounding, over the kept tokens and their tail if the others are a bucket
nondeterminism    between two live passes, windows alone and in batches
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palenka.cache_teachers.capture import manifest_of
from palenka.cache_teachers.settings import VerifySettings
from palenka.cache_teachers.shard_in_memory import encode_windows
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.manifest import codes_of
from palenka.data.signals.store import Fidelity, damage_of_shard, read_manifest, write_fidelity
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.processes import open_processes
from palenka.ground.progress import info

_LOGITS_AT_ONCE = 2**26
"""Logits compared at once: 512 MB in float64, in some six copies."""


def verify(settings: VerifySettings) -> dict[str, Any]:
    """The errors of a cache, as means over the tokens of random windows.

    Returns:
        ``damaged``: the damage to captured shards, by record, with ``all``; ``windows``; by
        temperature ``truncation``, ``missing``, ``low_rank`` and ``rounding`` (KL in nats a token, and a mass);
        ``nondeterminism`` (``kl``, ``largest_difference`` of log-probabilities); ``differing_codes``: the share of
        stored numbers that a new capture would store differently, by array; and ``hidden``: the relative squared error
        of every layer.

    Raises:
        UserError: if the cache does not match the configuration, or a shard of the sample is damaged.
    """
    cache = TeacherCache(settings.output, read_manifest(settings.output).hidden_keys())
    damaged = _damaged(cache) if settings.all else {}
    corpus = Corpus.open(settings.corpus, settings.split)
    teacher = Teacher(settings, corpus, settings.windows, open_processes(settings.device).device)
    expected = manifest_of(settings, corpus, teacher).compared()
    remedy = "verify it with the configuration that it was captured with"
    refuse_difference(f"cache {settings.output}", expected, cache.manifest.compared(), remedy)
    teacher.use(cache.measured)
    sums: dict[str, list[Any]] = {}
    sampled = 0
    size = teacher.windows_at_once(settings.micro_batch, _LOGITS_AT_ONCE)
    for view, slots in _sample(cache, settings, damaged):
        sampled += len(slots)
        for start in range(0, len(slots), size):
            measured = _errors(cache, corpus, teacher, view, slots[start : start + size])
            for name, value in measured.items():
                sums.setdefault(name, []).append(value)
    found = _collected(cache, sums, sampled)
    _keep(settings.output, found, sampled)
    return {"cache": str(settings.output), "damaged": damaged, "windows": sampled, **found}


def _keep(cache: Path, found: Mapping[str, Any], windows: int) -> None:
    """Write the logits' errors beside the cache, for its card in a report; skipped if the cache is read-only."""
    kept = {name: values for name, values in found.items() if name in Fidelity.model_fields}
    try:
        write_fidelity(cache, Fidelity.model_validate({"windows": windows, **kept}))
    except OSError as error:
        info(f"{cache} cannot be written to ({error.strerror}), so its report will not show this")


def refuse_damaged(cache: Path, damaged: Mapping[str, str]) -> NoReturn:
    """Raise a `UserError` that names all damaged shards."""
    raise UserError(
        f"{len(damaged)} shard(s) of {cache} are damaged: {'; '.join(damaged.values())}; "
        "`palenka cache run` captures them anew"
    )


def _damaged(cache: TeacherCache) -> dict[str, str]:
    """The damage to each captured shard, by its commit record."""
    damages = {shard.record: damage_of_shard(cache.directory, shard) for shard in cache.committed()}
    return {record: damage for record, damage in damages.items() if damage}


def _sample(
    cache: TeacherCache, settings: VerifySettings, damaged: Mapping[str, str]
) -> list[tuple[int, NDArray[np.int64]]]:
    """Random slots of every view, among the captured shards."""
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
    """Errors of some windows: sums over windows of means over tokens; for differences the largest."""
    rule = cache.manifest.windows
    indices = rule.slots(len(corpus.tokens), view)[slots]
    tokens = corpus.gather(rule, view, indices)
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
        errors[f"differing/{name}"] = _over_windows(torch.from_numpy(codes.cpu().numpy() != stored[name]).double())
    signal = cache.read(view, slots)
    encoding = cache.manifest.logits
    if not encoding.is_estimate:
        finer = encoding.unrounded()
        statics = cache.measured.statics
        arrays = {name: part.cpu() for name, part in finer.encode(said.outputs, teacher.measured.statics).items()}
        for temperature in encoding.temperatures:
            unrounded = finer.decode(arrays, statics, temperature)
            errors |= _logit_errors(logits / temperature, signal.at(temperature), unrounded, temperature)
    there = {key: torch.from_numpy(stored[codes_of(key)]) for key in said.states}
    for key, squares in cache.measured.stacks.squared_errors(said.states, there).items():
        errors[f"hidden/{key}"] = squares.tolist()
    return errors


def _logit_errors(
    scaled: Tensor, decoded: Distribution, unrounded: Distribution, temperature: float
) -> dict[str, float]:
    """Divergences from the teacher at a temperature of logits / T [B, L, V], float64.

    Args:
        scaled: the teacher's.
        decoded: the cache's distribution.
        unrounded: the same without rounding.
        temperature: T.
    """
    exact = scaled.log_softmax(-1)
    if decoded.ids is None:
        return {f"rounding/{temperature}": _over_windows(_kl(exact, decoded.log_kept.double()))}
    kept = exact.gather(-1, decoded.ids)
    others = exact.scatter(-1, decoded.ids, -torch.inf)
    outside = others.logsumexp(-1)
    bucket = [_bucketed(kept, outside, said) for said in (decoded, unrounded)]
    flat = outside - np.log(exact.shape[-1] - decoded.ids.shape[-1])
    errors = {
        "rounding": bucket[0] - bucket[1],
        "missing": outside.exp(),
        "truncation": _times_log(others, others - flat.unsqueeze(-1)).sum(-1),
    }
    if decoded.others is not None:
        whole, low_rank = (
            _kl(exact, said.log_probabilities(exact.shape[-1]).double()) for said in (decoded, unrounded)
        )
        errors |= {"rounding": whole - low_rank, "low_rank": low_rank}
    return {f"{name}/{temperature}": _over_windows(value) for name, value in errors.items()}


def _kl(exact: Tensor, said: Tensor) -> Tensor:
    """KL(exact ‖ said) of log-probabilities [B, L, V]: [B, L]."""
    return _times_log(exact, exact - said).sum(-1)


def _bucketed(kept: Tensor, outside: Tensor, said: Distribution) -> Tensor:
    """KL over the kept tokens and all others as one, of log-probabilities [B, L, k] and [B, L]: [B, L]."""
    others = _times_log(outside, outside - said.log_tail.double())
    return _times_log(kept, kept - said.log_kept.double()).sum(-1) + others


def _over_windows(values: Tensor) -> float:
    """The sum over windows of the mean over each window's values, [B, …] to a number."""
    return float(values.flatten(1).mean(-1).sum())


def _times_log(log_weight: Tensor, difference: Tensor) -> Tensor:
    """exp(log_weight) · difference, 0 where the weight is 0."""
    return torch.where(log_weight > -torch.inf, log_weight.exp() * difference, 0.0)


def _collected(cache: TeacherCache, sums: dict[str, list[Any]], windows: int) -> dict[str, Any]:
    hidden = {
        key: sum(residual for residual, _ in sums[f"hidden/{key}"]) / sum(total for _, total in sums[f"hidden/{key}"])
        for key in cache.manifest.hidden_keys()
    }
    by_temperature: dict[str, dict[str, float]] = {}
    for name in ("truncation", "missing", "low_rank", "rounding"):
        for temperature in cache.manifest.logits.temperatures:
            if values := sums.get(f"{name}/{temperature}"):
                by_temperature.setdefault(name, {})[str(temperature)] = sum(values) / windows
    return {
        **by_temperature,
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
