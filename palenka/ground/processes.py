"""The processes of a launch: they share one output, so each must know of the others."""

import os

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from palenka.ground.errors import UserError


def open_processes() -> PartialState:
    """This process among those of its launch, and its device.

    Raises:
        UserError: as `require_all_processes`.
    """
    # As Accelerator does; PartialState by itself overlooks the flag, and each process would believe to be alone.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    require_all_processes(state.num_processes)
    return state


def require_all_processes(num_processes: int) -> None:
    """Refuse to be one of several processes that do not see each other: each would write the same output.

    accelerate starts such processes when it is told `--multi_gpu` on a machine without a GPU.

    Args:
        num_processes: how many accelerate sees.

    Raises:
        UserError: if the launcher started another number.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched != num_processes:
        raise UserError(
            f"{launched} processes were launched, but this one sees {num_processes}; without GPUs, "
            "set ACCELERATE_USE_CPU=true before accelerate launch"
        )
