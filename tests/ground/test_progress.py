"""The bar that a person watches: what it says, and that it fits 80 columns."""

import io

import pytest
from rich.console import Console

from palenka.ground import progress
from palenka.ground.console import tell
from palenka.ground.progress import progress_bar


def test_a_bar_says_loss_rate_and_time_left_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, force_terminal=True, color_system=None, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    monkeypatch.setattr(progress, "_console", console)
    with progress_bar("train a run with a long name, as they have", 1000, done=400) as bar:
        bar(300)
        bar.note("loss 5.4321")
        bar(300)
    console.file.close()
    # Each drawing returns to the line's beginning: the last 80 columns are the last of them.
    last = console.export_text().rstrip("\n")[-80:]
    for said in ("train a run with", "100 %", "loss 5.4321", "tokens/s in 0"):
        assert said in last


def test_sentences_are_broken_between_words_on_a_terminal_and_not_at_all_elsewhere() -> None:
    path = "runs/" + "a-long-name-" * 8 + "end"
    sentence = f"{'several words of a sentence about ' * 4}{path} [and] a :bell: of it"
    for is_terminal in (True, False):
        page = io.StringIO()
        on = Console(file=page, width=80, force_terminal=is_terminal, color_system=None, markup=False, emoji=False)
        tell(on, sentence)
        lines = page.getvalue().splitlines()
        assert " ".join(line.strip() for line in lines) == sentence
        assert len(lines) == (4 if is_terminal else 1)
        assert path in page.getvalue()
        assert all(len(line) <= 80 for line in lines if path not in line) or not is_terminal
