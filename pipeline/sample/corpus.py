"""Generates a corpus in MELD's format: real H.264 and AAC, with own words, voices and faces.

Each emotion is shown by the words, the voice or the face, mostly by only one of them. So fusion
has something to gain, and the answer is known (`carriers.csv`).
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av

from pipeline.corpus.layout import MEDIA_FOLDERS, annotations_name, clip_stem
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.sample.clip import write_clip
from pipeline.sample.defects import (
    MIN_DIALOGUES,
    PlantedDefect,
    curl,
    plan_defects,
    write_defect,
)
from pipeline.sample.plan import REVISION, ClipPlan, plan_corpus
from pipeline.sample.tables import annotations_csv, carriers_csv
from pipeline.schema import SPLITS, ClipKey, Split
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED
from pipeline.system.processes import spawn_pool
from pipeline.system.resources import num_cores

SETTINGS_FILE = "sample.json"
CARRIERS_FILE = "carriers.csv"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to generate. The same seed, dialogues and corrupt give the same bytes.

    dialogues: 3 to 8 utterances each; 78 make some 420 rows
    corrupt:   plant the kinds of defects that MELD has
    workers:   number of processes; None for one per core
    Raises UsageError.
    """

    out: Path
    dialogues: int = 78
    seed: int = 0
    corrupt: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        least = MIN_DIALOGUES if self.corrupt else len(SPLITS)
        if self.dialogues < least:
            raise UsageError(
                f"a {'corrupt ' if self.corrupt else ''}sample needs at least {least} dialogues, "
                f"not {self.dialogues}"
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, not {self.workers}")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the corpus, as they are saved beside it."""
        return {
            "made_by": "meld sample",
            "revision": REVISION,
            "dialogues": self.dialogues,
            "seed": self.seed,
            "corrupt": self.corrupt,
        }


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    root: Path
    rows: dict[Split, int]
    defects: tuple[PlantedDefect, ...]

    def to_dict(self) -> dict[str, Any]:
        planted = [
            {"clip": str(each.key), "kind": each.kind, "what": each.what} for each in self.defects
        ]
        return {"root": str(self.root), "rows": self.rows, "defects": planted}


def make_sample(
    config: SampleConfig, progress: Progress = lambda done, total: None
) -> SampleResult:
    """Generates the corpus under `config.out`.

    Raises InputError (the folder holds something else), StorageError (it cannot be written),
    UsageError (too few rows for every defect) or MeldError (a worker process died).
    """
    plans = plan_corpus(dialogues=config.dialogues, seed=config.seed)
    defects = plan_defects(plans, seed=config.seed) if config.corrupt else ()
    try:
        _claim_folder(config)
        durations_s = _write_media_files(config, plans, defects, progress)
        _write_tables(config.out, plans, defects, durations_s)
        _write_settings(config, defects, complete=True)
    except OSError as error:
        raise StorageError(f"cannot write the sample to {config.out}: {error}") from error
    rows = {split: sum(plan.key.split == split for plan in plans) for split in SPLITS}
    return SampleResult(root=config.out, rows=rows, defects=defects)


def media_path(root: Path, key: ClipKey) -> Path:
    return root / MEDIA_FOLDERS[key.split] / f"{clip_stem(key)}.mp4"


def _claim_folder(config: SampleConfig) -> None:
    """Marks the folder as a sample, or refuses one with other content, which is left unchanged."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        found = _found_settings(out)
        if found is None:
            raise InputError(
                f"{out} is not empty and was not written by meld sample; choose another folder"
            )
        differing = [
            f"it has {name} {found.get(name)}, not {value}"
            for name, value in config.settings.items()
            if found.get(name) != value
        ]
        if differing:
            raise InputError(
                f"{out} holds another sample ({'; '.join(differing)}); choose another folder"
            )
    for folder in MEDIA_FOLDERS.values():
        (out / folder).mkdir(parents=True, exist_ok=True)
    _write_settings(config, (), complete=False)


def _found_settings(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
        settings = found["settings"]
    except (FileNotFoundError, NotADirectoryError, *MALFORMED):
        return None
    ours = isinstance(settings, dict) and settings.get("made_by") == "meld sample"
    return settings if ours else None


def _write_media_files(
    config: SampleConfig,
    plans: Sequence[ClipPlan],
    defects: Sequence[PlantedDefect],
    progress: Progress,
) -> dict[ClipKey, float]:
    """Makes all clips; returns the duration in seconds that the row of each states."""
    kinds = {defect.key: defect.kind for defect in defects}
    make = partial(_make_file, config.out)
    durations_s: dict[ClipKey, float] = {}
    with spawn_pool(min(config.workers or num_cores(), len(plans))) as pool:
        futures = {pool.submit(make, plan, kinds.get(plan.key)): plan.key for plan in plans}
        for future in as_completed(futures):
            durations_s[futures[future]] = future.result()
            progress(len(durations_s), len(plans))
    return durations_s


def _make_file(root: Path, plan: ClipPlan, kind: str | None) -> float:
    """Makes one clip in a worker: in a separate folder, then moved, so that writing is atomic."""
    path = media_path(root, plan.key)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as folder:
            made = Path(folder) / path.name
            duration_s = write_defect(plan, made, kind) if kind else write_clip(plan, made)
            for part in Path(folder).iterdir():
                part.replace(path.with_name(part.name))
            if kind == "missing_file":
                path.unlink(missing_ok=True)
    except av.error.FFmpegError as error:
        # PyAV's exceptions cannot be sent between processes.
        kind_of = OSError if isinstance(error, OSError) else RuntimeError
        raise kind_of(f"{plan.key}: {error}") from None
    return duration_s


def _write_tables(
    root: Path,
    plans: Sequence[ClipPlan],
    defects: Sequence[PlantedDefect],
    durations_s: dict[ClipKey, float],
) -> None:
    curled = {defect.key for defect in defects if defect.kind == "curly_text"}
    texts = {plan.key: curl(plan.text) if plan.key in curled else plan.text for plan in plans}
    for split in SPLITS:
        rows = [plan for plan in plans if plan.key.split == split]
        table = annotations_csv(rows, texts, durations_s)
        write_whole(root / annotations_name(split), table.encode())
    write_whole(root / CARRIERS_FILE, carriers_csv(plans).encode())


def _write_settings(
    config: SampleConfig, defects: Sequence[PlantedDefect], *, complete: bool
) -> None:
    content = {
        "settings": config.settings,
        "complete": complete,
        "defects": [
            {**dataclasses.asdict(defect), "key": defect.key._asdict()} for defect in defects
        ],
    }
    text = json.dumps(content, indent=2) + "\n"
    write_whole(config.out / SETTINGS_FILE, text.encode())
