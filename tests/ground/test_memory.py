"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

_MEASURE = """
import resource, sys
from pathlib import Path
from palenka.ground.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
parts = [b"." * 2**24 for _ in range(8)]  # 128 MB
del parts
print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_buffers_stay_with_the_process() -> None:
    def resident(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _MEASURE, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert resident("kept") - resident("given back") > 100 * 2**20
