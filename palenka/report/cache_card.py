"""The card of a teacher cache: its contents, its size on disk, and how much of the teacher it keeps."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.store import Fidelity
from palenka.data.windows import BLOCK_WINDOWS, WindowRule

SAMPLE_WINDOWS = 1024
"""Maximum windows for the histograms: any slots of a cache are a uniform sample of its corpus."""
_SAMPLE_PROBABILITIES = 2**29
"""Maximum probabilities summed for entropies: some seconds per temperature, for any vocabulary."""
BINS = 40


@dataclass(frozen=True)
class Histogram:
    """Shares of the sampled tokens between equally spaced edges, and the tokens' mean."""

    edges: NDArray[np.float64]
    shares: NDArray[np.float64]
    mean: float


@dataclass(frozen=True)
class CacheCard:
    """The facts of a cache.

    Attributes:
        name: unique in the report.
        cache: the cache, which may be empty so far.
        tokens: captured tokens of all its views.
        possible_tokens: of a complete capture.
        bytes_by_array: bytes on disk of the captured shards, by array.
        kept_mass: mean mass of the kept tokens at each temperature, over all captured tokens.
        sampled_tokens: tokens behind the histograms.
        kept_mass_histograms: of the kept mass, by temperature.
        entropy_histograms: of the entropy in nats, by temperature; other tokens count as one unless they are known.
        knows_others: whether it has a distribution over the tokens that it did not keep.
        hidden_errors: relative squared error of stored states, by "teacher/layer".
        fidelity: its error against its teacher; None if it was not measured.
    """

    name: str
    cache: TeacherCache
    tokens: int
    possible_tokens: int
    bytes_by_array: Mapping[str, int] = field(default_factory=dict)
    kept_mass: Mapping[float, float] = field(default_factory=dict)
    sampled_tokens: int = 0
    kept_mass_histograms: Mapping[float, Histogram] = field(default_factory=dict)
    entropy_histograms: Mapping[float, Histogram] = field(default_factory=dict)
    knows_others: bool = False
    hidden_errors: Mapping[str, float] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    @property
    def windows(self) -> WindowRule:
        """The windows of its corpus."""
        return self.cache.manifest.windows

    @property
    def logits(self) -> LogitEncoding:
        """The encoding of its distributions."""
        return self.cache.manifest.logits

    def bytes_per_token(self, array: str | None = None) -> float:
        """Bytes on disk per token: of one array, or of all."""
        stored = sum(self.bytes_by_array.values()) if array is None else self.bytes_by_array[array]
        return stored / self.tokens


def make_card(name: str, cache: TeacherCache) -> CacheCard:
    """The card of a cache. Reads all tail masses, and `SAMPLE_WINDOWS` whole windows, or fewer for a large vocabulary.

    Raises:
        UserError: if a shard that is read is damaged.
    """
    manifest, tokens = cache.manifest, cache.captured_tokens()
    possible = sum(manifest.num_windows(view) for view in range(manifest.windows.views)) * manifest.windows.length
    if not tokens:
        return CacheCard(name, cache, 0, possible)
    masses: dict[float, list[NDArray[np.float64]]] = {t: [] for t in manifest.logits.temperatures}
    entropies: dict[float, list[NDArray[np.float64]]] = {t: [] for t in manifest.logits.temperatures}
    knows_others = False
    for signal in _sample(cache):
        for temperature in manifest.logits.temperatures:
            distribution = signal.at(temperature)
            knows_others = distribution.others is not None
            masses[temperature].append(-np.expm1(distribution.log_tail.double().flatten().numpy()))
            entropies[temperature].append(distribution.entropy().flatten().numpy())
    highest = math.log(manifest.vocabulary_size)
    return CacheCard(
        name=name,
        cache=cache,
        tokens=tokens,
        possible_tokens=possible,
        bytes_by_array=cache.bytes_by_array(),
        kept_mass=cache.kept_mass(),
        sampled_tokens=sum(map(len, next(iter(masses.values())))),
        kept_mass_histograms={t: _histogram(np.concatenate(parts), 1.0) for t, parts in masses.items()},
        entropy_histograms={t: _histogram(np.concatenate(parts), highest) for t, parts in entropies.items()},
        knows_others=knows_others,
        hidden_errors=cache.hidden_errors(),
        fidelity=cache.fidelity(),
    )


def _sample(cache: TeacherCache) -> Iterator[TeacherSignal]:
    """The first captured windows, block by block."""
    manifest, taken = cache.manifest, 0
    wanted = min(SAMPLE_WINDOWS, max(1, _SAMPLE_PROBABILITIES // (manifest.windows.length * manifest.vocabulary_size)))
    for shard in cache.committed():
        for start in range(shard.start, shard.stop, BLOCK_WINDOWS):
            if taken >= wanted:
                return
            slots = np.arange(start, min(start + BLOCK_WINDOWS, start + wanted - taken, shard.stop))
            taken += len(slots)
            yield cache.read(shard.view, slots)


def _histogram(values: NDArray[np.float64], highest: float) -> Histogram:
    counts, edges = np.histogram(values.clip(0.0, highest), bins=BINS, range=(0.0, highest))
    return Histogram(edges, counts / len(values), float(values.mean()))
