"""The demo's minimal pairs: as many as promised, all different, each a small difference, the same everywhere."""

import difflib
from pathlib import Path

from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.templates import PAIRS_PER_PARADIGM, make_pairs, write_pairs


def test_there_are_ten_paradigms_or_more_of_a_hundred_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs")
    pairs = SUITES["minimal_pairs"].read(tmp_path / "pairs", Conditions())
    tasks = {pair.task for pair in pairs}
    assert len(tasks) >= 10
    for task in tasks:
        sentences = [pair.options for pair in pairs if pair.task == task]
        assert len(set(sentences)) == len(sentences) == PAIRS_PER_PARADIGM == 100
    write_pairs(tmp_path / "again")
    made = [SUITES["minimal_pairs"].fingerprint(tmp_path / name, Conditions()) for name in ("pairs", "again")]
    assert made[0] == made[1]


def test_a_pair_differs_in_one_place() -> None:
    good = {sentence for pairs in make_pairs().values() for sentence, _ in pairs}
    for pairs in make_pairs().values():
        for right, wrong in pairs:
            assert right != wrong
            assert wrong not in good
            words = difflib.SequenceMatcher(None, right.split(), wrong.split(), autojunk=False)
            changed = [block for block in words.get_opcodes() if block[0] != "equal"]
            assert len(changed) == 1
            assert right.endswith(".")
            assert right[0].isupper()


def test_pairs_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("precious")
    write_pairs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]
