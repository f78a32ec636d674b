"""Capture: one teacher over every window of every view, shard by shard, into a cache.

`accelerate launch -m cache_teachers run --config configs/caches/NAME.yaml` (or `palenka cache run` on one device).
The same command goes on after any interruption: shards whose commit records are whole are kept.
"""

from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from pydantic import Field

from cache_teachers.teacher import Teacher
from configs.errors import UserError
from configs.settings import Precision, Settings
from data.cache import CacheWriter, create_cache, damage_of
from data.corpus import Corpus
from data.manifest import CacheManifest, LogitEncoding, Shard
from data.processes import open_processes
from data.progress import notice, progress_bar
from data.windows import WindowRule, gather


class CaptureSettings(Settings):
    """Capture a teacher: run it once over a corpus and keep what it says in a cache."""

    teacher: Path
    """Directory of the teacher, in Hugging Face format."""
    corpus: Path
    """Directory of the prepared corpus."""
    output: Path
    """Directory of the cache."""
    split: str = "train"
    """Split of the corpus to capture."""
    windows: WindowRule = WindowRule()
    """How the token stream is cut into windows."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Capture only this part of each view's windows, a uniform sample, in whole shards; the rest can follow later."""
    logits: LogitEncoding = LogitEncoding()
    """What is kept of the teacher's distribution at every token."""
    precision: Precision = "float32"
    """Type that the teacher computes in."""
    micro_batch: int = Field(default=32, ge=1)
    """Windows per forward pass and process."""


def capture(settings: CaptureSettings) -> None:
    """Capture what is missing of a cache; each process of a distributed launch captures its own shards.

    Memory: one shard (64 MB at most) beside the model. Resumed captures are byte for byte what an undisturbed one
    writes, on a CPU with the same number of threads.

    Raises:
        UserError: if the teacher does not fit the corpus, the cache there is another one, or the disk is full.
    """
    state = open_processes()
    corpus = Corpus.open(settings.corpus, settings.split)
    _require_windows(settings, corpus)
    teacher = Teacher(settings.teacher, settings.precision, state.device, corpus, settings.windows.length)
    manifest = CacheManifest(
        corpus=corpus.fingerprint,
        tokenizer=corpus.tokenizer_hash,
        num_tokens=len(corpus.tokens),
        vocabulary_size=corpus.vocabulary_size,
        windows=settings.windows,
        teacher=teacher.identity,
        logits=settings.logits,
        windows_per_shard=settings.logits.windows_per_shard(settings.windows.length),
    )
    try:
        if state.is_main_process:
            create_cache(settings.output, manifest)
        state.wait_for_everyone()
        shards = list(manifest.shards(settings.fraction))
        missing = [shard for shard in shards if damage_of(settings.output, shard.record)]
        state.wait_for_everyone()
        mine = missing[state.process_index :: state.num_processes]
        if state.is_main_process:
            notice(f"{settings.output}: {len(missing)} of {len(shards)} shards to capture")
        _capture_shards(mine, corpus, teacher, CacheWriter(settings.output, manifest), settings.micro_batch)
    except OSError as error:
        raise UserError(
            f"cannot write {settings.output}: {error.strerror or error}; mend that and run the same command again: "
            "finished shards are kept"
        ) from error
    state.wait_for_everyone()


def _require_windows(settings: CaptureSettings, corpus: Corpus) -> None:
    """Refuse settings that no teacher could satisfy on this corpus."""
    rule = settings.windows
    for view in range(rule.views):
        if rule.count(len(corpus.tokens), view) == 0:
            raise UserError(
                f"windows.length is {rule.length}, but the {corpus.split} split of {corpus.directory} has only "
                f"{len(corpus.tokens)} tokens: view {view} has no window; shorten the windows or add text"
            )
    if settings.logits.k > corpus.vocabulary_size:
        raise UserError(
            f"logits.k is {settings.logits.k}, but the vocabulary of corpus {corpus.directory} has "
            f"{corpus.vocabulary_size} tokens; set logits.k to {corpus.vocabulary_size} at most"
        )


def _capture_shards(
    shards: list[Shard], corpus: Corpus, teacher: Teacher, writer: CacheWriter, micro_batch: int
) -> None:
    if not shards:
        return
    rule = writer.manifest.windows
    total = sum(shard.stop - shard.start for shard in shards) * rule.length
    with progress_bar("capture", total, shown=PartialState().is_main_process) as advance:
        for shard in shards:
            indices = rule.slots(len(corpus.tokens), shard.view)[shard.start : shard.stop]
            arrays = writer.empty(shard)
            for start in range(0, len(indices), micro_batch):
                tokens = gather(corpus.tokens, rule, shard.view, indices[start : start + micro_batch])
                _fill(arrays, start, teacher, torch.from_numpy(tokens), writer.manifest.logits)
                advance(tokens.size)
            writer.write(shard, arrays)


def _fill(
    arrays: dict[str, NDArray[np.generic]], start: int, teacher: Teacher, tokens: torch.Tensor, encoding: LogitEncoding
) -> None:
    """Put what the teacher says about some windows into a shard's arrays, from row `start` on."""
    signal = teacher.signal(tokens, encoding)
    rows = slice(start, start + len(tokens))
    arrays["logits/ids"][rows] = signal.ids.cpu().numpy()
    arrays["logits/values"][rows] = signal.values.cpu().numpy()
    arrays["logits/log_tail"][rows] = signal.log_tail.cpu().numpy()
