"""Hidden states at equal bytes: full width at few positions, or a truncated basis at more positions?

    python -m benchmarks.hidden_layout --corpus CORPUS --teacher TEACHER --output FOLDER

Captures the teacher once for each layout and trains the same student from each of them with three seeds, beside a
control and a student with the logit term alone; prints held-out cross-entropies as a table. About an hour on a CPU core
with the corpus and teacher of the record.
"""

import statistics

from benchmarks.arms import Arm, arguments, folder_name, run_arms
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache

FRACTION, EPOCHS = 0.015, 2
LAYOUTS = {
    "full width, 7 positions": {"positions": 7},
    "32 components, 28 positions": {"positions": 28, "components": 32},
    "16 components, 56 positions": {"positions": 56, "components": 16},
    "8 components, 112 positions": {"positions": 112, "components": 8},
}
"""For a teacher of width 128 and windows of 128 tokens: 7 codes a token and layer each."""
LOGITS = {"hard": 0.5, "logit": 0.5, "temperature": 1.0}


def main() -> None:
    """Run what is missing, and print the table."""
    given = arguments(__doc__)
    arms = {"control": Arm({"hard": 1.0})}
    caches = {}
    for name, hidden in LAYOUTS.items():
        cache = given.output / "caches" / folder_name(name)
        settings = {"teacher": given.teacher, "corpus": given.corpus, "output": cache, "hidden": hidden}
        capture(CaptureSettings.model_validate(settings | {"fraction": FRACTION, "micro_batch": 8}))
        arms.setdefault("logits alone", Arm(LOGITS, {"cache": cache}))
        arms[name] = Arm(LOGITS | {"hidden": 0.3}, {"cache": cache})
        caches[name] = TeacherCache(cache)
    run_arms(given, arms, FRACTION, EPOCHS)
    print("| arm | bytes a token of hidden states | relative error | held-out, seeds 0, 1, 2 | mean | deviation |")
    print("|---|---|---|---|---|---|")
    for name, arm in arms.items():
        stored = "– | –"
        if name in caches:
            sizes = caches[name].bytes_per_token()
            hidden_bytes = sum(size for array, size in sizes.items() if "hidden" in array)
            stored = f"{hidden_bytes:.1f} | {statistics.mean(caches[name].hidden_errors().values()):.3f}"
        print(f"| {name} | {stored} | {arm.row()} |")


if __name__ == "__main__":
    main()
