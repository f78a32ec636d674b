"""Windows, views, slots and reading order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.signals.stream import ReadingOrder
from palenka.data.windows import BLOCK_WINDOWS, CHUNK_WINDOWS, WindowRule, ascending_in_batches, epoch_order, gather


@given(
    length=st.integers(2, 40),
    view=st.integers(0, 39),
    num_tokens=st.integers(0, 500),
)
def test_each_address_reads_exactly_the_tokens_of_its_span(length: int, view: int, num_tokens: int) -> None:
    rule = WindowRule(length=length)
    if view >= length:
        with pytest.raises(ValueError, match=f"view {view} does not exist"):
            rule.offset(view)
        return
    tokens = np.arange(num_tokens, dtype=np.uint16)
    count = rule.count(num_tokens, view)
    read = gather(tokens, rule, view, np.arange(count))
    for index in range(count):
        start, stop = rule.span(view, index)
        assert read[index].tolist() == list(range(start, stop))
    # Nothing but less than one window stays behind at the end.
    assert num_tokens - (rule.offset(view) + count * length) < length


def test_a_view_before_the_first_does_not_exist() -> None:
    with pytest.raises(ValueError, match="view -1 does not exist"):
        WindowRule(length=16).offset(-1)


@given(length=st.integers(2, 300))
def test_views_have_offsets_of_their_own_that_more_views_do_not_move(length: int) -> None:
    offsets = [WindowRule(length=length, views=length).offset(view) for view in range(length)]
    assert sorted(offsets) == list(range(length))
    assert [WindowRule(length=length, views=1).offset(view) for view in range(length)] == offsets


def test_the_first_views_are_spread_over_a_window() -> None:
    assert [WindowRule(length=128).offset(view) for view in range(5)] == [0, 64, 32, 96, 16]


@given(num_tokens=st.integers(0, 5000), view=st.integers(0, 7), seed=st.integers(0, 5))
def test_slots_are_a_permutation_that_only_seed_and_view_decide(num_tokens: int, view: int, seed: int) -> None:
    rule = WindowRule(length=8, views=8, permutation_seed=seed)
    slots = rule.slots(num_tokens, view)
    assert sorted(slots.tolist()) == list(range(rule.count(num_tokens, view)))
    assert np.array_equal(slots, WindowRule(length=8, permutation_seed=seed).slots(num_tokens, view))


def test_slots_are_those_of_every_other_machine() -> None:
    # Caches hold windows in this order: if it ever changes, every cache reads as another corpus.
    assert WindowRule(length=2).slots(20, 0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]
    assert WindowRule(length=2).slots(20, 1).tolist() == [0, 5, 8, 1, 3, 2, 6, 4, 7]


def splitmix(*parts: int) -> int:
    """SplitMix64 in Python's own integers: one step for each part of an address."""
    key = 0
    for part in parts:
        key = (key + part + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return key


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 2**40), st.integers(2, 20))
def test_positions_are_those_of_every_other_machine(seed: int, view: int, index: int, length: int) -> None:
    # The order of the positions' numbers, position 0 left out; caches keep hidden states of them, and not which.
    ordered = sorted(range(1, length), key=lambda position: splitmix(seed, view, index, position - 1))
    rule = WindowRule(length=length, permutation_seed=seed)
    for count in {0, 1, length // 2, length - 1}:
        assert rule.positions(view, np.array([index]), count).tolist() == [ordered[:count]]


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 2**40), st.integers(0, 5))
def test_draws_are_those_of_every_other_machine(seed: int, view: int, index: int, stream: int) -> None:
    # Streams of draws are told from the positions' by what lies above 32 bits of seed and view.
    rule, count = WindowRule(length=4, permutation_seed=seed), 3
    numbers = [splitmix(seed + (stream + 1) * 2**32, view + 2**32, index, place) for place in range(4 * count)]
    found = rule.uniforms(view, np.array([index]), count, stream)
    assert found.shape == (1, 4, count)
    assert found.ravel().tolist() == [(number >> 11) / 2**53 for number in numbers]


