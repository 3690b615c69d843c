"""Compares a split's files with its rows and with the published facts, and lists the findings."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.annotations import UnreadTimes
from pipeline.corpus.layout import MEDIA_FOLDERS, annotations_name
from pipeline.corpus.meld_facts import FRAME_RATE, NUM_CORRECTED_CUTS, PUBLISHED, PublishedSplit
from pipeline.decode.inspect import ClipInspection, Problem
from pipeline.doctor.annotations import (
    FEW_PICTURES,
    OVERLONG_S,
    AnnotationFacts,
    differences,
    window_s,
)
from pipeline.doctor.files import SplitFiles
from pipeline.doctor.findings import Finding
from pipeline.recipe import TestClips
from pipeline.schema import LocatedClip, Split, Utterance

# A clip and its row may differ by so much before it is said that they do.
LENGTH_SLACK_S = 0.5
# Where pictures begin and end is rounded, in a clip and in its row.
_ROUNDED_PICTURES = 2

_PUBLISHED_WHY = "published: no copy of the archive has it"
# Problems of one stream to kinds of finding; of the whole file, all others are "unreadable".
_STREAM_KINDS = {
    ("audio", "bad_packets"): "damaged",
    ("video", "bad_packets"): "damaged",
    ("audio", "truncated"): "cut_off",
    ("video", "truncated"): "cut_off",
    (None, "truncated"): "cut_off",
    ("audio", "killed_worker"): "killed_worker",
    ("video", "killed_worker"): "killed_worker",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known about one split before it is judged."""

    split: Split
    facts: AnnotationFacts
    files: SplitFiles
    inspections: Mapping[Path, ClipInspection]
    test_clips: TestClips
    unread_times: tuple[UnreadTimes, ...] = ()

    @property
    def published(self) -> PublishedSplit | None:
        """What is published about these rows, if they are MELD's."""
        return PUBLISHED[self.split] if self.facts.meld == self.split else None

    def of(self, clip: LocatedClip) -> ClipInspection | None:
        return self.inspections.get(clip.path) if clip.path is not None else None


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings of a split, in the order of its CSV."""
    findings = list(_judge_annotations(evidence))
    if evidence.files.is_empty:
        return (*findings, _no_clips(evidence))
    findings += _judge_corrected_cuts(evidence)
    for clip in evidence.files.clips:
        findings += _judge_clip(clip, evidence)
    findings += _judge_lengths(evidence)
    findings += _judge_unannotated(evidence)
    return tuple(findings)


def without_annotations(split: Split, clips: Iterable[Path]) -> Finding:
    paths = list(clips)
    message = f"{len(paths):,} clips and no {annotations_name(split)}: none of them is read"
    folder = paths[0].parent
    return Finding(
        split=split, kind="no_annotations", message=message, path=folder, count=len(paths)
    )


# ------------------------------------------------------------------------------------ the split


def _judge_annotations(evidence: Evidence) -> Iterator[Finding]:
    split, meld = evidence.split, evidence.facts.meld
    if meld is not None and meld != split:
        message = f"the {split} CSV has the rows of MELD's {meld} split"
        yield Finding(split=split, kind="other_split", message=message)
    for difference in differences(evidence.facts):
        yield Finding(split=split, kind="annotations_differ", message=difference)
    if evidence.unread_times:
        yield Finding(
            split=split,
            kind="unread_times",
            message="; ".join(map(str, evidence.unread_times)),
            count=len({row for times in evidence.unread_times for row in times.rows}),
        )


def _no_clips(evidence: Evidence) -> Finding:
    folders = evidence.files.folders
    where = (
        f"{folders[0]} is empty"
        if folders
        else f"no folder {MEDIA_FOLDERS[evidence.split]} or {evidence.split}, for clips such as "
        "dia0_utt0.mp4"
    )
    message = f"{where}; {evidence.facts.rows:,} rows have their text alone"
    return Finding(
        split=evidence.split, kind="no_clips", message=message, count=evidence.facts.rows
    )


def _judge_corrected_cuts(evidence: Evidence) -> Iterator[Finding]:
    """Only how many there are is published, not which."""
    found = len(evidence.files.corrected)
    if evidence.split != "test" or evidence.published is None or found >= NUM_CORRECTED_CUTS:
        return
    lacking = NUM_CORRECTED_CUTS - found
    message = (
        f"{found} of {NUM_CORRECTED_CUTS} corrected cuts (final_videos_test*) are there; "
        f"for the rest the mis-cut clips would be read"
    )
    if evidence.test_clips == "legacy":
        message = f"{found} of {NUM_CORRECTED_CUTS} corrected cuts are there; legacy reads none"
    yield Finding(
        split="test",
        kind="corrected_cuts",
        message=message,
        known_why="not read with --test-clips legacy" if evidence.test_clips == "legacy" else "",
        count=lacking,
    )


# ------------------------------------------------------------------------------------- one clip


def _judge_clip(clip: LocatedClip, evidence: Evidence) -> Iterator[Finding]:
    key = clip.utterance.key
    known_why = _PUBLISHED_WHY if _is_lost_for_all(clip, evidence) else ""
    inspection = evidence.of(clip)
    if inspection is None:
        yield Finding(
            split=key.split, kind="missing", key=key, message=clip.missing, known_why=known_why
        )
        return
    for problem in inspection.problems:
        kind = _kind_of(problem)
        why = known_why if kind == "unreadable" else ""
        yield _about(inspection, kind, problem.message, why)
    yield from _judge_length(clip.utterance, inspection)


def _is_lost_for_all(clip: LocatedClip, evidence: Evidence) -> bool:
    if evidence.published is None:
        return False
    lost = evidence.published.missing | evidence.published.unreadable
    return clip.utterance.key[1:] in lost


def _kind_of(problem: Problem) -> str:
    kind = _STREAM_KINDS.get((problem.stream, problem.code))
    if kind is not None:
        return kind
    return {"audio": "without_sound", "video": "without_picture"}.get(
        problem.stream or "", "unreadable"
    )


def _judge_length(row: Utterance, inspection: ClipInspection) -> Iterator[Finding]:
    """A clip that is long or short as its row says is so in the episode: nothing new."""
    length_s, annotated_s = inspection.length_s, window_s(row)
    if length_s is not None and length_s > OVERLONG_S:
        is_annotated = annotated_s is not None and annotated_s + LENGTH_SLACK_S > OVERLONG_S
        yield _about(inspection, "overlong", f"{length_s:.1f} s", _as_annotated(row, is_annotated))
    picture = inspection.picture
    if picture is not None and picture.num_frames is not None and picture.num_frames < FEW_PICTURES:
        rate = picture.num_frames / picture.length_s if picture.length_s else FRAME_RATE
        room = (annotated_s or 0.0) * rate - _ROUNDED_PICTURES
        is_annotated = row.end_s > 0 and room < FEW_PICTURES
        message = f"{picture.num_frames} pictures, {picture.length_s:.2f} s"
        yield _about(inspection, "too_short", message, _as_annotated(row, is_annotated))


def _as_annotated(row: Utterance, is_annotated: bool) -> str:
    return f"as annotated: its row has {row.end_s - row.start_s:.2f} s" if is_annotated else ""


def _about(inspection: ClipInspection, kind: str, message: str, known_why: str = "") -> Finding:
    return Finding(
        split=inspection.key.split,
        kind=kind,
        key=inspection.key,
        path=inspection.path,
        message=message,
        known_why=known_why,
    )


# -------------------------------------------------------------------------- lengths against rows


def _judge_lengths(evidence: Evidence) -> Iterator[Finding]:
    """Which clips are mis-cut is published for none, but how many, and that almost all are test
    clips with a corrected cut: legacy reads those under their plain names, on purpose."""
    twinned = {twin.utterance.key for twin in evidence.files.twins}
    off = [each for clip in evidence.files.found for each in _differing(clip, evidence)]
    num_plain = sum(finding.key not in twinned for finding in off)
    may_differ = num_plain <= _may_differ(evidence, len(off) - num_plain)
    for finding in off:
        why = ""
        if evidence.published is not None and finding.key in twinned:
            if evidence.test_clips == "legacy":
                why = "published: mis-cut under its plain name, and corrected in its other cut"
        elif evidence.published is not None and may_differ:
            why = f"published: {evidence.published.num_length_differs} clips of {evidence.split}"
        yield replace(finding, known_why=why)


def _may_differ(evidence: Evidence, num_twinned: int) -> int:
    """How many published mis-cuts are not accounted for by clips that have a corrected cut.

    num_twinned: those among the clips that are read, which "legacy" reads mis-cut
    """
    if evidence.published is None:
        return 0
    if evidence.test_clips == "fixed":
        num_twinned = sum(len(_differing(twin, evidence)) for twin in evidence.files.twins)
    return max(evidence.published.num_length_differs - num_twinned, 0)


def _differing(clip: LocatedClip, evidence: Evidence) -> list[Finding]:
    """One finding where a clip is not as long as its row says, or none."""
    inspection, annotated_s = evidence.of(clip), window_s(clip.utterance)
    length_s = inspection.length_s if inspection is not None else None
    if inspection is None or length_s is None or annotated_s is None:
        return []
    if abs(length_s - annotated_s) <= LENGTH_SLACK_S:
        return []
    message = f"{length_s:.2f} s, its row says {annotated_s:.2f} s"
    return [_about(inspection, "length_differs", message)]


# --------------------------------------------------------------------------- what no row asks for


def _judge_unannotated(evidence: Evidence) -> Iterator[Finding]:
    known = evidence.published.unannotated if evidence.published else frozenset()
    for clip in evidence.files.unannotated:
        inspection = evidence.of(clip)
        problems = inspection.problems if inspection is not None else ()
        yield Finding(
            split=evidence.split,
            kind="unannotated",
            key=clip.utterance.key,
            path=clip.path,
            message="; ".join(["no row tells of it", *(each.message for each in problems)]),
            known_why="published: safe to ignore" if clip.utterance.key[1:] in known else "",
        )
    for path, message in evidence.files.foreign:
        yield Finding(split=evidence.split, kind="unannotated", path=path, message=message)
    for clip in evidence.files.spare:
        yield Finding(
            split=evidence.split,
            kind="second_file",
            key=clip.utterance.key,
            path=clip.path,
            message=clip.missing,
        )
