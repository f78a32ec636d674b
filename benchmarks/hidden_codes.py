"""Do hidden states in a third of the bytes affect a student?

    python -m benchmarks.hidden_codes --corpus CORPUS --teacher TEACHER --output FOLDER [--seeds 0 1 2 3 4]

Captures the teacher with exact principal components and with the codes that are to be as exact as these, and trains the
same student from each with the hidden term, beside one with the logit term alone. Prints bytes and relative errors by
layer, held-out cross-entropies, and Student's interval of codes minus exact components, paired by seed. Finished runs
are kept, so calls with other seeds add to those before; each takes minutes on a core. `--only-table` runs nothing.
"""

from pathlib import Path

from benchmarks.arms import Arm, arguments, folder_name, paired_interval, run_arms
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache

FRACTION, EPOCHS, RATE = 0.04, 1, 1e-3
OBJECTIVE = {"hard": 0.5, "logit": 0.5, "temperature": 1.0}
COMPONENTS = (64, 16)
KINDS = {"exact": "float32", "codes": "int8"}


def main() -> None:
    """Run what is missing, and print the tables."""
    given = arguments(__doc__)
    caches = {}
    for count in COMPONENTS:
        for kind, values in KINDS.items():
            name = f"{count} components, {kind}"
            caches[name] = given.output / "caches" / folder_name(name)
            hidden = {"components": count, "values": values}
            settings = {"teacher": given.teacher, "corpus": given.corpus, "output": caches[name], "hidden": hidden}
            if not given.only_table:
                capture(CaptureSettings.model_validate(settings | {"fraction": FRACTION, "micro_batch": 8}))
    arms = {"logits alone": Arm(OBJECTIVE, {"cache": next(iter(caches.values()))})}
    arms |= {name: Arm(OBJECTIVE | {"hidden": 0.3}, {"cache": cache}) for name, cache in caches.items()}
    run_arms(given, arms, FRACTION, EPOCHS, RATE)
    print("| student | hidden bytes a token | error by layer | held-out, by seed | mean | minus exact | 95 % | pairs |")
    print("|---|---|---|---|---|---|---|---|")
    for name, arm in arms.items():
        rival = name.replace("codes", "exact")
        compared = paired_interval(arm, arms[rival]) if rival != name else "– | – | –"
        print(f"| {name} | {_stored(caches[name]) if name in caches else '– | –'} | {arm.row()} | {compared} |")


def _stored(place: Path) -> str:
    """Bytes a token of hidden states, each layer's and their sum, and relative errors, as cells of a table."""
    cache = TeacherCache(place)
    sizes = [size for array, size in cache.bytes_per_token().items() if array.startswith("hidden/")]
    errors = cache.hidden_errors().values()
    each = ", ".join(f"{size:.1f}" for size in sizes)
    return f"{sum(sizes):.1f} ({each}) | {', '.join(f'{error:.3f}' for error in errors)}"


if __name__ == "__main__":
    main()
