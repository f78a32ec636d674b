"""Capture: one teacher, or an ensemble, over every window of every view, shard by shard, into a cache.

`accelerate launch -m palenka.cache_teachers run --config FILE.yaml` (or `palenka cache run` on one device).
After any interruption the same command resumes: shards with valid commit records are kept.
"""

import glob
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import reduce

from palenka.cache_teachers.settings import CaptureSettings
from palenka.cache_teachers.shard_in_memory import ShardInMemory, encode_windows
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache_writer import CacheWriter, create_cache, is_begun
from palenka.data.signals.chunks import yield_to_training
from palenka.data.signals.manifest import CacheManifest, Shard, compressed_bytes, windows_per_shard
from palenka.data.signals.store import damage_of_shard, write_asked
from palenka.ground.errors import UserError, system_error
from palenka.ground.files import resolved
from palenka.ground.lock import sole_writer
from palenka.ground.processes import open_processes
from palenka.ground.progress import info, progress_bar
from palenka.ground.quantities import size

_GAPS_NAMED = 10
"""Maximum number of missing or damaged shards that are named."""
_UNWRITTEN = 3
"""Shards that may wait to be written: a disk that is slow for a while does not stop the teacher."""


def capture(settings: CaptureSettings) -> None:
    """Capture the missing shards of a cache; each process of a distributed launch captures its own.

    Memory: five shards (at most 64 MB each) beside the model. A resumed capture is byte-identical to an uninterrupted
    one, on a CPU with the same number of threads.

    Raises:
        UserError: if the teacher does not fit the corpus, the output holds another cache, or the disk is full.
    """
    state = open_processes(settings.device)
    corpus = Corpus.open(settings.corpus, settings.split)
    require_windows(settings, corpus)
    teacher = Teacher(settings, corpus, settings.windows, state.device)
    manifest = manifest_of(settings, corpus, teacher)
    try:
        with _sole_writer(settings) if state.is_main_process else nullcontext():
            if state.is_main_process:
                _begin(settings, teacher, manifest)
            state.wait_for_everyone()
            missing = _missing(settings, manifest, verbose=state.is_main_process)
            state.wait_for_everyone()
            writer = CacheWriter(settings.output, manifest)
            teacher.use(writer.measured)
            if state.is_main_process and missing:
                _require_space(settings, corpus, teacher, manifest, missing)
            mine = missing[state.process_index :: state.num_processes]
            capture_shards(mine, corpus, teacher, writer, settings.micro_batch, verbose=state.is_main_process)
            state.wait_for_everyone()
    except OSError as error:
        raise system_error(f"cannot capture {settings.output}", error) from error


