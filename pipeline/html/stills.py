"""One frame of a clip as a small JPEG, for people who want to see what a row is.

Decoded in a process of its own: a file that crashes the decoder costs its picture, not the report.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from pipeline.corpus.clips import locate_clips
from pipeline.recipe import TestClips
from pipeline.schema import SPLITS, ClipKey, LocatedClip, Utterance
from pipeline.system.processes import SpawnPool, spawn_pool

logger = logging.getLogger(__name__)

WIDTH = 288  # twice what the page shows, for dense screens
MAX_SECONDS = 60.0  # for one; a decoder that needs longer hangs


def read_stills(data: Path, keys: Sequence[ClipKey], test_clips: TestClips) -> dict[ClipKey, bytes]:
    """JPEG of the middle of each clip; a clip that is missing or does not decode has no key.

    Raises InputError where a folder of clips cannot be listed.
    """
    clips: list[LocatedClip] = []
    for split in SPLITS:
        wanted = [Utterance(key=key, text="") for key in keys if key.split == split]
        clips += locate_clips(data, split, wanted, test_clips) if wanted else []
    return {clip.utterance.key: still for clip, still in each_still(clips) if still is not None}


def read_still(clip: LocatedClip) -> bytes | None:
    """JPEG of the middle of a clip; None if no picture can be decoded."""
    # Here, so that a report without clips needs no decoder.
    from pipeline.decode.clip import decode_still
    from pipeline.decode.jpeg import encode_jpeg

    picture = None if clip.path is None else decode_still(clip.path, width=WIDTH)
    return None if picture is None else encode_jpeg(picture)


def each_still(
    clips: Iterable[LocatedClip], read: Callable[[LocatedClip], bytes | None] = read_still
) -> Generator[tuple[LocatedClip, bytes | None], None, None]:
    """One after another, lazily; None if no picture can be decoded.

    read: runs in the other process
    """
    pool: SpawnPool | None = None
    with ExitStack() as pools:
        for clip in clips:
            if pool is None:
                pool = pools.enter_context(spawn_pool(1))
            try:
                still = pool.submit(read, clip).result(timeout=MAX_SECONDS)
            except BrokenProcessPool:
                logger.warning("%s: decoding a frame of it killed the process", clip.path)
                pool, still = None, None
            except TimeoutError:
                logger.warning("%s: no frame of it within %.0f s", clip.path, MAX_SECONDS)
                pool.kill()  # it only reads; one that hangs would be waited for
                pool, still = None, None
            except KeyboardInterrupt:
                pool.kill()
                raise
            yield clip, still
