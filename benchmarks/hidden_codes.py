"""Do hidden states in a third of the bytes affect a student?

    python -m benchmarks.hidden_codes --corpus CORPUS --teacher TEACHER --output FOLDER [--seeds 0 1 2 3 4]

Captures the teacher with codes of its principal components and with the same components in float32. Trains a student
with the logit term alone, and from it, for as many steps again, one with the hidden term of each cache and one without.
Students from scratch leave the plateau at the unigrams' entropy at steps that chance decides, and would differ by that.
Codes that are as exact as 64 components are of 80; the float32 ones are 80 too, so that both students have the same
projections, and more exact than the 64 that the codes replace.

Prints bytes and relative errors by layer, held-out cross-entropies, and Student's interval of each arm minus float32,
paired by seed. Finished runs are kept, so calls with other seeds add to those before; each takes minutes on a core.
`--only-table` runs nothing.
"""

from pathlib import Path

from benchmarks.arms import Arm, arguments, paired_interval, run_arms
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.model_files import config_of
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.hidden import ComponentsEncoding

FRACTION, EPOCHS = 0.02, 1
OBJECTIVE = {"hard": 0.5, "logit": 0.5, "temperature": 2.0}


def main() -> None:
    """Run what is missing, and print the tables."""
    given = arguments(__doc__)
    codes = ComponentsEncoding()
    width = config_of(given.teacher).get_text_config().hidden_size
    exact = ComponentsEncoding(components=codes.num_components(width), values="float32")
    hidden, caches = {"float32": exact, "codes": codes}, {}
    for name, encoding in hidden.items():
        caches[name] = given.output / "caches" / name
        settings = {"teacher": given.teacher, "corpus": given.corpus, "output": caches[name], "hidden": encoding}
        if not given.only_table:
            capture(CaptureSettings.model_validate(settings | {"fraction": FRACTION, "micro_batch": 8}))
    arms = {"logits alone": Arm(OBJECTIVE, {"cache": caches["codes"]})}
    supervised = OBJECTIVE | {"hidden": 0.3}
    arms |= {name: Arm(supervised, {"cache": cache}, after="logits alone") for name, cache in caches.items()}
    arms["logits longer"] = Arm(OBJECTIVE, {"cache": caches["codes"]}, after="logits alone")
    run_arms(given, arms, FRACTION, EPOCHS)
    print("| student | bytes a token | error by layer | held-out, by seed | mean | minus float32 | 95 % | pairs |")
    print("|---|---|---|---|---|---|---|---|")
    for name, arm in arms.items():
        compared = "– | – | –" if name == "float32" else paired_interval(arm, arms["float32"])
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