@given(num_windows=st.integers(0, 1000), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_an_epoch_reads_each_window_once_block_by_block(num_windows: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_windows, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_windows))
    chunks = order // CHUNK_WINDOWS
    spans = [np.flatnonzero(chunks == chunk)[[0, -1]] for chunk in range(-(-num_windows // CHUNK_WINDOWS))]
    # Of as many chunks as a block has at most, each begun and not ended, so that a reader decompresses each once.
    begun = [sum(first <= place <= last for first, last in spans) for place in range(num_windows)]
    assert max(begun, default=0) <= BLOCK_WINDOWS // CHUNK_WINDOWS
    if num_windows > 20:
        assert not np.array_equal(order, epoch_order(num_windows, seed, epoch + 1))
        assert not np.array_equal(order, epoch_order(num_windows, seed + 1, epoch))


@given(num_windows=st.integers(0, 1000), batch=st.integers(1, 300), first=st.integers(0, 1000))
def test_an_order_is_that_of_sorting_all_windows_at_once(num_windows: int, batch: int, first: int) -> None:
    generator = np.random.RandomState([3, 1])
    num_chunks = -(-num_windows // CHUNK_WINDOWS)
    block = generator.permutation(num_chunks) // (BLOCK_WINDOWS // CHUNK_WINDOWS)
    place_within = generator.random_sample(num_windows)
    expected = np.lexsort((place_within, block[np.arange(num_windows) // CHUNK_WINDOWS]))
    order = epoch_order(num_windows, seed=3, epoch=1)
    assert np.array_equal(order, expected)
    batches = (first + np.arange(num_windows)) // batch
    assert np.array_equal(ascending_in_batches(order, batch, first), order[np.lexsort((order, batches))])


@given(
    cuts=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    views=st.integers(1, 3),
    fraction=st.sampled_from([1.0, 0.5, 0.01]),
)
def test_batches_of_any_size_read_the_same_sequence(cuts: list[int], views: int, fraction: float) -> None:
    rule = WindowRule(length=4, views=views)

    def order() -> ReadingOrder:
        return ReadingOrder(rule, num_tokens=803, seed=7, epochs=4, fraction=fraction)

    whole = [(view, slot) for view, slots, _ in order().pieces(0, len(order())) for slot in slots.tolist()]
    position, pieced, reader = 0, [], order()
    for cut in cuts:
        stop = min(position + cut, len(reader))
        for view, slots, indices in reader.pieces(position, stop):
            assert np.array_equal(rule.slots(803, view)[slots], indices)
            pieced += [(view, slot) for slot in slots.tolist()]
        position = stop
    assert pieced == whole[:position]


def test_inside_a_global_batch_slots_ascend_and_parts_of_it_lie_in_few_chunks() -> None:
    rule = WindowRule(length=4)
    order, unordered = (ReadingOrder(rule, num_tokens=40_000, seed=5, epochs=2, batch=batch) for batch in (256, 1))
    for start in range(0, len(order) - 256, 256):
        (_, slots, _), *others = order.pieces(start, start + 256)
        assert set(slots) <= {slot for _, part, _ in unordered.pieces(start, start + 256) for slot in part}
        assert (np.diff(slots) > 0).all()
        if not others:  # eight processes decompress little more than one would
            assert sum(len(np.unique(part // 64)) for part in np.split(slots, 8)) <= 16
    assert sorted(slot for _, part, _ in order.pieces(0, 10_000) for slot in part) == list(range(10_000))


def test_epochs_go_through_the_views_in_turn_and_read_every_window_of_each() -> None:
    rule = WindowRule(length=4, views=2)
    order = ReadingOrder(rule, num_tokens=101, seed=0, epochs=4)
    epochs = list(order.pieces(0, len(order)))
    assert [view for view, _, _ in epochs] == [0, 1, 0, 1]
    for view, slots, _ in epochs:
        assert sorted(slots.tolist()) == list(range(rule.count(101, view)))
    assert [order.epoch_at(position) for position in (0, 24, 25, len(order) - 1)] == [0, 0, 1, 3]


def test_a_fraction_is_the_same_sample_every_epoch() -> None:
    order = ReadingOrder(WindowRule(length=4), num_tokens=4000, seed=0, epochs=3, fraction=0.25)
    assert len(order) == 750
    assert all(set(slots.tolist()) == set(range(250)) for _, slots, _ in order.pieces(0, 750))
