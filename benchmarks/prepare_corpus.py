"""Time and memory of preparing a corpus, each run a fresh process: the real text once, and several times over.

python benchmarks/prepare_corpus.py --runs 3 --copies 1 4
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REAL_TEXT = Path(__file__).parents[2] / "shared" / "data" / "babylm"


def measure(copies: int) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak resident memory (MB) of one run over so many copies of the text."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder, "text")
        for copy in range(copies):
            for path in REAL_TEXT.glob("*/*"):
                link = sources / str(copy) / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        command = [
            sys.executable,
            "-m",
            "palenka.data",
            "prepare",
            "--sources",
            str(sources),
            "--output",
            f"{folder}/corpus",
        ]
        started = time.perf_counter()
        quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        child = os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet)
        _, status, usage = os.wait4(child, 0)
        if status != 0:
            sys.exit("the run failed")
        return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    if not REAL_TEXT.is_dir():
        sys.exit(f"needs the BabyLM text in {REAL_TEXT}")
    megabytes = sum(path.stat().st_size for path in REAL_TEXT.glob("*/*")) / 1e6
    for copies in arguments.copies:
        seconds, processor, memory = zip(*(measure(copies) for _ in range(arguments.runs)), strict=True)
        spread = f" ± {statistics.stdev(seconds):.1f}" if len(seconds) > 1 else ""
        print(
            f"{copies * megabytes:.0f} MB: {statistics.mean(seconds):.1f}{spread} s, "
            f"{statistics.mean(processor):.1f} processor seconds, peak memory {max(memory):.0f} MB"
        )


if __name__ == "__main__":
    main()
