"""A live teacher: causal language models in Hugging Face format whose forward pass yields the teacher signal.

Several models are an ensemble: its distribution is the normalised geometric mean of theirs (the softmax of the mean of
their logits), and each of them keeps its own hidden states.

Shapes: B batch, L window length, V vocabulary, P positions, W width of a model, C components.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of, load_model, require_fit
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.hidden import HiddenEncoding, HiddenLayers, LayerStatistics, StatisticsFit, at_positions
from palenka.data.signals.manifest import codes_of, hidden_key
from palenka.data.signals.signal import TeacherSignal, top_k_signal
from palenka.data.windows import WindowRule, gather
from palenka.ground.errors import UserError
from palenka.ground.settings import Precision

SINGLE = "teacher"
"""The name of a teacher that is no ensemble among the hidden states of its signal."""


class Teacher:
    """One frozen model or an ensemble of them on a device, fit for a corpus.

    Args:
        models: Hugging Face model directories by name, with safetensors weights and the corpus's tokenizer.
        precision: the type of their weights; the signal is float32 whatever it is.
        device: where they run.
        corpus: what they are to read.
        length: tokens in a window.
        logits: what is kept of their distribution.
        hidden: what is kept of their hidden states, if anything.

    Attributes:
        hidden: what is kept of their hidden states, its positions settled; None if nothing is.
        identities: what makes each model the same model, by name.
        hidden_layers: the layers kept of each model, by name; empty without hidden states.
        statistics: the coordinates of each layer kept, by "model/layer"; `measure` makes them, or a cache has them.

    Raises:
        UserError: if a directory holds no such model or layer, or it does not fit the corpus; both sides are named.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        precision: Precision,
        device: torch.device,
        corpus: Corpus,
        length: int,
        logits: LogitEncoding,
        hidden: HiddenEncoding | None = None,
    ) -> None:
        _require_room(corpus, logits)
        hidden = hidden.within(length) if hidden else None
        for directory in models.values():
            require_fit("teacher", directory, corpus, length)
        self.identities = {name: identity_of(directory, precision) for name, directory in models.items()}
        self.hidden_layers = (
            {name: HiddenLayers.of(identity.config, hidden) for name, identity in self.identities.items()}
            if hidden
            else {}
        )
        self.statistics: dict[str, LayerStatistics] = {}
        self._directories, self._precision, self._device = models, precision, device
        self.hidden = hidden
        self._logits = logits
        self._models = {name: load_model(directory, device, precision) for name, directory in models.items()}

    @torch.no_grad()
    def signal(self, tokens: Tensor, positions: Tensor) -> TeacherSignal:
        """What it says about windows [B, L], with the hidden states at positions [B, P or more]: one forward pass.

        Raises:
            UserError: if its output is not finite.
        """
        logits, states = self.outputs(tokens)
        hidden = self._hidden_codes(self.at(states, positions))
        self._require_finite("logits", logits)
        return replace(top_k_signal(logits, self._logits.k, self._logits.temperatures), hidden=hidden)

    @torch.no_grad()
    def outputs(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, L, V] for windows [B, L], and the hidden states [B, L, W] of every layer kept."""
        logits: list[Tensor] = []
        states: dict[str, Tensor] = {}
        for name, model in self._models.items():
            kept = self.hidden_layers[name].layers if self.hidden_layers else ()
            given = model(input_ids=tokens.to(self._device), use_cache=False, output_hidden_states=bool(kept))
            logits.append(given.logits)
            states |= {hidden_key(name, layer): given.hidden_states[layer] for layer in kept}
        return logits[0] if len(logits) == 1 else torch.stack([part.float() for part in logits]).mean(0), states

    def at(self, states: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        """Hidden states [B, L, W] at the first of the positions [B, P or more], as many as are kept: [B, P, W]."""
        if self.hidden is None:
            return {}
        kept = positions[:, : self.hidden.num_positions()].to(self._device)
        return {key: at_positions(layer, kept) for key, layer in states.items()}

    @torch.no_grad()
    def codes(self, logits: Tensor, states: Mapping[str, Tensor], uniforms: Tensor) -> dict[str, Tensor]:
        """The arrays of a cache for logits [B, L, V], hidden states [B, P, W] and numbers that decide draws [B, L, D].

        Raises:
            UserError: if anything is not finite.
        """
        self._require_finite("logits", logits)
        hidden = {codes_of(key): codes for key, codes in self._hidden_codes(states).items()}
        return self._logits.encode(logits, uniforms) | hidden

    def _hidden_codes(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes [B, P, C] of hidden states [B, P, W]."""
        if self.hidden is None:
            return {}
        for key, layer in states.items():
            self._require_finite(f"hidden states ({key})", layer)
        return {key: self.statistics[key].encode(layer, self.hidden) for key, layer in states.items()}

    @torch.no_grad()
    def measure(self, corpus: Corpus, rule: WindowRule, micro_batch: int) -> None:
        """Measure the statistics of every layer kept on the first windows on disk, a random sample of the corpus.

        Costs a forward pass over `sample_windows` windows; with a basis also W² float64 for every layer.
        """
        if self.hidden is None:
            return
        fits: dict[str, StatisticsFit] = {}
        sample = rule.slots(len(corpus.tokens), 0)[: self.hidden.sample_windows]
        for start in range(0, len(sample), micro_batch):
            tokens = torch.from_numpy(gather(corpus.tokens, rule, 0, sample[start : start + micro_batch]))
            for key, layer in self.outputs(tokens)[1].items():
                self._require_finite(f"hidden states ({key})", layer)
                fits.setdefault(key, StatisticsFit(self.hidden)).add(layer[:, 1:])
        self.use({key: fit.finish() for key, fit in fits.items()})

    def use(self, statistics: Mapping[str, LayerStatistics]) -> None:
        """Encode hidden states with these statistics, of a cache for instance."""
        self.statistics = {key: layer.to(self._device) for key, layer in statistics.items()}

    def _require_finite(self, what: str, values: Tensor) -> None:
        if not bool(values.isfinite().all()):
            names = ", ".join(str(directory) for directory in self._directories.values())
            raise UserError(
                f"teacher {names} gives {what} that are not finite in {self._precision}; "
                "try precision float32, or train it again"
            )


def _require_room(corpus: Corpus, logits: LogitEncoding) -> None:
    """Refuse to keep more tokens than a corpus has."""
    if logits.k > corpus.vocabulary_size:
        raise UserError(
            f"logits.k is {logits.k}, but the vocabulary of corpus {corpus.directory} has "
            f"{corpus.vocabulary_size} tokens; set it to {corpus.vocabulary_size} at most"
        )


def named_models(option: str, model: Path | None, ensemble: Mapping[str, Path]) -> dict[str, Path]:
    """The models of a teacher by name, from two options of which one must be given: `option` and ``ensemble``.

    Raises:
        ValueError: unless exactly one is given, or for an ensemble of one or with a name that no path can hold.
    """
    if (model is None) != bool(ensemble):
        raise ValueError(f"give {option}, a model's directory, or ensemble, several by name, not both or neither")
    if model is not None:
        return {SINGLE: model}
    if len(ensemble) == 1:
        raise ValueError(f"ensemble has only {next(iter(ensemble))}; give {option} instead, or more models")
    for name in ensemble:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"ensemble has the name '{name}'; use letters, digits, _ and - alone")
    return dict(ensemble)
