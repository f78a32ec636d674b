"""The display of a run: a bar on a terminal, elsewhere a line per line of the log; then a summary."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from palenka.ground.progress import Bar, info, is_watched, progress_bar
from palenka.ground.quantities import duration
from palenka.train_student.run_facts import RunResult
from palenka.train_student.settings import TrainSettings


@dataclass
class Display:
    """Shows the progress of a run; silent on all processes but the first.

    Attributes:
        name: of the run.
        num_steps: of the run.
        first: step that this call begins with.
        tokens_per_step: of a global batch.
        verbose: whether this process prints.
        bar: on a terminal.
    """

    name: str
    num_steps: int
    first: int
    tokens_per_step: int
    verbose: bool
    bar: Bar | None
    started: float = field(default_factory=time.perf_counter)

    def advance(self, tokens: int) -> None:
        """Count some tokens of a global batch as read."""
        if self.bar:
            self.bar(tokens)

    def logged(self, step: int, loss: float) -> None:
        """Show a line of the log, with the mean loss since the last."""
        if self.bar:
            self.bar.note(f"loss {loss:.4f}")
        else:
            self._tell(step, f"loss {loss:.4f}")

    def validated(self, step: int, cross_entropy: float, best: float) -> None:
        """Show a validation, and the best so far."""
        kept = "the best so far" if cross_entropy <= best else f"the best was {best:.4f}"
        self._tell(step, f"validation {cross_entropy:.4f} nats per token ({kept})")

    def _tell(self, step: int, what: str) -> None:
        if not self.verbose:
            return
        each = (time.perf_counter() - self.started) / (step - self.first + 1)
        info(
            f"{self.name}: step {step:,} of {self.num_steps:,}, {what}, {self.tokens_per_step / each:,.0f} tokens/s, "
            f"{duration((self.num_steps - step) * each)} left"
        )


@contextmanager
def display(settings: TrainSettings, num_steps: int, first: int, verbose: bool) -> Iterator[Display]:
    """Show a run from a step on.

    Args:
        settings: of the run.
        num_steps: of it.
        first: step of this call.
        verbose: whether this process prints.
    """
    tokens = settings.global_batch * settings.windows.length
    name = settings.output.name
    shown = verbose and is_watched()
    bar = progress_bar(f"train {name}", num_steps * tokens, done=(first - 1) * tokens) if shown else nullcontext()
    with bar as advance:
        yield Display(name, num_steps, first, tokens, verbose, advance)


def tell_result(settings: TrainSettings, result: RunResult) -> None:
    """Print the result of a run, where its model is, and what to do with it."""
    output = settings.output
    info(
        f"{output}: finished after {result.steps:,} steps in {duration(result.seconds)}; best validation "
        f"{result.validation_cross_entropy:.4f} nats per token at step {result.best_step:,}, whose model is in {output}"
    )
    words, of_text = result.words.read, result.words.corpus_words
    info(f"{words:,} words read, {words / max(1, of_text):.2f} times the {of_text:,} of the {settings.split} split")
    run, corpus, figures, model = (
        shlex.quote(str(path)) for path in (output, settings.corpus, f"{output}-held-out.json", f"{output}-model")
    )
    info(
        f"next: palenka eval {run} --suite held_out --data {corpus} --length {settings.windows.length} "
        f"--out {figures}, or palenka export {run} --out {model}"
    )
