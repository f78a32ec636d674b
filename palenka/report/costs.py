"""The costs of a study, and the number of students after which a capture is cheaper than live teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from palenka.data.signals.cache import TeacherCache
from palenka.ground.files import resolved
from palenka.report.sources import Sources
from palenka.train_student.run_facts import FinishedRun


@dataclass(frozen=True)
class Capture:
    """A capture's cost: the seconds of its stage, and the tokens that it captured."""

    name: str
    seconds: float
    tokens: int

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token of the teacher's forward pass, compressing and writing included."""
        return self.seconds / self.tokens


@dataclass(frozen=True)
class LiveStudent:
    """The cost of a student's teachers if they were live."""

    run: FinishedRun
    seconds: float


@dataclass(frozen=True)
class BreakEven:
    """Cached against live teachers, for the students of a study."""

    captures: tuple[Capture, ...]
    students: tuple[LiveStudent, ...]

    @property
    def capture_seconds(self) -> float:
        """Seconds for capturing all teachers once."""
        return sum(capture.seconds for capture in self.captures)

    @property
    def live_seconds(self) -> float:
        """Seconds of live teachers for one student: the mean over the students."""
        return sum(student.seconds for student in self.students) / len(self.students)

    @property
    def students_needed(self) -> float:
        """The number of students at which both cost the same."""
        return self.capture_seconds / self.live_seconds

    def saving(self, students: int) -> float:
        """Seconds that caches save over that many students; negative if they cost more."""
        return students * self.live_seconds - self.capture_seconds


def break_even(study: Path, sources: Sources) -> BreakEven | None:
    """The break-even of a study; None if its captures' seconds or its students are unknown."""
    by_path = {resolved(cache.directory): cache for cache in sources.caches}
    used: list[tuple[TeacherCache, Capture]] = []
    for row in sources.studies[study].caches:
        cache = by_path.get(resolved(study / row.path))
        seconds = sources.studies[study].seconds.get(f"cache {row.name}")
        if cache is not None and seconds and (tokens := cache.captured_tokens()):
            used.append((cache, Capture(row.name, seconds, tokens)))
    students = [LiveStudent(run, seconds) for run in sources.runs if (seconds := _live_seconds(run, used)) is not None]
    if not used or not students:
        return None
    return BreakEven(tuple(capture for _, capture in used), tuple(students))


def _live_seconds(run: FinishedRun, captures: Sequence[tuple[TeacherCache, Capture]]) -> float | None:
    """Seconds of all teachers of a run over the tokens that it read; None unless each has a capture of the study."""
    if not run.inputs.teachers:
        return None
    rates = [_rate(manifest, captures) for manifest in run.inputs.teachers.values()]
    known = [rate for rate in rates if rate is not None]
    return run.result.tokens * sum(known) if len(known) == len(rates) else None


def _rate(manifest: Mapping[str, object], captures: Sequence[tuple[TeacherCache, Capture]]) -> float | None:
    rates = [capture.seconds_per_token for cache, capture in captures if cache.manifest.as_plain() == manifest]
    return rates[0] if rates else None
