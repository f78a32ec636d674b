"""Does a student notice how its teacher's logits were kept?

    python -m benchmarks.encodings_and_students --corpus CORPUS --teacher TEACHER --output FOLDER

The same student with three seeds from a live teacher with its whole vocabulary and from caches in several encodings;
prints held-out cross-entropies as a table, beside a control. About an hour on a CPU core with the corpus and teacher of
the record.
"""

from typing import Any

from benchmarks.arms import Arm, arguments, folder_name, run_arms
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache

FRACTION, EPOCHS = 0.015, 1
ENCODINGS: dict[str, dict[str, Any]] = {
    "topk 32 float32": {"k": 32, "values": "float32"},
    "topk 32 uint8": {"k": 32},
    "sampled 32": {"kind": "sampled", "draws": 32},
    "hybrid 16 and 16": {"kind": "hybrid", "k": 16, "draws": 16},
}
LOGITS = {"hard": 0.5, "logit": 0.5, "temperature": 1.0}


def main() -> None:
    """Run what is missing, and print the table."""
    given = arguments(__doc__)
    arms = {
        "control": Arm({"hard": 1.0}),
        "live, all tokens": Arm(LOGITS, {"source": "live", "model": given.teacher}),
    }
    caches = {}
    for name, encoding in ENCODINGS.items():
        cache = given.output / "caches" / folder_name(name)
        settings = {"teacher": given.teacher, "corpus": given.corpus, "output": cache, "logits": encoding}
        capture(CaptureSettings.model_validate(settings | {"fraction": FRACTION, "micro_batch": 8}))
        arms[name] = Arm(LOGITS, {"cache": cache})
        caches[name] = TeacherCache(cache)
    run_arms(given, arms, FRACTION, EPOCHS)
    print("| teacher | bytes a token | held-out, seeds 0, 1, 2 | mean | deviation |")
    print("|---|---|---|---|---|")
    for name, arm in arms.items():
        size = f"{sum(caches[name].bytes_per_token().values()):.1f}" if name in caches else "–"
        print(f"| {name} | {size} | {arm.row()} |")


if __name__ == "__main__":
    main()
