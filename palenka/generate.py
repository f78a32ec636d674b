"""Generate: a model continues the beginning of a text.

`palenka generate runs/demo/distilled --prompt "The state of the union"`
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from palenka.ground.command_line import parse, run
from palenka.ground.errors import UserError, refusing
from palenka.ground.processes import Device
from palenka.ground.settings import Printing

if TYPE_CHECKING:
    from palenka.eval.model import EvaluatedModel
    from palenka.samples import Samples


class GenerateSettings(Printing):
    """Let a model continue the beginning of a text."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Path
    """Directory of a run, or of any causal language model with its tokenizer, or an id on the Hugging Face Hub."""
    prompt: tuple[str, ...] = ("",)
    """Beginnings of texts to continue; an empty one lets the model begin."""
    tokens: int = Field(default=64, ge=1)
    """Maximum tokens added to each prompt."""
    temperature: float = Field(default=0.8, ge=0)
    """Temperature of sampling; 0 takes the most probable token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Sample from the most probable tokens with this total mass."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of sampling; each prompt has its own draws."""
    out: Path | None = None
    """JSON file for the samples, where `palenka report` finds them."""
    device: Device = "auto"
    """Where the model computes: auto is a GPU (cuda, or mps on a Mac) if there is one."""


def draw_samples(settings: GenerateSettings) -> "Samples":
    """Each prompt with the model's continuation; in float32, the same on the same machine.

    With ``out`` they are kept there, and read from there the next time.

    Raises:
        UserError: if a prompt leaves no room in the model's positions, there is no token to begin with, or anything but
            samples is at ``out``.
    """
    from palenka.eval.model import EvaluatedModel
    from palenka.ground.processes import open_processes
    from palenka.samples import Drawing, Sample, Samples, earlier_samples, require_samples, write_samples

    if settings.out is not None:
        require_samples(settings.out)
    open_processes(settings.device)
    model = EvaluatedModel(settings.model)
    weights = str(model.identity["weights"])
    drawing = Drawing(
        tokens=settings.tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    if settings.out is not None and (earlier := earlier_samples(settings.out, weights, drawing, settings.prompt)):
        return earlier
    texts = [_text(model, prompt, settings, settings.seed + number) for number, prompt in enumerate(settings.prompt)]
    # Models over bytes sometimes produce NUL, which our files must not contain.
    texts = [text.replace("\0", "\N{REPLACEMENT CHARACTER}") for text in texts]
    samples = tuple(Sample(prompt=prompt, text=text) for prompt, text in zip(settings.prompt, texts, strict=True))
    found = Samples(name=model.name, weights=weights, drawing=drawing, samples=samples)
    if settings.out is not None:
        write_samples(settings.out, found)
    return found


def _text(model: "EvaluatedModel", prompt: str, settings: GenerateSettings, seed: int) -> str:
    tokens = _encoded(model, prompt)
    room = settings.tokens if model.positions is None else model.positions - len(tokens)
    if room < 1:
        raise UserError(
            f"prompt {prompt[:40]!r} has {len(tokens)} tokens, but {model.directory} has {model.positions} "
            "positions; shorten it"
        )
    added = _added(model, tokens, min(room, settings.tokens), settings, seed)
    return str(model.tokenizer.decode(tokens + added, skip_special_tokens=True))


def _encoded(model: "EvaluatedModel", prompt: str) -> list[int]:
    """The tokens of a prompt, after the token that begins a text, if the tokenizer has one.

    A chat's bos begins a turn, not a text: then nothing comes before a prompt, and before an empty one the token that
    ends a text.
    """
    tokenizer: Any = model.tokenizer
    tokens: list[int] = tokenizer(prompt).input_ids
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and not tokenizer.chat_template:
        return tokens if tokens[:1] == [begin] else [begin, *tokens]
    if not tokens and end is None:
        raise UserError(f"the tokenizer of {model.directory} has no token to begin with; give a --prompt")
    return tokens or [end]


def _added(model: "EvaluatedModel", tokens: list[int], count: int, settings: GenerateSettings, seed: int) -> list[int]:
    """The tokens that the model adds, up to the end of the text."""
    import torch
    from transformers import GenerationConfig

    loaded: Any = model.load()
    draws = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=count,
        eos_token_id=model.tokenizer.eos_token_id,
        pad_token_id=model.tokenizer.eos_token_id or 0,
        # Logits beyond the tokenizer's vocabulary stand for no token.
        suppress_tokens=list(range(len(model.tokenizer), model.vocabulary_size)) or None,
        **(draws if settings.temperature else {"do_sample": False}),
    )
    given = torch.tensor([tokens], device=loaded.device)

    def finite(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not scores.max().isfinite():  # NaN if any is; suppressed tokens have minus infinity
            raise UserError(f"model {model.directory} gives logits that are not finite; it is broken")
        return scores

    reads = refusing(f"model {model.directory} cannot generate", "see its config.json and generation_config.json")
    with torch.random.fork_rng(), torch.inference_mode(), reads:
        torch.manual_seed(seed)
        made = loaded.generate(
            given, attention_mask=torch.ones_like(given), generation_config=config, logits_processor=[finite]
        )
    added: list[int] = made[0, len(tokens) :].tolist()
    return added


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run(_generate, arguments)


def _generate(arguments: Sequence[str]) -> None:
    settings = parse(GenerateSettings, arguments, "palenka generate")
    samples = draw_samples(settings).samples
    if settings.as_json:
        sys.stdout.write(json.dumps([each.as_plain() for each in samples], indent=1, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n\n".join(each.text.strip() for each in samples) + "\n")


if __name__ == "__main__":
    sys.exit(main())
