"""The teachers of a student: their signals, cached or live, and checks that they fit the student's corpus.

Cached and live teachers yield the same signal, so the objective does not distinguish them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from palenka.cache_teachers.settings import SINGLE
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.hub import locate_model
from palenka.data.model_files import identity_of
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.hidden import HiddenLayers
from palenka.data.signals.manifest import CacheManifest, hidden_key
from palenka.data.signals.store import read_manifest
from palenka.data.signals.stream import Batch, EncodedBatch
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError, refuse_difference
from palenka.train_student.objective.module import LayerPair, teacher_of
from palenka.train_student.settings import TeacherSource, TrainSettings

_MEASURE_WINDOWS = 16
"""Windows per forward pass while a live teacher's statistics are measured."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run, opened.

    Attributes:
        caches: cached teachers by name.
        live: live teachers by name.
        pairs: the mapped layers of every teacher by name; empty without a term that needs them.
        identities: the sources of the run's signals, by the teacher's name.
        num_positions: in each window, at which any teacher's hidden states are known.
    """

    caches: Mapping[str, TeacherCache]
    live: Mapping[str, Teacher]
    pairs: Mapping[str, list[LayerPair]]
    identities: Mapping[str, object]
    num_positions: int

    def complete(self, encoded: EncodedBatch) -> Batch:
        """A batch with the decoded signals of the cached teachers and those of the live ones."""
        batch = encoded.decode(self.caches)
        live = {name: teacher.signal(batch.tokens, batch.positions) for name, teacher in self.live.items()}
        return replace(batch, signals={**batch.signals, **live})


def open_teachers(settings: TrainSettings, corpus: Corpus, device: torch.device = _CPU) -> Teachers:
    """All teachers whose terms have a weight, checked against the corpus and the student.

    Args:
        settings: of the run.
        corpus: that the student is trained on.
        device: where live teachers run.

    Raises:
        UserError: with the teacher, the field and both sides, or with the missing shards.
    """
    caches: dict[str, TeacherCache] = {}
    live: dict[str, Teacher] = {}
    pairs: dict[str, list[LayerPair]] = {}
    identities: dict[str, object] = {}
    num_positions = 0
    student_depth = settings.model.configured(corpus).get_text_config().num_hidden_layers
    heard = {teacher_of(name) for name in settings.weights() if "/" in name}
    for name, source in settings.teachers.items():
        if name not in heard:
            continue
        if source.source == "live":
            live[name] = teacher = _open_live(source, settings, corpus, device)
            identities[name] = {model: identity.as_plain() for model, identity in teacher.identities.items()}
            layers, hidden = _map_layers(name, settings, teacher.hidden_layers, student_depth), teacher.hidden
            measured = teacher.measured
        else:
            manifest = _require_cache(name, source, settings, corpus)
            layers, hidden = _map_layers(name, settings, manifest.hidden_layers, student_depth), manifest.hidden
            assert source.cache is not None
            reads_distributions = bool(settings.objective.needing("distributions"))
            read_as = manifest.logits.reading(source.k, source.rank, f"cache {source.cache} of teacher {name}")
            caches[name] = cache = TeacherCache(source.cache, layers, reads_distributions, read_as)
            cache.require_epochs(settings.epochs, settings.windows.views, settings.fraction)
            identities[name], measured = manifest.as_plain(), cache.measured
        if layers and hidden:
            pairs[name] = [LayerPair(key, layer, measured.layers[key]) for key, layer in layers.items()]
            num_positions = max(num_positions, hidden.num_positions())
    return Teachers(caches, live, pairs, identities, num_positions)


def _open_live(source: TeacherSource, settings: TrainSettings, corpus: Corpus, device: torch.device) -> Teacher:
    """A live teacher with the signals that the objective needs."""
    objective = settings.objective
    asked = source.live(corpus.vocabulary_size, objective.temperature, bool(objective.needing("states")))
    teacher = Teacher(asked.model_copy(update={"compile": settings.compile}), corpus, settings.windows, device)
    teacher.measure(_MEASURE_WINDOWS)
    return teacher


def _require_cache(name: str, source: TeacherSource, settings: TrainSettings, corpus: Corpus) -> CacheManifest:
    """The manifest of a cache that fits the run."""
    assert source.cache is not None
    subject = f"cache {source.cache} of teacher {name}"
    objective = settings.objective
    manifest = read_manifest(source.cache)
    reads_distributions = objective.needing("distributions")
    temperature = objective.temperature if reads_distributions else None
    _require_fit(subject, manifest, corpus, settings.windows, temperature)
    if reads_distributions and manifest.logits.is_estimate and not objective.divergence_function().serves_estimates:
        raise UserError(
            f"{subject} holds {manifest.logits.kind} logits, but objective.divergence is {objective.divergence}; draws "
            "are unbiased for forward alone: choose that, or capture with logits.kind topk"
        )
    if (term := objective.needing("states")) and manifest.hidden is None:
        raise UserError(
            f"{subject} holds no hidden states, but objective.{term} is {objective.terms[term].weight}; capture it "
            f"again, to another output, with hidden: {{...}}, or set objective.{term} to 0"
        )
    if source.model is not None:
        _require_teacher(subject, manifest, source.model)
    return manifest


def _map_layers(
    name: str, settings: TrainSettings, kept: Mapping[str, HiddenLayers], student_depth: int
) -> dict[str, int]:
    """The student's layer for every mapped teacher layer, by "model/layer"; empty unless a term reads states.

    Uniform maps a layer to the one at the same relative depth of the student.

    Raises:
        UserError: for a layer that either of the two lacks.
    """
    if not settings.objective.needing("states"):
        return {}
    subject, source = f"teacher {name}", settings.teachers[name]
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
    manifest.require_text(subject, corpus, rule)
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
    asked = identity_of(locate_model(model).directory, captured.precision)
    refuse_difference(subject, asked.compared(), captured.compared(), remedy)
