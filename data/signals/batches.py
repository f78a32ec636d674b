"""Batches for your own loop: the windows that a run would read, in its order, with the teachers' signals.

batches = Batches(corpus, {"llama": cache}, size=32, epochs=2)
for batch in batches:
    batch.tokens, batch.signals["llama"].at(2.0)
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch

from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.stream import Batch, ReadingOrder, stream
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError

_NONE: Mapping[str, TeacherCache] = MappingProxyType({})


class Batches:
    """All batches of some epochs; each iteration starts over, and the last incomplete batch is left out.

    Batch n equals that of step n in a run with the same settings. A background thread reads ahead.

    Args:
        corpus: where the tokens are.
        caches: open caches of the teachers by name; none for plain training.
        size: windows of a batch.
        windows: how the stream is cut; default: as in the caches.
        seed: of the order.
        epochs: how often the corpus is read.
        fraction: part of each view's windows that is read, a uniform sample.
        device: where the batches are put, and the teachers' signals decoded.

    Raises:
        UserError: if a cache belongs to another text or lacks windows that would be read, or if there is no batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        caches: Mapping[str, TeacherCache] = _NONE,
        size: int = 32,
        *,
        windows: WindowRule | None = None,
        seed: int = 0,
        epochs: int = 1,
        fraction: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> None:
        if size < 1 or epochs < 1 or not 0 < fraction <= 1:
            raise UserError(
                f"size is {size}, epochs {epochs} and fraction {fraction}; give 1 or more of the first two, and a "
                "fraction above 0, of 1 at most"
            )
        rule = windows or next((cache.manifest.windows for cache in caches.values()), WindowRule())
        self.corpus, self.caches, self.size, self.device = corpus, caches, size, torch.device(device)
        self.order = ReadingOrder(rule, len(corpus.tokens), seed, epochs, fraction, batch=size)
        for name, cache in caches.items():
            cache.manifest.require_text(f"cache {cache.directory} of teacher {name}", corpus, rule)
            cache.require_epochs(epochs, rule.views, fraction)
        if not len(self):
            raise UserError(
                f"{epochs} epoch(s) of {corpus.directory} are {len(self.order)} windows of {rule.length} tokens, but a "
                f"batch has {size}; lower size, or read more"
            )

    def __len__(self) -> int:
        """How many there are: the steps of a run."""
        return len(self.order) // self.size

    def __iter__(self) -> Iterator[Batch]:
        kept = [cache.manifest.hidden for cache in self.caches.values() if cache.measured.layers]
        num_positions = max((hidden.num_positions() for hidden in kept if hidden), default=0)
        slices = ((step * self.size, (step + 1) * self.size) for step in range(len(self)))
        for encoded in stream(self.corpus, self.order, self.caches, slices, num_positions):
            yield encoded.to(self.device).decode(self.caches)
