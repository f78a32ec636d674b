"""Quantities are read at a glance."""

from palenka.ground.quantities import conditions, count, duration, extent, size


def test_times_are_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (0.0007, 0.013, 0.2, 59.4, 185, 3599.6, 7805)] == [
        *("0 s", "0.013 s", "0.2 s", "59 s", "3 min 05 s", "1 h 00 min", "2 h 10 min")
    ]


def test_what_is_counted_and_what_holds_is_named() -> None:
    assert [count(number, "seed") for number in (0, 1, 3, 1200)] == ["0 seeds", "1 seed", "3 seeds", "1,200 seeds"]
    assert conditions({"length": 16, "split": "test"}) == "length 16, split test"
    assert conditions({}) == ""


def test_sizes_have_their_unit() -> None:
    assert [size(count) for count in (0, 512, 2_000, 5_519_072, 70_561_173_504, 3.2e15)] == [
        *("0 bytes", "512 bytes", "2.0 kB", "5.5 MB", "70.6 GB", "3,200.0 TB")
    ]


def test_an_extent_is_one_number_where_both_ends_are_written_alike() -> None:
    assert [extent(values, 1) for values in ([1.72, 1.4], [1.41, 1.38])] == ["1.4 to 1.7", "1.4"]
