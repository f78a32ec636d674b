"""The registered suites, and the folders of their data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from palenka.eval.age_of_acquisition import WordSurprisals
from palenka.eval.comps import Comps
from palenka.eval.entity_tracking import EntityTracking
from palenka.eval.global_piqa import GlobalPiqa
from palenka.eval.glue.suite import Glue
from palenka.eval.held_out import HeldOut
from palenka.eval.pair_suite import PairSuite
from palenka.eval.reading import Reading
from palenka.eval.suite import Suite
from palenka.eval.wug import Wug
from palenka.ground.errors import UserError
from palenka.ground.registry import NameIn, Registry

SUITES: Registry[Suite[Any]] = Registry("suite")
# The official downloads use these names of folders.
SUITES.register("blimp")(PairSuite("BLiMP", ("blimp",)))
SUITES.register("blimp_filtered")(
    PairSuite("BLiMP filtered", ("blimp_filtered",), pipeline_task="blimp", fast_folder="blimp_fast", column="BLiMP")
)
SUITES.register("blimp_supplement")(
    PairSuite(
        "BLiMP supplement",
        ("blimp_supplement", "supplement_filtered"),
        pipeline_task="blimp",
        fast_folder="supplement_fast",
        column="supplement",
    )
)
SUITES.register("ewok_filtered")(
    PairSuite("EWoK filtered", ("ewok_filtered",), True, pipeline_task="ewok", fast_folder="ewok_fast", column="EWoK")
)
SUITES.register("minimal_pairs")(PairSuite("minimal pairs", ("minimal_pairs",)))
SUITES.register("entity_tracking_filtered")(
    EntityTracking("entity tracking filtered", True, pipeline_task="entity_tracking", column="entity tracking")
)
SUITES.register("entity_tracking")(EntityTracking("entity tracking", False))
SUITES.register("comps")(Comps())
SUITES.register("global_piqa_parallel")(GlobalPiqa("Global PIQA parallel", "global_piqa_parallel", 0.25))
SUITES.register("global_piqa_nonparallel")(GlobalPiqa("Global PIQA nonparallel", "global_piqa_nonparallel", 0.5))
SUITES.register("wug_adj")(Wug("wug adjectives", ("wug_adj_nominalization", "wug_adj"), "wug_adj"))
SUITES.register("wug_past")(Wug("wug past tense", ("wug_past_tense", "wug_past"), "wug_past"))
SUITES.register("reading")(Reading())
SUITES.register("glue")(Glue())
SUITES.register("aoa")(WordSurprisals())
SUITES.register("held_out")(HeldOut())


SuiteName = Annotated[str, NameIn(SUITES)]
"""The name of a registered suite."""


def folders_of(suites: Sequence[str], data: Path | Mapping[str, Path]) -> dict[str, Path]:
    """The folder of each suite.

    Args:
        suites: at least one, each once.
        data: a folder by suite; or the folder of the only suite; or one with a subfolder for each suite.

    Raises:
        UserError: if a suite has no folder, or data names a suite that is not measured.
    """
    if isinstance(data, Mapping):
        for name in data:
            if name not in suites:
                raise UserError(f"data names {name}, but the suites are {', '.join(suites)}; add it to --suite")
        for name in suites:
            if name not in data:
                raise UserError(f"data has no folder for {name}; give it as --data.{name} DIR")
        return {name: data[name] for name in suites}
    if not data.is_dir():
        raise UserError(f"data {data} is not a folder; give the one that holds what {', '.join(suites)} needs")
    below = {
        name: [data / folder for folder in SUITES[name].all_folders if (data / folder).is_dir()] for name in suites
    }
    if len(suites) == 1:
        # The folder itself comes first: a folder of pairs may lie beside one that is named like a suite.
        (name,) = suites
        is_its_own = bool(SUITES[name].found_in(data)) or not below[name]
        return {name: data if is_its_own else below[name][0]}
    for name in suites:
        if not below[name]:
            raise UserError(
                f"data {data} has no folder {' or '.join(SUITES[name].all_folders)}, which {name} needs; with several "
                f"suites give a folder with one for each, or each by itself as --data.{name} DIR"
            )
    return {name: below[name][0] for name in suites}
