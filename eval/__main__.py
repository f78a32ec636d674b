"""`palenka eval MODEL_DIR --suite held_out --data CORPUS_DIR --out FILE.json`, or `python -m eval` with the same."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.console import Console

from configs.command_line import parse, run
from configs.settings import Settings


class EvalSettings(Settings):
    """Measure a model: the directory of any Hugging Face causal language model with its tokenizer."""

    model: Path
    """Directory of the model; may stand first, without its name."""
    data: Path
    """Directory of the prepared corpus."""
    out: Path
    """JSON file for the result."""
    suite: Literal["held_out"] = "held_out"
    """What to measure: held_out is the cross-entropy of a held-out split."""
    split: str = "dev"
    """Split of the corpus."""
    length: int = Field(default=128, ge=2)
    """Tokens in a window."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of evaluation; returns the exit status."""
    return run(_evaluate, arguments)


def _evaluate(arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    settings = parse(EvalSettings, arguments, "palenka eval")
    from data.corpus import Corpus
    from eval.held_out import measure_held_out

    result = measure_held_out(settings.model, Corpus.open(settings.data, settings.split), settings.length, settings.out)
    low, high = result["interval"]
    Console().print(
        f"{settings.model}: held-out cross-entropy {result['cross_entropy']:.4f} nats per token "
        f"(95 % interval {low:.4f} to {high:.4f}, {result['windows']:,} windows), written to {settings.out}"
    )


if __name__ == "__main__":
    sys.exit(main())
