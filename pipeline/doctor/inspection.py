"""Every clip looked at: headers in threads, or all of them decoded through Ray."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.decode.inspect import ClipInspection, inspect_clip, unreadable
from pipeline.errors import ClipError
from pipeline.parallel.work import ClipWork, Cluster, ShardTask
from pipeline.schema import SPLITS, LocatedClip

OnProgress = Callable[[int, int, int], None]  # clips done, clips in all, those with a problem

# A shard is what is told of at once, and what a deadly clip makes Ray begin again.
_CLIPS_PER_SHARD = 8
# More do not read faster, and the system lets no process have as many as it asks for.
_MAX_THREADS = 32


def inspect_clips(
    clips: Sequence[LocatedClip], *, deep: bool, workers: int, on_progress: OnProgress
) -> dict[Path, ClipInspection]:
    """Each clip's inspection by its path; every clip has one.

    Raises MeldError where workers died in a way that no clip explains.
    """
    found: dict[Path, ClipInspection] = {}
    odd = 0
    run = _decode_all if deep else _read_headers
    for inspection in run(clips, workers):
        if inspection.path is not None:
            found[inspection.path] = inspection
        odd += bool(inspection.problems)
        on_progress(len(found), len(clips), odd)
    return found


def _read_headers(clips: Sequence[LocatedClip], workers: int) -> Iterator[ClipInspection]:
    """FFmpeg leaves Python's lock while it reads, so threads do; Ray takes longer to start than
    they take for thousands of clips."""
    with ThreadPoolExecutor(max_workers=min(workers, _MAX_THREADS)) as pool:
        futures = [pool.submit(inspect_clip, clip, deep=False) for clip in clips]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C: at once, not after the last
            raise


def _decode_all(clips: Sequence[LocatedClip], workers: int) -> Iterator[ClipInspection]:
    # Here: Ray takes seconds to import, which headers alone need not wait for.
    from pipeline.parallel.engine import work_on_shards

    # Clips travel with their key alone: no worker needs the text.
    bare = [replace(clip, utterance=replace(clip.utterance, text="", context="")) for clip in clips]
    shards = [
        tuple(bare[first : first + _CLIPS_PER_SHARD])
        for first in range(0, len(bare), _CLIPS_PER_SHARD)
    ]
    # The split counts for nothing here: clips of all splits are one work.
    tasks = [
        ShardTask(split=SPLITS[0], index=index, clips=shard) for index, shard in enumerate(shards)
    ]
    work = ClipWork(do=partial(inspect_clip, deep=True), give_up=_killed_worker, what="decoding it")
    for shard in work_on_shards(tasks, work, Cluster(workers=workers)) if tasks else ():
        yield from shard.clips


def _killed_worker(clip: LocatedClip, message: str) -> ClipInspection:
    return unreadable(clip, ClipError("killed_worker", message), deep=True)
