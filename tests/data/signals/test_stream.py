"""The stream: read ahead by a thread, with nothing changed by that."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.chunks import workers
from palenka.data.signals.stream import ReadingOrder, read_batch, stream
from palenka.ground.errors import UserError


@pytest.fixture
def two_caches(settings_of_capture: Callable[..., CaptureSettings], tmp_path: Path) -> dict[str, TeacherCache]:
    """A cache of two views, and a coarser one of the same teacher."""
    caches = {}
    for name, k in (("fine", 8), ("coarse", 2)):
        windows, logits = {"length": 16, "views": 2}, {"kind": "topk", "k": k}
        settings = settings_of_capture(output=tmp_path / name, windows=windows, logits=logits)
        capture(settings)
        caches[name] = TeacherCache(settings.output)
    return caches


def order_of(corpus: Corpus, cache: TeacherCache) -> ReadingOrder:
    return ReadingOrder(cache.manifest.windows, len(corpus.tokens), seed=1, epochs=3)


def test_it_yields_what_reading_yields_over_epochs_and_views(
    corpus: Corpus, two_caches: dict[str, TeacherCache]
) -> None:
    order = order_of(corpus, two_caches["fine"])
    slices = [(start, min(start + 37, len(order))) for start in range(0, len(order), 37)]
    batches = list(stream(corpus, order, two_caches, iter(slices)))
    assert len(batches) == len(slices)
    other = order_of(corpus, two_caches["fine"])
    for batch, (start, stop) in zip(batches, slices, strict=True):
        expected = read_batch(corpus, other, two_caches, start, stop)
        assert torch.equal(batch.tokens, expected.tokens)
        signals = batch.decode(two_caches).signals
        for name, k in (("fine", 8), ("coarse", 2)):
            assert signals[name].at(1.0).log_kept.shape == (stop - start, 16, k)
            assert batch.codes[name].keys() == expected.codes[name].keys()
            assert all(torch.equal(codes, expected.codes[name][key]) for key, codes in batch.codes[name].items())


def test_threads_in_several_epochs_share_an_order(corpus: Corpus, two_caches: dict[str, TeacherCache]) -> None:
    alone, shared = order_of(corpus, two_caches["fine"]), order_of(corpus, two_caches["fine"])
    starts = np.random.RandomState(0).randint(0, len(alone) - 50, 60).tolist()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda start: list(shared.pieces(start, start + 50)), starts))
    for start, pieces in zip(starts, found, strict=True):
        for piece, (view, slots, indices) in zip(pieces, alone.pieces(start, start + 50), strict=True):
            assert piece[0] == view
            assert np.array_equal(piece[1], slots)
            assert np.array_equal(piece[2], indices)


def test_the_kept_tokens_of_a_coarser_cache_are_among_those_of_a_finer_one(
    corpus: Corpus, two_caches: dict[str, TeacherCache]
) -> None:
    # If the two caches were read at different windows, this could not hold.
    batch = read_batch(corpus, order_of(corpus, two_caches["fine"]), two_caches, 200, 300)
    signals = batch.decode(two_caches).signals
    fine, coarse = signals["fine"].at(1.0).ids, signals["coarse"].at(1.0).ids
    assert fine is not None
    assert coarse is not None
    assert (coarse.unsqueeze(-1) == fine.unsqueeze(-2)).any(-1).all()


def test_what_reading_raises_reaches_the_reader_at_its_batch(
    corpus: Corpus, two_caches: dict[str, TeacherCache]
) -> None:
    cache = two_caches["fine"]
    order = order_of(corpus, cache)
    for shard in cache.manifest.shards():
        if shard.view == 1:
            (cache.directory / shard.record).unlink()
    first_epoch = cache.manifest.num_windows(0)
    slices = iter([(0, first_epoch), (first_epoch, first_epoch + 8)])
    batches = stream(corpus, order, two_caches, slices)
    assert len(next(batches).tokens) == first_epoch
    with pytest.raises(UserError, match="commits/1-0.json is missing"):
        next(batches)


def test_a_reader_that_leaves_early_leaves_no_thread(corpus: Corpus, two_caches: dict[str, TeacherCache]) -> None:
    order = order_of(corpus, two_caches["fine"])
    batches = stream(corpus, order, two_caches, ((start, start + 4) for start in range(0, 400, 4)), prefetch=2)
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_reads_with_threads_of_its_own() -> None:
    workers().submit(int).result()
    child = multiprocessing.get_context("fork").Process(target=_use_workers)
    child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0


def _use_workers() -> None:
    workers().submit(int).result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_forked_while_others_read_reads_for_itself(two_caches: dict[str, TeacherCache]) -> None:
    cache = two_caches["fine"]
    cache.codes(0, [0])
    chunk = next(iter(cache._chunks))
    cache._chunks[chunk] = dict.fromkeys(cache._chunks[chunk], Future())  # as if it was being read, by a thread
    with cache._lock:
        child = multiprocessing.get_context("fork").Process(target=cache.codes, args=(0, [0]))
        child.start()
        child.join(20)
        child.kill()
    assert child.exitcode == 0
