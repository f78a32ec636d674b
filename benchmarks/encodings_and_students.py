"""Does an encoding affect a student, compared with a live teacher?

    python -m benchmarks.encodings_and_students --corpus CORPUS --teacher TEACHER --output FOLDER [--seeds 0 1 2 3 4]

The same student from a live teacher with its whole vocabulary and from caches in several encodings, beside a control
without teachers, for forward KL at T = 1 and 2 and Jensen-Shannon at T = 2. Prints held-out cross-entropies as a table,
with Student's interval of the difference from the live teacher, paired by seed. Some 20 runs a seed, each about a
minute on a core; finished runs are kept, so calls with other seeds add to those before. `--objectives "forward T=2"`
and `--students live "low rank, 7 and 64"` train these alone, for not every student needs as many seeds as the question.
The table has what is there of the seeds given; `--only-table` trains nothing.
"""

from typing import Any

from benchmarks.arms import Arm, arguments, folder_name, is_chosen, paired_interval, run_arms
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache

FRACTION, EPOCHS = 0.02, 1
ENCODINGS: dict[str, dict[str, Any]] = {
    "low rank, 7 and 64": {"kind": "low_rank", "k": 7, "rank": 64},
    "topk 32": {"kind": "topk", "k": 32},
    "32 draws at T=1": {"kind": "sampled", "draws": 32, "temperatures": [1.0]},
    "32 draws at T=2": {"kind": "sampled", "draws": 32, "temperatures": [2.0]},
}
OBJECTIVES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "forward T=1": ({"temperature": 1.0}, ("low rank, 7 and 64", "topk 32", "32 draws at T=1")),
    "forward T=2": ({"temperature": 2.0}, ("low rank, 7 and 64", "topk 32", "32 draws at T=2")),
    "js T=2": ({"temperature": 2.0, "divergence": "js"}, ("low rank, 7 and 64", "topk 32")),
}


def main() -> None:
    """Run what is missing, and print the table."""
    given = arguments(__doc__)
    chosen = [name for name in OBJECTIVES if not given.objectives or name in given.objectives]
    used = {encoding for name in chosen for encoding in OBJECTIVES[name][1]}
    caches = {name: given.output / "caches" / folder_name(name) for name in ENCODINGS if name in used}
    for name, cache in caches.items():
        if is_chosen(given, name) and not given.only_table:
            settings = {"teacher": given.teacher, "corpus": given.corpus, "output": cache, "logits": ENCODINGS[name]}
            capture(CaptureSettings.model_validate(settings | {"fraction": FRACTION, "micro_batch": 8}))
    arms = {"control": Arm({"hard": 1.0})}
    for objective in chosen:
        options, encodings = OBJECTIVES[objective]
        weights = {"hard": 0.5, "logit": 0.5, **options}
        arms[f"{objective}: live"] = Arm(weights, {"source": "live", "model": given.teacher})
        arms |= {f"{objective}: {name}": Arm(weights, {"cache": caches[name]}) for name in encodings}
    run_arms(given, arms, FRACTION, EPOCHS)
    print("| student | bytes a token | held-out, nats a token, by seed | mean | minus live | 95 % interval | pairs |")
    print("|---|---|---|---|---|---|---|")
    for name, arm in arms.items():
        objective, _, encoding = name.partition(": ")
        size = "–"
        if encoding in caches and caches[encoding].is_dir():
            size = f"{sum(TeacherCache(caches[encoding]).bytes_per_token().values()):.1f}"
        is_rival = encoding in ("", "live")
        compared = "– | – | –" if is_rival else paired_interval(arm, arms[f"{objective}: live"])
        print(f"| {name} | {size} | {arm.row()} | {compared} |")
    for objective in chosen:
        gained = paired_interval(arms["control"], arms[f"{objective}: live"])
        print(f"| {objective}: control | – | as above | – | {gained} |")


if __name__ == "__main__":
    main()
