"""Speed of reading caches, from stored arrays to batches in reading order, and the start of a run on many shards.

    OMP_NUM_THREADS=2 python -m benchmarks.reading --folder FOLDER

Needs no teacher: caches of made-up numbers whose arrays have the sizes, types and spreads of a captured one (V =
16,000, the default encodings, hidden states of 9 layers; what they take is printed). Prints tokens a second of the
first epoch, which compares every checksum, and of the second, and of both for a second of a core's time; then the
seconds from opening a cache of 10,000 small shards to its first batch, and those that the order of ten million windows
takes. Caches are made anew; some 300 MB.
"""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.cache_writer import CacheWriter, create_cache
from palenka.data.signals.components import Components
from palenka.data.signals.encodings import LowRankEncoding
from palenka.data.signals.hidden import ComponentsEncoding, HiddenLayers
from palenka.data.signals.manifest import CacheManifest, TeacherIdentity, windows_per_shard
from palenka.data.signals.store import Measured
from palenka.data.signals.stream import ReadingOrder, stream
from palenka.data.windows import WindowRule, gather

VOCABULARY, WIDTH, BATCH = 16_000, 1024, 32
LAYERS = tuple(range(0, 27, 3))


class MadeUpCorpus:
    """A corpus whose tokens are all 0: what is measured are caches."""

    def __init__(self, num_tokens: int) -> None:
        self._zeros = np.zeros(num_tokens, np.uint16)

    def gather(self, rule: WindowRule, view: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """As a corpus has it."""
        return gather(self._zeros, rule, view, indices)


def manifest_of(windows: int, rule: WindowRule, layers: Sequence[int], shard: int | None = None) -> CacheManifest:
    """A cache of so many windows."""
    hidden = ComponentsEncoding().within(rule.length) if layers else None
    kept = {"teacher": HiddenLayers(depth=24, width=WIDTH, layers=tuple(layers))} if layers else {}
    manifest = CacheManifest(
        corpus="made up",
        tokenizer="made up",
        num_tokens=windows * rule.length,
        vocabulary_size=VOCABULARY,
        windows=rule,
        teachers={"teacher": TeacherIdentity(weights="made up", config={}, precision="float32")},
        logits=LowRankEncoding(),
        hidden=hidden,
        hidden_layers=kept,
        windows_per_shard=1,
    )
    fit = windows_per_shard(sum(array.bytes_per_window for array in manifest.arrays().values()))
    return manifest.model_copy(update={"windows_per_shard": shard or fit})


def make(directory: Path, manifest: CacheManifest) -> None:
    """A cache whose shards are all alike."""
    shutil.rmtree(directory, ignore_errors=True)
    random = np.random.RandomState(0)
    ones = torch.ones(ComponentsEncoding().num_components(WIDTH))
    layer = Components("int8", torch.zeros(WIDTH), ones, ones, torch.zeros(len(ones), WIDTH))
    create_cache(directory, manifest, Measured(layers=dict.fromkeys(manifest.hidden_keys(), layer)))
    writer = CacheWriter(directory, manifest)
    made: dict[str, NDArray[np.generic]] = {}
    for shard in manifest.shards():
        for name, room in writer.room_for(shard).items():
            if name not in made:
                made[name] = _numbers(name, room, random)
        writer.write(shard, {name: values[: shard.stop - shard.start] for name, values in made.items()}, {})


def _numbers(name: str, room: NDArray[np.generic], random: np.random.RandomState) -> NDArray[np.generic]:
    """Numbers as an array of this name has them."""
    if name.endswith("ids"):
        frequencies = 1 / np.arange(1, 4001)
        sets = random.randint(0, VOCABULARY, (4000, room.shape[-1]))
        return sets[random.choice(4000, room.shape[:2], p=frequencies / frequencies.sum())].astype(room.dtype)
    spreads = {"logits/values": (4.0, 4.0), "logits/log_odds": (40.0, 40.0), "logits/codes": (6.0, 0.6)}
    largest, smallest = spreads.get(name, (2.0, 0.12))
    values = random.standard_normal(room.shape) * np.geomspace(largest, smallest, room.shape[-1])
    rounded: NDArray[np.generic] = values.round().clip(-127, 127).astype(room.dtype)
    return rounded


def read(what: str, directories: Sequence[Path]) -> None:
    """Two epochs of some caches with all that they hold."""
    keys = {place: TeacherCache(place).manifest.hidden_keys() for place in directories}
    caches = {place.name: TeacherCache(place, hidden) for place, hidden in keys.items()}
    manifest = next(iter(caches.values())).manifest
    order = ReadingOrder(manifest.windows, manifest.num_tokens, seed=0, epochs=2, batch=BATCH)
    slices = ((start, min(start + BATCH, len(order))) for start in range(0, len(order), BATCH))
    positions = manifest.hidden.num_positions() if manifest.hidden else 0
    told: list[str] = []
    tokens = 0
    started, busy = time.perf_counter(), time.process_time()
    for batch in stream(_corpus(manifest), order, caches, slices, positions):
        tokens += batch.tokens.numel()
        if tokens >= manifest.windows.length * order.end(len(told)):
            now, used = time.perf_counter(), time.process_time()
            rates = tokens / (len(told) + 1) / 1e6 / np.array([now - started, used - busy])
            told.append(f"{rates[0]:.2f} M tokens/s ({rates[1]:.2f} M a second of a core)")
            started, busy = now, used
    size = sum(sum(cache.bytes_per_token().values()) for cache in caches.values())
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"{what}, {size:.0f} bytes a token: {'; again: '.join(told)}; load {load}", flush=True)


def _corpus(manifest: CacheManifest) -> Corpus:
    return cast(Corpus, MadeUpCorpus(manifest.num_tokens))


def start(directory: Path) -> None:
    """From opening a cache of 10,000 shards to its first batch."""
    manifest = manifest_of(40_000, WindowRule(length=4), (), shard=4)
    make(directory, manifest)
    started = time.perf_counter()
    cache = TeacherCache(directory)
    cache.require_shards(manifest.shards())
    order = ReadingOrder(manifest.windows, manifest.num_tokens, seed=0, epochs=2, batch=BATCH)
    batches = stream(_corpus(manifest), order, {"t": cache}, iter([(0, BATCH)]))
    next(batches)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    many = ReadingOrder(WindowRule(length=128), 10_240_000 * 128, seed=0, epochs=1, batch=BATCH)
    next(many.pieces(0, BATCH))
    ordered = time.perf_counter() - started
    print(f"10,000 shards: {seconds:.2f} s to the first batch; the order of 10,240,000 windows: {ordered:.2f} s")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    rule = WindowRule(length=128)
    made = {name: folder / name for name in ("logits", "a", "b")}
    make(made["logits"], manifest_of(8192, rule, ()))
    for name in ("a", "b"):
        make(made[name], manifest_of(4096, rule, LAYERS))
    for _ in range(3):
        read("logits", [made["logits"]])
        read("2 caches, logits and 9 layers", [made["a"], made["b"]])
    start(folder / "many")


if __name__ == "__main__":
    main()
