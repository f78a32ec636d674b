"""The teachers of a student: where their signals come from, and whether they fit the student's corpus.

A cached and a live teacher yield the same signal, so the objective does not know which it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from palenka.cache_teachers.teacher import SINGLE, Teacher, named_models
from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.hidden import HiddenEncoding, HiddenLayers
from palenka.data.signals.manifest import CacheManifest, hidden_key, num_used
from palenka.data.signals.stream import Batch, CodedBatch
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.settings import Precision, Settings
from palenka.train_student.objective.hidden import LayerPair
from palenka.train_student.objective.objective import ObjectiveSettings

_MEASURE_WINDOWS = 16
"""Windows per forward pass while a live teacher's statistics are measured."""


class LiveHidden(HiddenEncoding):
    """What is kept of a live teacher's hidden states; nothing is stored, so they are kept whole and exact."""

    components: None = None
    """Not for live teachers: a basis that each process measures by itself would not be the same everywhere."""
    values: Literal["int8", "float32"] = "float32"
    """Type of the values; int8 rounds them as a cache does."""


class TeacherSource(Settings):
    """One teacher of a student: a cache, or a live model or ensemble."""

    source: Literal["cache", "live"] = "cache"
    """Whether its signal is read from a cache or computed while the student trains."""
    weight: float = Field(default=1.0, ge=0)
    """Its share of the teacher terms; shares need not sum to 1."""
    cache: Path | None = None
    """Directory of its cache."""
    model: Path | None = None
    """Directory of a live model; beside a cache, the model that it must have been captured from."""
    ensemble: dict[str, Path] = Field(default={})
    """Directories of several live models by name, instead of one: their geometric mean."""
    layers: Literal["uniform"] | dict[int, int] = "uniform"
    """The student layer that is to predict each teacher layer; indices of hidden states, 0 is the embeddings."""
    k: int | None = Field(default=None, ge=1)
    """Tokens kept of a live teacher's distribution; all of them unless given."""
    hidden: LiveHidden = LiveHidden()
    """What is kept of a live teacher's hidden states."""
    precision: Precision = "float32"
    """Type that a live teacher computes in."""

    @model_validator(mode="after")
    def _source_is_given(self) -> Self:
        if self.source == "live":
            if self.cache is not None:
                raise ValueError(f"a teacher with source live needs no cache, but cache is {self.cache}; leave it out")
            self.models()
        elif self.cache is None:
            raise ValueError("a teacher needs a cache, or source: live and a model; give one of them")
        elif (self.ensemble, self.k, self.hidden, self.precision) != ({}, None, LiveHidden(), "float32"):
            raise ValueError(
                "ensemble, k, hidden and precision are options of live teachers; a cache says itself what it holds"
            )
        if self.layers == {}:
            raise ValueError("layers maps no layer; name some, such as {0: 0, 12: 8}, or choose uniform")
        return self

    def models(self) -> dict[str, Path]:
        """The directories of a live teacher's models by name."""
        return named_models("model", self.model, self.ensemble)


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run, ready to speak.

    Attributes:
        caches: cached teachers by name.
        live: live teachers by name.
        pairs: the mapped layers of every teacher by name; empty without a term that needs them.
        identities: what the run's signals come from, by the teacher's name.
        num_positions: in each window, at which any teacher's hidden states are known.
    """

    caches: Mapping[str, TeacherCache]
    live: Mapping[str, Teacher]
    pairs: Mapping[str, list[LayerPair]]
    identities: Mapping[str, object]
    num_positions: int

    def complete(self, coded: CodedBatch) -> Batch:
        """A batch with the decoded signals of the cached teachers and those of the live ones."""
        batch = coded.decode(self.caches)
        live = {name: teacher.signal(batch.tokens, batch.positions) for name, teacher in self.live.items()}
        return replace(batch, signals={**batch.signals, **live})


def open_teachers(
    sources: Mapping[str, TeacherSource],
    objective: ObjectiveSettings,
    corpus: Corpus,
    rule: WindowRule,
    fraction: float,
    student_depth: int,
    device: torch.device,
) -> Teachers:
    """All teachers that the objective needs, each fit for this corpus and these windows.

    Args:
        sources: the teachers.
        objective: whose terms they serve.
        corpus: what the student is trained on.
        rule: its window rule; a cache may hold more views.
        fraction: the part of each view that the student reads; a cache may hold more.
        student_depth: blocks of the student.
        device: where live teachers run.

    Raises:
        UserError: naming the teacher, the field, and both sides; or the shards that are missing.
    """
    caches: dict[str, TeacherCache] = {}
    live: dict[str, Teacher] = {}
    pairs: dict[str, list[LayerPair]] = {}
    identities: dict[str, object] = {}
    num_positions = 0
    for name, source in sources.items():
        if source.source == "live":
            live[name] = speaker = _open_live(source, objective, corpus, rule, device)
            identities[name] = {model: identity.as_plain() for model, identity in speaker.identities.items()}
            layers, hidden = speaker.hidden_layers, speaker.hidden
        else:
            caches[name] = cache = _open_cache(name, source, objective, corpus, rule, fraction)
            identities[name] = cache.manifest.as_plain()
            layers = cache.manifest.hidden_layers
            hidden = cache.manifest.hidden
        if objective.states_for() and hidden:
            student_layers = _map_layers(f"teacher {name}", source, layers, student_depth)
            statistics = live[name].statistics if name in live else caches[name].read_statistics(student_layers)
            pairs[name] = [LayerPair(key, layer, statistics[key]) for key, layer in student_layers.items()]
            num_positions = max(num_positions, hidden.num_positions())
    return Teachers(caches, live, pairs, identities, num_positions)


def _open_live(
    source: TeacherSource, objective: ObjectiveSettings, corpus: Corpus, rule: WindowRule, device: torch.device
) -> Teacher:
    """A live teacher that speaks of what the objective needs."""
    logits = LogitEncoding(k=source.k or corpus.vocabulary_size, temperatures=(objective.temperature,))
    hidden = source.hidden if objective.states_for() else None
    if hidden and not isinstance(source.layers, str):
        hidden = hidden.model_copy(update={"layers": tuple(source.layers)})
    teacher = Teacher(source.models(), source.precision, device, corpus, rule.length, logits, hidden)
    teacher.measure(corpus, rule, _MEASURE_WINDOWS)
    return teacher


def _open_cache(
    name: str, source: TeacherSource, objective: ObjectiveSettings, corpus: Corpus, rule: WindowRule, fraction: float
) -> TeacherCache:
    """A cache that fits and has every shard that the student reads."""
    assert source.cache is not None
    subject = f"cache {source.cache} of teacher {name}"
    cache = TeacherCache(source.cache)
    temperature = objective.temperature if objective.distributions_for() else None
    _require_fit(subject, cache.manifest, corpus, rule, temperature)
    if objective.distributions_for() and objective.divergence != "forward" and cache.manifest.logits.draws:
        raise UserError(
            f"{subject} holds {cache.manifest.logits.kind} logits, but objective.divergence is {objective.divergence}; "
            "draws are unbiased for forward alone: choose that, or capture with logits.kind topk"
        )
    if (kind := objective.states_for()) and cache.manifest.hidden is None:
        raise UserError(
            f"{subject} holds no hidden states, but objective.{kind} is {objective.weight(kind)}; capture it again, to "
            f"another output, with hidden: {{...}}, or set objective.{kind} to 0"
        )
    if source.model is not None:
        _require_teacher(subject, cache.manifest, source.model)
    for view in range(rule.views):
        used = num_used(cache.manifest.num_windows(view), fraction)
        cache.require_shards(cache.manifest.shards_over(view, 0, used))
    return cache


def _map_layers(
    subject: str, source: TeacherSource, kept: Mapping[str, HiddenLayers], student_depth: int
) -> dict[str, int]:
    """The student's layer for every teacher layer that has one, by "model/layer".

    Uniform maps a layer to the one at the same part of the student's depth.

    Raises:
        UserError: for a layer that one of the two does not have.
    """
    mapped: dict[str, int] = {}
    for model, layers in kept.items():
        if isinstance(source.layers, str):
            wanted = {layer: round(layer * student_depth / layers.depth) for layer in layers.layers}
        else:
            wanted = source.layers
        for layer, student_layer in wanted.items():
            if layer not in layers.layers:
                raise UserError(
                    f"{subject} keeps the hidden states {', '.join(map(str, layers.layers))}, but layers maps {layer}; "
                    "choose among these, or capture it again with that layer"
                )
            if not 0 <= student_layer <= student_depth:
                raise UserError(
                    f"layers of {subject} maps {layer} to {student_layer}, but the student has the hidden states 0 to "
                    f"{student_depth}; choose among them"
                )
            mapped[hidden_key(model, layer)] = student_layer
    return mapped


def _require_fit(
    subject: str, manifest: CacheManifest, corpus: Corpus, rule: WindowRule, temperature: float | None
) -> None:
    asked = {
        "tokenizer": corpus.tokenizer_hash,
        "corpus": corpus.fingerprint,
        "windows": rule.as_plain() | {"views": None},
    }
    found = {
        "tokenizer": manifest.tokenizer,
        "corpus": manifest.corpus,
        "windows": manifest.windows.as_plain() | {"views": None},
    }
    refuse_difference(
        subject, asked, found, f"train on the corpus and windows that were captured, or capture {corpus.directory}"
    )
    if rule.views > manifest.windows.views:
        raise UserError(
            f"{subject} holds {manifest.windows.views} view(s), but windows.views is {rule.views}; "
            "capture as many, or train on fewer"
        )
    if temperature is not None and temperature not in manifest.logits.temperatures:
        raise UserError(
            f"{subject} holds the tail mass at temperatures {', '.join(map(str, manifest.logits.temperatures))}, but "
            f"objective.temperature is {temperature}; choose one of these, or capture with it in logits.temperatures"
        )


def _require_teacher(subject: str, manifest: CacheManifest, model: Path) -> None:
    remedy = f"capture {model}, or name the model that was captured"
    if list(manifest.teachers) != [SINGLE]:
        raise UserError(f"{subject} is of an ensemble ({', '.join(manifest.teachers)}), not of {model}; {remedy}")
    captured = manifest.teachers[SINGLE]
    refuse_difference(subject, identity_of(model, captured.precision).as_plain(), captured.as_plain(), remedy)
