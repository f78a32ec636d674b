"""Inspect: the contents of a cache, without its teacher: manifest, sizes, kept mass, entropy, hidden-state errors."""

from typing import Any

import numpy as np

from palenka.cache_teachers.settings import InspectSettings
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import damage_of_shard
from palenka.ground.errors import UserError


def inspect(settings: InspectSettings) -> dict[str, Any]:
    """A cache's manifest and measurements on its shards; reads all of them, about 1 s per gigabyte.

    Returns:
        ``manifest``; ``encoding`` of the distributions in words, and ``hidden_encoding``; ``shards``: captured and
        all; ``tokens`` captured; ``bytes_per_token`` by array and in all; ``kept_mass`` and ``entropy`` in nats by
        temperature (a lower bound if the others are a bucket, which counts as one token); ``clipped``, the share of
        stored numbers at the end of their range; and ``hidden_error``, the relative squared error of every layer.

    Raises:
        UserError: if there is no cache, or it is damaged.
    """
    cache = TeacherCache(settings.cache)
    manifest = cache.manifest
    committed = cache.committed()
    damages = [damage for shard in committed if (damage := damage_of_shard(cache.directory, shard))]
    if damages:
        raise UserError(
            f"teacher cache {settings.cache} is damaged: {'; '.join(damages)}; `palenka cache run` captures it anew"
        )
    sizes = cache.bytes_per_token() if committed else {}
    entropies: dict[str, float] = {}
    clipped: dict[str, float] = {}
    if committed:
        first = committed[0]
        slots = np.arange(first.start, min(first.stop, first.start + settings.sample))
        signal = cache.read(first.view, slots)
        clipped = manifest.logits.clipped(signal.arrays)
        entropies = {str(t): float(signal.at(t).entropy().mean()) for t in manifest.logits.temperatures}
    return {
        "cache": str(settings.cache),
        "manifest": manifest.as_plain(),
        "encoding": manifest.logits.summary(),
        "hidden_encoding": manifest.hidden.summary() if manifest.hidden else None,
        "shards": {"captured": len(committed), "all": len(list(manifest.shards()))},
        "tokens": cache.captured_tokens(),
        "bytes_per_token": {**sizes, "all": sum(sizes.values())},
        "kept_mass": {str(t): mass for t, mass in cache.kept_mass().items()} if committed else {},
        "entropy": entropies,
        "clipped": clipped,
        "hidden_error": cache.hidden_errors(),
    }
