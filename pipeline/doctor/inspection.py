"""Inspects every clip: headers in threads, or with full decoding through Ray."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.decode.inspect import (
    MAX_SECONDS_DEEP,
    ClipInspection,
    Problem,
    Stream,
    inspect_clip,
)
from pipeline.parallel.work import ClipWork, Cluster, ShardTask
from pipeline.schema import MEDIA, SPLITS, LocatedClip, Modality

OnProgress = Callable[[int, int, int], None]  # clips done, clips in all, those with a problem

# A shard is reported at once, and is processed again if a clip of it kills its worker.
_CLIPS_PER_SHARD = 8
# More do not read faster, and the system lets no process have as many as it asks for.
_MAX_THREADS = 32
# Decoding looks at its clock only between packets: a clip that takes so long hears no clock.
_MAX_SECONDS = 1.25 * MAX_SECONDS_DEEP


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
    bare = [
        replace(clip, utterance=replace(clip.utterance, text="", context="", dialogue=()))
        for clip in clips
    ]
    shards = [
        tuple(bare[first : first + _CLIPS_PER_SHARD])
        for first in range(0, len(bare), _CLIPS_PER_SHARD)
    ]
    # The split counts for nothing here: clips of all splits are one work.
    tasks = [
        ShardTask(split=SPLITS[0], index=index, clips=shard) for index, shard in enumerate(shards)
    ]
    work = ClipWork(
        modalities=MEDIA,
        do=partial(inspect_clip, deep=True),
        give_up=_killed_worker,
        join=_join,
        what="decoding",
        max_seconds=_MAX_SECONDS,
    )
    for shard in work_on_shards(tasks, work, Cluster(workers=workers)) if tasks else ():
        yield from shard.clips


def _killed_worker(clip: LocatedClip, modality: Modality, message: str) -> ClipInspection:
    stream: Stream = "audio" if modality == "audio" else "video"
    problem = Problem(stream=stream, code="killed_worker", message=message)
    return ClipInspection(key=clip.utterance.key, path=clip.path, deep=True, problems=(problem,))


def _join(parts: Sequence[ClipInspection]) -> ClipInspection:
    """Of one clip, each of which looked at another stream; what concerns the file is told once."""
    problems = dict.fromkeys(problem for part in parts for problem in part.problems)
    return replace(
        parts[0],
        picture=next((part.picture for part in parts if part.picture is not None), None),
        sound=next((part.sound for part in parts if part.sound is not None), None),
        bad_packets=sum(part.bad_packets for part in parts),
        problems=tuple(problems),
    )
