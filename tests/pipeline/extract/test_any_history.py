"""A cache against a dictionary: whatever happened to clips, labels and runs, and in whatever order.

Hypothesis draws histories of extractions, kills, changed clips and corrected labels, and shortens
one that fails; what repeats it is printed then.
"""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="make installs it")
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.cache.format import read_cache, verify
from pipeline.errors import InputError, RecipeMismatch
from pipeline.parallel import engine
from pipeline.parallel.work import ShardFeatures
from pipeline.schema import ClipKey, LocatedClip, Utterance
from tests.failing_disk import Disk, Killed, failing
from tests.pipeline.extract.test_changed_clips import ROWS, Corpus, encode, encode_each

# It starts no process, but many histories take too long while you write.
pytestmark = pytest.mark.heavy

LABELS = ("joy,positive", "anger,negative", "neutral,neutral", ",")
ROW = st.integers(0, ROWS - 1)

# Of each row: its clip's bytes (None: there is none), its labels, its text.
Rows = dict[int, tuple[bytes | None, str, str]]


class History(RuleBasedStateMachine):
    """there: what the corpus holds now; kept: what the cache is to hold, None where there is none.
    All that is left of a killed run is that the cache may hold either."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(engine, "encode_shards", encode_each)
        self.patch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here
        self.root = Path(self.folder.name)
        self.corpus = Corpus(self.root)
        self.there: Rows = {
            row: (self.corpus.clip("dev", row).read_bytes(), LABELS[0], f"line {row}")
            for row in range(ROWS)
        }
        self.kept: Rows | None = None
        self.number = 0
        self.clip_of: dict[bytes, bytes | None] = {b"": None}  # by its features
        for clip, *_ in self.there.values():
            self._remember(clip)

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    # ------------------------------------------------------------------------- the corpus

    @rule(row=ROW)
    def another_clip_comes(self, row: int) -> None:
        self.number += 1
        content = f"clip {self.number}".encode()
        path = self.corpus.clip("dev", row)
        path.write_bytes(content)
        os.utime(path, ns=(self.number * 10**9,) * 2)  # a clock as coarse as some disks have
        self._set(row, clip=content)

    @rule(row=ROW)
    def a_clip_goes(self, row: int) -> None:
        self.corpus.clip("dev", row).unlink(missing_ok=True)
        self._set(row, clip=None)

    @precondition(lambda self: self.kept is not None)
    @rule(row=ROW)
    def the_old_clip_comes_back(self, row: int) -> None:
        assert self.kept is not None
        content = self.kept[row][0]
        if content is not None:
            self.corpus.clip("dev", row).write_bytes(content)
            self._set(row, clip=content)

    @rule(row=ROW)
    def a_clip_is_touched(self, row: int) -> None:
        self.number += 1
        path = self.corpus.clip("dev", row)
        if path.exists():
            os.utime(path, ns=(self.number * 10**9,) * 2)

    @rule(row=ROW, labels=st.sampled_from(LABELS))
    def a_label_is_corrected(self, row: int, labels: str) -> None:
        clip, _, text = self.there[row]
        self.there[row] = clip, labels, text
        self._write_table()

    @rule(row=ROW)
    def what_is_said_is_corrected(self, row: int) -> None:
        """These are other rows, which only an overwrite takes."""
        self.number += 1
        clip, labels, _ = self.there[row]
        self.there[row] = clip, labels, f"line {row} said {self.number}"
        self._write_table()

    def _set(self, row: int, *, clip: bytes | None) -> None:
        _, labels, text = self.there[row]
        self.there[row] = clip, labels, text
        self._remember(clip)

    def _remember(self, clip: bytes | None) -> None:
        if clip is not None:
            self.clip_of[features_of(0, clip, self.root)] = clip

    def _write_table(self) -> None:
        header = "Dialogue_ID,Utterance_ID,Utterance,Speaker,Emotion,Sentiment"
        lines = [f"0,{row},{text},Joey,{labels}" for row, (_, labels, text) in self.there.items()]
        (self.corpus.data / "dev_sent_emo.csv").write_text("\n".join([header, *lines]) + "\n")

    # --------------------------------------------------------------------------- the runs

    @rule(overwrite=st.booleans())
    def a_run_ends(self, overwrite: bool) -> None:
        if self._extract(overwrite):
            self.kept = dict(self.there)

    @rule(overwrite=st.booleans(), shards=st.integers(0, 2))
    def a_run_is_interrupted(self, overwrite: bool, shards: int) -> None:
        def interrupted(*arguments: object) -> Iterator[ShardFeatures]:
            for number, shard in enumerate(encode_each(*arguments)):  # type: ignore[arg-type]
                if number == shards:
                    raise KeyboardInterrupt
                yield shard

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "encode_shards", interrupted)
            self._try(overwrite, KeyboardInterrupt)

    @rule(overwrite=st.booleans(), at=st.integers(1, 60))
    def a_run_is_killed(self, overwrite: bool, at: int) -> None:
        with failing(Disk(at=at, how="killed", below=self.root)):
            self._try(overwrite, Killed)

    def _try(self, overwrite: bool, end: type[BaseException]) -> None:
        """A run that may end before its end comes."""
        try:
            is_done = self._extract(overwrite)
        except end:
            found = self._read()
            assert found in (self.kept, self.there)
            self.kept = found
        else:
            if is_done:
                self.kept = dict(self.there)

    def _extract(self, overwrite: bool) -> bool:
        """False where it was refused, as it should be."""
        try:
            self.corpus.extract("dev", overwrite=overwrite)
        except RecipeMismatch:
            assert not overwrite
            return False
        except InputError:  # a disk that is not mounted looks like this
            assert not any(clip for clip, *_ in self.there.values())
            return False
        return True

    # -------------------------------------------------------------------------- accidents

    @rule(seed=st.integers(0, 1000))
    def a_shard_is_damaged(self, seed: int) -> None:
        rng = random.Random(seed)
        shards = sorted(self.corpus.features.glob(".work/dev/shard-*.h5"))
        if shards:
            path = rng.choice(shards)
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)

    @rule()
    def temporary_files_are_left(self) -> None:
        work = self.corpus.features / ".work" / "dev"
        if work.is_dir():
            (work / ".shard-00000.h5.77-abc.tmp").write_bytes(b"half")
            (self.corpus.features / ".dev.h5.77-abc.tmp").write_bytes(b"half")

    # ------------------------------------------------------------------- what always holds

    @initialize()
    def nothing_is_there(self) -> None:
        assert self._read() is None

    @invariant()
    def the_cache_holds_what_the_last_run_saw(self) -> None:
        assert self._read() == self.kept

    def _read(self) -> Rows | None:
        path = self.corpus.features / "dev.h5"
        if not path.exists():
            return None
        assert verify(path) == []
        cache = read_cache(path)
        found: Rows = {}
        for row in range(ROWS):
            labels = f"{cache.emotion[row]},{cache.sentiment[row]}"
            features = cache.raw["audio"][row].tobytes() if cache.present["audio"][row] else b""
            found[row] = self.clip_of[features], labels, cache.text[row]
        return found


def features_of(row: int, content: bytes, folder: Path) -> bytes:
    path = folder / "a.mp4"
    path.write_bytes(content)
    utterance = Utterance(key=ClipKey("dev", 0, row), text="")
    return encode(LocatedClip(utterance=utterance, path=path)).raw["audio"].tobytes()


@pytest.mark.parametrize(
    ("histories", "steps", "same"),
    [
        pytest.param(12, 12, True, id="some"),  # a new one must not stop another change
        pytest.param(100, 30, False, id="many", marks=pytest.mark.slow),
    ],
)
def test_whatever_happened_a_cache_holds_what_the_last_run_saw(
    histories: int, steps: int, same: bool
) -> None:
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            derandomize=same,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