def free_bytes(output: Path) -> int:
    """Free bytes of the disk of an output, which need not exist yet."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _require_space(
    settings: CaptureSettings, corpus: Corpus, teacher: Teacher, manifest: CacheManifest, missing: Sequence[Shard]
) -> None:
    """Refuse a capture that would not fit on its disk, estimated from the compressed bytes of its first windows.

    Raises:
        UserError: with both sizes.
    """
    first = missing[0]
    indices = manifest.windows.slots(len(corpus.tokens), first.view)[first.start : first.stop][
        : teacher.windows_at_once(settings.micro_batch)
    ]
    tokens = corpus.gather(manifest.windows, first.view, indices)
    said = encode_windows(teacher, manifest, tokens, first.view, indices)
    arrays = {name: part.cpu().numpy() for name, part in said.arrays.items()}
    sizes = compressed_bytes({name: array.row for name, array in manifest.arrays().items()}, arrays)
    needed = sum(sizes.values()) / len(indices) * sum(shard.stop - shard.start for shard in missing)
    if needed > (free := free_bytes(settings.output)):
        raise UserError(
            f"cache {settings.output} needs about {size(needed)}, but its disk has {size(free)} free; make room, "
            "choose another output, or capture a fraction"
        )


def _sole_writer(settings: CaptureSettings) -> AbstractContextManager[None]:
    """The lock of the whole cache, or of one part of it."""
    return _whole_cache(settings.output) if settings.parts == 1 else _part_of_cache(settings)


@contextmanager
def _whole_cache(output: Path) -> Iterator[None]:
    """The lock of a whole cache; refused while a part of it is being written."""
    with sole_writer(output):
        _refuse_other_parts(output, parts=1)
        yield


@contextmanager
def _part_of_cache(settings: CaptureSettings) -> Iterator[None]:
    """The lock of a part; refused while a capture with another number of parts runs."""
    output = resolved(settings.output)
    part = output.with_name(f"{output.name}.part-{settings.part}-of-{settings.parts}")
    with ExitStack() as held:
        # One at a time: of two that begin at once, the second sees the first.
        with sole_writer(output, wait=True):
            _refuse_other_parts(output, settings.parts)
            held.enter_context(sole_writer(part))
        yield


def _refuse_other_parts(output: Path, parts: int) -> None:
    """Refuse a cache that is being written with another number of parts: both would write the same shards.

    Raises:
        UserError: with the other writer.
    """
    output = resolved(output)
    for path in output.parent.glob(f"{glob.escape(output.name)}.part-*.lock*"):
        found = re.fullmatch(r"(.*-of-(\d+))\.lock(\.holder)?", path.name)
        if found and int(found[2]) != parts:
            with sole_writer(output.with_name(found[1])):
                pass


def _begin(settings: CaptureSettings, teacher: Teacher, manifest: CacheManifest) -> None:
    """Create the cache if it does not exist; the parts of a capture wait here for the first one."""
    alone = settings.parts == 1
    with nullcontext() if alone else sole_writer(settings.output, wait=True):
        if not is_begun(settings.output, manifest):
            teacher.measure(settings.micro_batch)
            create_cache(settings.output, manifest, teacher.measured.to(torch.device("cpu")))
        write_asked(settings.output, settings.fraction)


def _missing(settings: CaptureSettings, manifest: CacheManifest, verbose: bool) -> list[Shard]:
    """The missing or damaged shards of this part, the same on every process; prints a line about them.

    Each process checks its share of the part's shards, so each shard is read once.
    """
    state = open_processes()
    # Assigned by absolute index: parts that start at different times do not overlap.
    shards = list(manifest.shards(settings.fraction))[settings.part :: settings.parts]
    is_missing = torch.zeros(len(shards), dtype=torch.int32, device=state.device)
    for place in range(state.process_index, len(shards), state.num_processes):
        is_missing[place] = damage_of_shard(settings.output, shards[place]) is not None
    missing = [shards[place] for place in reduce(is_missing, "sum").nonzero().flatten().tolist()]
    if verbose:
        part = f", part {settings.part} of {settings.parts}" if settings.parts > 1 else ""
        info(f"{settings.output}{part}: {len(missing)} of {len(shards)} shards to capture")
        gaps = missing if len(missing) < len(shards) else []
        for shard in gaps[:_GAPS_NAMED]:
            info(f"  {damage_of_shard(settings.output, shard)}")
        if len(gaps) > _GAPS_NAMED:
            info(f"  and {len(gaps) - _GAPS_NAMED} more")
    return missing


def manifest_of(settings: CaptureSettings, corpus: Corpus, teacher: Teacher) -> CacheManifest:
    """The manifest of the cache that settings describe."""
    manifest = CacheManifest(
        corpus=corpus.fingerprint,
        tokenizer=corpus.tokenizer_hash,
        num_tokens=len(corpus.tokens),
        vocabulary_size=corpus.vocabulary_size,
        windows=settings.windows,
        teachers=teacher.identities,
        logits=settings.logits,
        hidden=teacher.hidden,
        hidden_layers=teacher.hidden_layers,
        windows_per_shard=1,
    )
    bytes_of_window = sum(array.bytes_per_window for array in manifest.arrays().values())
    return manifest.model_copy(update={"windows_per_shard": windows_per_shard(bytes_of_window)})


def require_windows(settings: CaptureSettings, corpus: Corpus) -> None:
    """Refuse settings that no teacher could satisfy on this corpus."""
    rule = settings.windows
    for view in range(rule.views):
        if rule.count(len(corpus.tokens), view) == 0:
            raise UserError(
                f"windows.length is {rule.length}, but the {corpus.split} split of {corpus.directory} has only "
                f"{len(corpus.tokens)} tokens: view {view} has no window; shorten the windows or add text"
            )


def capture_shards(
    shards: Sequence[Shard],
    corpus: Corpus,
    teacher: Teacher,
    writer: CacheWriter,
    micro_batch: int,
    verbose: bool = True,
) -> None:
    """Capture some shards; they are compressed and written while the teacher reads the next ones.

    Nothing waits for the device, nor for the disk while no more than `_UNWRITTEN` shards are on their way to it. The
    thread that writes a shard waits until the device has copied it, and looks whether all values are finite.

    Raises:
        UserError: if a teacher's outputs are not finite.
    """
    rule, micro_batch = writer.manifest.windows, teacher.windows_at_once(micro_batch)
    total = sum(shard.stop - shard.start for shard in shards) * rule.length

    def write(shard: Shard, filled: ShardInMemory) -> None:
        writer.write(shard, *filled.finish())

    with (
        progress_bar("capture", total, verbose=verbose and bool(shards)) as advance,
        ThreadPoolExecutor(1, initializer=yield_to_training) as background,
    ):
        unwritten: deque[Future[None]] = deque()
        for shard in shards:
            indices = rule.slots(len(corpus.tokens), shard.view)[shard.start : shard.stop]
            filled = ShardInMemory(teacher, writer.manifest)
            for start in range(0, len(indices), micro_batch):
                some = indices[start : start + micro_batch]
                filled.add(corpus.gather(rule, shard.view, some), shard.view, some)
                advance(len(some) * rule.length)
            unwritten.append(background.submit(write, shard, filled))
            while len(unwritten) > _UNWRITTEN or (unwritten and unwritten[0].done()):
                unwritten.popleft().result()
        for last in unwritten:
            last.result()
