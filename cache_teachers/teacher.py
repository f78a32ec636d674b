"""A live teacher: causal language models in Hugging Face format whose forward pass yields the teacher signal.

Several models are an ensemble: its distribution is the normalised geometric mean of theirs (the softmax of the mean of
their logits), and each of them keeps its own hidden states.

Shapes: B batch, L window length, V vocabulary, P positions, W width of a model.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palenka.cache_teachers.settings import TeacherSettings
from palenka.data.blocks import compile_blocks
from palenka.data.corpus import Corpus
from palenka.data.hub import locate_model
from palenka.data.model_files import (
    config_of,
    identity_of,
    load_model,
    require_fit,
    require_unchanged,
    state_of_model,
)
from palenka.data.moving import to_device
from palenka.data.signals.distribution import token_chunks
from palenka.data.signals.encoding import OutputMatrix, TeacherOutputs
from palenka.data.signals.hidden import HiddenLayers, LayerFit
from palenka.data.signals.layers import LayerStacks, finished
from palenka.data.signals.manifest import LOGITS, codes_of, hidden_key
from palenka.data.signals.signal import TeacherSignal, at_rows, rows_of
from palenka.data.signals.store import Measured
from palenka.data.unpadded import leave_out_masks
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError
from palenka.ground.processes import is_compiled

_LOGITS_AT_ONCE = 2**28
"""Maximum logits of a forward pass: 1 GB in float32, for any vocabulary."""
_SAMPLE_TOKENS = 2**13
"""Tokens on which logit encodings are measured: the first windows on disk, a random sample of the corpus."""


class Teacher:
    """One frozen model, or an ensemble, on a device, checked against a corpus.

    Args:
        settings: the models, directories or Hub ids, with safetensors weights and the corpus's tokenizer, and what is
            kept of them.
        corpus: that they will read.
        rule: how it is cut into windows.
        device: where they run.

    Attributes:
        device: where they run.
        logits: encoding of their distribution.
        hidden: encoding of their hidden states, with resolved positions; None if none are kept.
        identities: of the models, by name.
        hidden_layers: the layers kept of each model, by name; empty without hidden states.
        measured: statics and coordinates of the encodings, from `measure` or from a cache.

    Raises:
        UserError: if a directory has no such model or layer, or does not fit the corpus; the error names both sides.
    """

    def __init__(self, settings: TeacherSettings, corpus: Corpus, rule: WindowRule, device: torch.device) -> None:
        settings.logits.require_room(corpus.vocabulary_size, str(corpus.directory))
        self.logits = settings.logits
        self.hidden = settings.hidden.within(rule.length) if settings.hidden else None
        self._precision, self.device = settings.precision, device
        self._corpus, self._rule = corpus, rule
        located = {name: locate_model(path) for name, path in settings.models().items()}
        self._directories = {name: found.directory for name, found in located.items()}
        for model in located.values():
            require_fit("teacher", model, corpus, rule.length)
        states = {directory: state_of_model(directory) for directory in self._directories.values()}
        self.identities = {
            name: identity_of(found.directory, self._precision, found.source) for name, found in located.items()
        }
        self.hidden_layers = (
            {name: HiddenLayers.of(config_of(place), self.hidden) for name, place in self._directories.items()}
            if self.hidden
            else {}
        )
        self.measured = Measured()
        # Each teacher has its own random numbers: errors of two caches with the same ones would not average out.
        names = [identity.weights for identity in self.identities.values()]
        self._stream = int.from_bytes(hashlib.sha256("".join(names).encode()).digest()[:4])
        self._models = {
            name: load_model(directory, device, self._precision) for name, directory in self._directories.items()
        }
        for directory, state in states.items():
            require_unchanged(directory, state)
        self._compiled = is_compiled(settings.compile, device)
        self._encode_states = torch.compile(LayerStacks.encode, dynamic=False) if self._compiled else LayerStacks.encode
        for loaded in self._models.values():
            leave_out_masks(loaded, rule.length)
            if self._compiled:
                compile_blocks(loaded)
        self._logits_of = {name: int(model.config.get_text_config().vocab_size) for name, model in self._models.items()}
        size = corpus.vocabulary_size
        self._heads = {name: head for name, model in self._models.items() if (head := _output_matrix(model, size))}

    def windows_at_once(self, micro_batch: int, most_logits: int = _LOGITS_AT_ONCE) -> int:
        """Windows of a forward pass: a micro-batch, or fewer if that would exceed `most_logits`."""
        fit = most_logits // (self._rule.length * max(self._logits_of.values()))
        return max(1, min(micro_batch, fit))

    @torch.no_grad()
    def signal(self, tokens: Tensor, positions: Tensor) -> TeacherSignal:
        """The signal for windows [B, L], with hidden states at positions [B, P or more]: one forward pass.

        The encoding must not be an estimate, since nothing is drawn. Numbers that are not finite raise no error here:
        they show in the student's loss.
        """
        outputs = self.outputs(tokens)
        arrays, codes = self.encode(outputs, self.at(outputs.hidden, positions))
        return TeacherSignal(self.logits, arrays, self.measured.statics, self.measured.stacks.decode(codes))

    @torch.no_grad()
    def outputs(
        self, tokens: Tensor, view: int = 0, indices: NDArray[np.int64] | None = None, with_last: bool = False
    ) -> TeacherOutputs:
        """The outputs of the models for windows [B, L]: one forward pass.

        Args:
            tokens: the windows.
            view: of the windows' addresses, which decide draws.
            indices: of the windows' addresses; not needed if nothing is drawn.
            with_last: return the last hidden states even if the encoding does not need them.
        """
        logits: list[Tensor] = []
        hidden: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        for name, model in self._models.items():
            layers = self.hidden_layers[name].layers if self.hidden_layers else ()
            keeps_last = with_last or self.logits.needs_states
            with_states = bool(layers) or keeps_last
            here = to_device(tokens, self.device)
            given = model(input_ids=here, use_cache=False, output_hidden_states=with_states)
            # Some models have more logits than the tokenizer has tokens: these are dropped before normalisation.
            logits.append(given.logits[..., : self._corpus.vocabulary_size])
            hidden |= {hidden_key(name, layer): given.hidden_states[layer] for layer in layers}
            if keeps_last:
                last[name] = given.hidden_states[-1]
        mean = logits[0] if len(logits) == 1 else torch.stack([part.float() for part in logits]).mean(0)
        addresses = np.empty(0, np.int64) if indices is None else indices
        uniforms = partial(self._uniforms, view, addresses)
        return TeacherOutputs(mean, hidden, last, self._heads, uniforms, self._compiled)

    @torch.no_grad()
    def padding_mass(self, tokens: Tensor) -> dict[str, float]:
        """Mean mass of the logits without a token, for windows [B, L], by model that has such logits."""
        masses, size = {}, self._corpus.vocabulary_size
        for name, model in self._models.items():
            if self._logits_of[name] > size:
                logits = model(input_ids=tokens.to(self.device), use_cache=False).logits
                parts = token_chunks(logits.flatten(0, -2))
                mass = sum(float(part.float().softmax(-1)[:, size:].sum()) for part in parts)
                masses[name] = mass / tokens.numel()
        return masses

    @torch.no_grad()
    def encode(
        self, outputs: TeacherOutputs, states: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The encoded outputs: the arrays of the distributions by name, the codes of hidden states by key.

        Args:
            outputs: for windows [B, L].
            states: of these windows at the positions kept (`at`).
        """
        arrays = self.logits.encode(outputs, self.measured.statics)
        return arrays, self._encode_states(self.measured.stacks, states)

    def at(self, states: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        """Hidden states [B, L, W] at the first of the positions [B, P or more], as many as are kept: [B, P, W]."""
        if self.hidden is None:
            return {}
        kept = to_device(positions[:, : self.hidden.num_positions()], self.device)
        rows = rows_of(kept, self._rule.length)  # once for all layers
        return {key: at_rows(layer, rows).unflatten(0, kept.shape) for key, layer in states.items()}

    @torch.no_grad()
    def measure(self, micro_batch: int) -> None:
        """Measure what the encodings need on the first windows on disk, a random sample of the corpus.

        Costs a forward pass over the sample for each of the two encodings that needs it.
        """
        layers: dict[str, LayerFit] = {}
        if self.hidden is not None:
            for outputs in self._sample(self.hidden.sample_windows, micro_batch):
                for key, layer in outputs.hidden.items():
                    layers.setdefault(key, self.hidden.fit()).add(layer[:, 1:])
                del outputs  # freed before the next pass: logits of a large vocabulary may take a gigabyte
        statics = self.logits.measure(self._sample(-(-_SAMPLE_TOKENS // self._rule.length), micro_batch))
        self.use(Measured(statics, finished(layers)))

    def use(self, measured: Measured) -> None:
        """Encode with these statics and coordinates, for instance those of a cache."""
        self.measured = measured.to(self.device)

    def first_windows(self, count: int, micro_batch: int) -> list[tuple[NDArray[np.int64], Tensor]]:
        """The first windows on disk, a random sample of the corpus, in groups of a forward pass.

        Args:
            count: maximum number of windows.
            micro_batch: maximum windows of a pass.

        Returns:
            The indices of each pass's windows in view 0, and their tokens [B, L].
        """
        slots = self._rule.slots(len(self._corpus.tokens), 0)[:count]
        size = self.windows_at_once(micro_batch)
        parts = [slots[start : start + size] for start in range(0, len(slots), size)]
        return [(part, torch.from_numpy(self._corpus.gather(self._rule, 0, part))) for part in parts]

    def _sample(self, count: int, micro_batch: int) -> "_Sample":
        return _Sample(self, self.first_windows(count, micro_batch))

    def _uniforms(self, view: int, indices: NDArray[np.int64], count: int) -> Tensor:
        return torch.from_numpy(self._rule.uniforms(view, indices, count, self._stream))

    def require_finite(self, finite: Mapping[str, Tensor]) -> None:
        """Refuse outputs that are not finite, given the result of `finiteness`.

        Raises:
            UserError: with the first.
        """
        flags = torch.stack(list(finite.values())).tolist() if finite else []
        if not all(flags):
            what = list(finite)[flags.index(False)]
            names = ", ".join(str(directory) for directory in self._directories.values())
            raise UserError(
                f"teacher {names} gives {what} that are not finite in {self._precision}; "
                "try precision float32, or train it again"
            )


@dataclass(frozen=True)
class _Sample:
    """A teacher's outputs for some windows of view 0, computed again whenever they are read."""

    teacher: Teacher
    windows: Sequence[tuple[NDArray[np.int64], Tensor]]

    def __iter__(self) -> Iterator[TeacherOutputs]:
        for indices, tokens in self.windows:
            yield self._finite(self.teacher.outputs(tokens, 0, indices))  # no name, which would keep it in memory

    def _finite(self, outputs: TeacherOutputs) -> TeacherOutputs:
        """The outputs, which are measured: no algorithm should meet others than finite numbers."""
        self.teacher.require_finite(finiteness({"logits": outputs.logits} | named_states(outputs.hidden)))
        return outputs


def finiteness(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether each output [..., n] is finite, as scalars on the device; reads the outputs once."""
    # A sum in float32 is finite if all of its numbers are, unless some are near 1e38, which is an error too. A few rows
    # at a time, since a CPU would copy all of them to float32.
    rows = {name: token_chunks(values.flatten(0, -2)) for name, values in outputs.items()}
    sums = [reduce(torch.add, (few.sum(dtype=torch.float32) for few in parts)) for parts in rows.values()]
    return dict(zip(rows, torch.stack(sums).isfinite().unbind(), strict=True))


def named_states(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hidden states by their names in errors."""
    return {f"hidden states ({key})": layer for key, layer in states.items()}


def prefixed(arrays: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The result of `Teacher.encode`, by the arrays' paths in a cache."""
    logits = {f"{LOGITS}/{name}": part for name, part in arrays.items()}
    return logits | {codes_of(key): part for key, part in codes.items()}


def _output_matrix(model: nn.Module, vocabulary_size: int) -> OutputMatrix | None:
    """A model's linear map from its last hidden states to the logits of a vocabulary, if it has one."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        return None
    bias = head.bias if head.bias is None else head.bias.detach()[:vocabulary_size]
    return OutputMatrix(head.weight.detach()[:vocabulary_size], bias)
