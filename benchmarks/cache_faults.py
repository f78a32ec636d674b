"""Faults of a cache: captures killed at random moments, flipped bits, and a full disk.

    python benchmarks/cache_faults.py --corpus CORPUS --teacher TEACHER --folder FOLDER

Kills a capture with SIGKILL at 20 random moments and compares every final byte with an uninterrupted capture; flips 200
random bits, one at a time, and runs `palenka cache verify --all` and a training run on each; and captures to a small
tmpfs until it is full (as root), then with more room. The teacher should be small, since only the cache is tested.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from palenka.cache_teachers.__main__ import main as cache_command
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.ground.errors import UserError

KILLS, FLIPS = 20, 200
FRACTION = 0.002
WINDOWS = {"length": 16, "views": 2}
SETTINGS = {
    "windows": WINDOWS,
    "fraction": FRACTION,
    "micro_batch": 32,
    "logits": {"k": 32},
    "hidden": {"positions": 4, "sample_windows": 16},
}


def contents(directory: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def settings_for(given: argparse.Namespace, output: Path) -> CaptureSettings:
    """The capture of the benchmark to some place."""
    paths = {"teacher": given.teacher, "corpus": given.corpus, "output": output}
    return CaptureSettings.model_validate(SETTINGS | paths)


def command(settings: CaptureSettings, folder: Path) -> list[str]:
    """The same capture as a process."""
    file = folder / f"{settings.output.name}.yaml"
    settings.write_yaml(file)
    return [sys.executable, "-m", "palenka.cache_teachers", "run", "--config", str(file)]


def kill_at_random_moments(given: argparse.Namespace, draw: random.Random) -> str:
    """Each kill within the seconds of an uninterrupted capture, on a fresh output."""
    undisturbed = settings_for(given, given.folder / "undisturbed")
    started = time.perf_counter()
    subprocess.run(command(undisturbed, given.folder), check=True, capture_output=True)
    seconds = time.perf_counter() - started
    expected = contents(undisturbed.output)
    moments, begun = [], 0
    for number in range(KILLS):
        settings = settings_for(given, given.folder / f"killed-{number}")
        moments.append(seconds * (0.25 + 0.75 * draw.random()))
        with subprocess.Popen(
            command(settings, given.folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(moments[-1])
            process.send_signal(signal.SIGKILL)
        begun += settings.output.exists()
        capture(settings)
        if contents(settings.output) != expected:
            return f"kill {number} after {moments[-1]:.2f} s: other bytes in {settings.output}"
        shutil.rmtree(settings.output)
    return (
        f"{KILLS} kills between {min(moments):.2f} and {max(moments):.2f} s of {seconds:.2f} s, {begun} of them with a "
        f"cache begun: always the same {len(expected)} files, {sum(map(len, expected.values())):,} bytes"
    )


def read_everything(directory: Path) -> None:
    """As a training run does."""
    cache = TeacherCache(directory, read_manifest(directory).hidden_keys())
    cache.require_shards(cache.manifest.shards(FRACTION))
    for shard in cache.manifest.shards(FRACTION):
        cache.codes(shard.view, np.arange(shard.start, shard.stop))


def flip_bits(given: argparse.Namespace, draw: random.Random) -> str:
    """Each bit flipped alone, and put back."""
    settings = settings_for(given, given.folder / "undisturbed")
    config = command(settings, given.folder)[-1]
    files = sorted(path for path in settings.output.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    named = refused = 0
    by_kind: dict[str, int] = {}
    for number in range(FLIPS):
        # Half of them anywhere in the bytes, half in any file: small ones too.
        path = draw.choices(files, sizes)[0] if number % 2 else draw.choice(files)
        whole = path.read_bytes()
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        name = str(path.relative_to(settings.output))
        by_kind[name.split("/")[0]] = by_kind.get(name.split("/")[0], 0) + 1
        named += _verify_names(config, name, given.folder)
        try:
            read_everything(settings.output)
        except UserError:
            refused += 1
        path.write_bytes(whole)
    return f"{FLIPS} flips ({json.dumps(by_kind)}): {named} named by verify --all, {refused} refused by a reader"


def _verify_names(config: str, name: str, folder: Path) -> bool:
    """Whether `verify --all` ends with status 2 and a sentence that names the file."""
    said = folder / "verify.txt"
    keep = os.dup(2)
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
        sys.stderr.flush()
        status = cache_command(["verify", "--config", config, "--all", "--sample", "1", "--json"])
        sys.stderr.flush()
        os.dup2(keep, 2)
    os.close(keep)
    return status == 2 and name in said.read_text()


def fill_the_disk(given: argparse.Namespace) -> str:
    """A tmpfs that is too small at first."""
    mount = given.folder / "small"
    mount.mkdir(exist_ok=True)
    expected = contents(given.folder / "undisturbed")
    room = int(sum(map(len, expected.values())) * 0.6)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(mount)], check=True)
    try:
        settings = settings_for(given, mount / "cache")
        full = subprocess.run(command(settings, given.folder), capture_output=True, text=True, check=False)
        sentence = [line for line in full.stderr.splitlines() if line.startswith("error:")]
        subprocess.run(["mount", "-o", f"remount,size={4 * room}", str(mount)], check=True)
        again = subprocess.run(command(settings, given.folder), capture_output=True, text=True, check=False)
        same = contents(settings.output) == expected
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    return f"status {full.returncode}, {sentence}; with more room status {again.returncode}, the same bytes: {same}"


def main() -> None:
    """Run the three trials and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "teacher", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    draw = random.Random(given.seed)
    print("killed:", kill_at_random_moments(given, draw), flush=True)
    print("flipped:", flip_bits(given, draw), flush=True)
    print("full disk:", fill_the_disk(given), flush=True)


if __name__ == "__main__":
    main()
