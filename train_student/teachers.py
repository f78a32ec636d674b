"""The teachers of a student: where their signals come from, and whether they fit the student's corpus."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from configs.errors import UserError, refuse_difference
from configs.settings import Settings
from data.cache import TeacherCache
from data.corpus import Corpus
from data.manifest import num_used
from data.model_files import identity_of
from data.windows import WindowRule


class TeacherSource(Settings):
    """One teacher of a student."""

    cache: Path
    """Directory of its cache."""
    weight: float = Field(default=1.0, ge=0)
    """Its share of the teacher terms; shares need not sum to 1."""
    model: Path | None = None
    """Directory of the model that the cache must have been captured from; not checked unless given."""


def open_caches(
    sources: Mapping[str, TeacherSource], corpus: Corpus, rule: WindowRule, fraction: float, temperature: float | None
) -> dict[str, TeacherCache]:
    """The caches of all teachers by name, each fit for this corpus, these windows and this temperature.

    Args:
        sources: the teachers.
        corpus: what the student is trained on.
        rule: its window rule; a cache may hold more views.
        fraction: the part of each view that the student reads; a cache may hold more.
        temperature: of the logit term; None if it has no weight.

    Raises:
        UserError: naming the cache, the field, and both sides; or the shards that are missing.
    """
    caches = {}
    for name, source in sources.items():
        cache = TeacherCache(source.cache)
        _require_fit(f"cache {source.cache} of teacher {name}", cache, corpus, rule, temperature)
        if source.model is not None:
            _require_teacher(f"cache {source.cache} of teacher {name}", cache, source.model)
        for view in range(rule.views):
            used = num_used(cache.manifest.num_windows(view), fraction)
            cache.require_shards(cache.manifest.shards_over(view, 0, used))
        caches[name] = cache
    return caches


def _require_fit(
    subject: str, cache: TeacherCache, corpus: Corpus, rule: WindowRule, temperature: float | None
) -> None:
    manifest = cache.manifest
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


def _require_teacher(subject: str, cache: TeacherCache, model: Path) -> None:
    captured = cache.manifest.teacher
    expected = identity_of(model, captured.precision)
    remedy = f"capture {model}, or name the model that was captured"
    refuse_difference(subject, expected.as_plain(), captured.as_plain(), remedy)
