"""Stage two as one loop, to be read and changed: cache + tokens → batches → forward → terms → optimizer step → figures.

python docs/examples/stage_two.py runs/demo/corpus runs/demo/cache-llama runs/loop --fraction 0.036

Its losses equal those of `palenka train` with the same settings (tests/docs/test_examples.py compares them). It leaves
out checkpoints, locks, logs, several processes, micro-batches and most checks. The cache keeps the default encoding,
and hidden states if they have a weight. Shapes: B batch, L window length, V vocabulary, P positions, S student width, C
components of a teacher's layer.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import palenka
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.signals.distribution import Distribution

SHAPE: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
WEIGHTS = {"hard": 0.5, "logit": 0.5, "hidden": 0.1}
TEMPERATURE = 2.0
BATCH, EPOCHS, SEED = 16, 1, 0
LEARNING_RATE, MAX_GRAD_NORM = 2e-3, 1.0


def hard(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy with the text's next tokens: logits [B, L, V], tokens [B, L]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def logit(logits: Tensor, teacher: Distribution) -> Tensor:
    """T² · KL(teacher ‖ student) at temperature T, over all of V: a mean over the tokens."""
    theirs = teacher.log_probabilities(logits.shape[-1])
    ours = (logits / TEMPERATURE).log_softmax(-1)
    return TEMPERATURE**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()


class Projections(nn.Module):
    """1 − R² of a teacher's layers, predicted from the student's by a linear map each: a mean over the layers."""

    def __init__(self, cache: palenka.TeacherCache, depth: int, width: int) -> None:
        super().__init__()
        self.pairs = []  # the teacher's layer by its name, and the student's at the same relative depth
        self.maps = nn.ModuleList()
        for model, kept in cache.manifest.hidden_layers.items():
            for layer in kept.layers:
                key = f"{model}/{layer}"
                self.pairs.append((key, round(layer * depth / kept.depth)))
                self.maps.append(nn.Linear(width, cache.measured.layers[key].num_components))

    def forward(self, states: tuple[Tensor, ...], theirs: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """Student's states [B, L, S] by layer, the teacher's [B, P, C] by key in units of their deviation; [B, P]."""
        distances = []
        for (key, layer), linear in zip(self.pairs, self.maps, strict=True):
            ours = states[layer].gather(1, positions[..., None].expand(-1, -1, states[layer].shape[-1]))
            distances.append((linear(ours) - theirs[key]).square().mean())
        return torch.stack(distances).mean()


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine; steps are counted from 1, and none has a rate of 0."""
    warmup = min(300, num_steps // 10)
    if step <= warmup:
        return LEARNING_RATE * step / warmup
    passed = (step - warmup) / (num_steps + 1 - warmup)
    return LEARNING_RATE * (1 + math.cos(math.pi * passed)) / 2


def optimizer(*modules: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices, but not norms and biases."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999))


def distil(corpus_folder: Path, cache_folder: Path, output: Path, fraction: float = 1.0) -> list[dict[str, float]]:
    """Train a student, keep it in `output`, and return the loss and every term of each step."""
    corpus = palenka.Corpus.open(corpus_folder)
    cache = palenka.TeacherCache.open(cache_folder, hidden=bool(WEIGHTS["hidden"]))
    length = cache.manifest.windows.length
    held_out = fixed_windows(palenka.Corpus.open(corpus_folder, "dev"), length, 256)
    batches = palenka.Batches(corpus, {"teacher": cache}, BATCH, seed=SEED, epochs=EPOCHS, fraction=fraction)

    tokenizer = corpus.tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=corpus.vocabulary_size, max_position_embeddings=length, tie_word_embeddings=True, **SHAPE, **special
    )
    student = LlamaForCausalLM(config)
    torch.manual_seed(SEED)
    projections = Projections(cache, config.num_hidden_layers, config.hidden_size)
    adamw = optimizer(student, projections)

    steps = []
    for step, batch in enumerate(batches, start=1):
        signal = batch.signals["teacher"]
        said = student(input_ids=batch.tokens, output_hidden_states=True, use_cache=False)
        terms = {"hard": hard(said.logits, batch.tokens), "logit": logit(said.logits, signal.at(TEMPERATURE))}
        if WEIGHTS["hidden"]:
            terms["hidden"] = projections(said.hidden_states, signal.hidden, batch.positions)
        loss = torch.stack([WEIGHTS[name] * value for name, value in terms.items()]).sum()
        loss.backward()
        # Clipped separately: a projection's large gradient would shrink the student's step.
        for module in (student, projections):
            nn.utils.clip_grad_norm_(module.parameters(), MAX_GRAD_NORM)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, len(batches))
        adamw.step()
        adamw.zero_grad()
        steps.append({"loss": loss.item(), **{name: value.item() for name, value in terms.items()}})
        if step % 10 == 0 or step == len(batches):
            losses = [value for part in window_losses(student, held_out, corpus.vocabulary_size, 8) for value in part]
            told = ", ".join(f"{name} {value:.4f}" for name, value in steps[-1].items())
            print(f"step {step} of {len(batches)}: {told}; held out {sum(losses) / len(losses):.4f} nats per token")

    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print("held out:", palenka.evaluate(output, corpus_folder, length=length).by_suite["held_out"].main)
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "cache", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the text that is read, a uniform sample")
    given = parser.parse_args()
    distil(given.corpus, given.cache, given.output, given.fraction)
