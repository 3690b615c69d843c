"""The golden clips of a bundle: a short film of ours, and what the model said of it where it was
exported. `meld verify` computes the same again on another machine and compares each stage.

    golden/talk.mp4              five utterances of two people, from the package
    golden/golden.json           spans and words; hashes of what was decoded; probabilities from
                                 every subset of the modalities; the machine that computed them
    golden/features.safetensors  {modality: float32 [utterances, layers, dim]}
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fusion.inference.bundle import GOLDEN, GOLDEN_FILES
from fusion.inference.predict_media import WordsConfig, prepare_media
from fusion.inference.predictor import Predictor
from fusion.inference.subsets import choose_subsets
from pipeline.corpus.texts import with_surroundings
from pipeline.decode.clip import as_clip
from pipeline.decode.process import HERE
from pipeline.errors import CacheCorrupt, MismatchError, StorageError
from pipeline.schema import (
    EMOTIONS,
    MEDIA,
    MODALITIES,
    SENTIMENTS,
    ClipFeatures,
    ClipKey,
    DecodedClip,
    DecodedMedia,
    MediaSpan,
    Modality,
    Utterance,
)
from pipeline.system.device import cpu_features
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED, json_bytes, to_values

FORMAT = "meld-golden"
FORMAT_VERSION = 1
MEDIA_FILE, VALUES, FEATURES = GOLDEN_FILES
TALK = Path(__file__).resolve().parents[2] / "pipeline" / "sample" / MEDIA_FILE
# Above this a user would see another number in the timeline, which gives three digits.
TOLERANCE = 0.005
# What is told of the machine's processor: the instruction sets that kernels are chosen by.
_INSTRUCTIONS = frozenset(
    "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8 asimd bf16 i8mm".split()
)
_PACKAGES = ("meld", "torch", "transformers", "av", "numpy", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class GoldenValues:
    """What a model says of the golden clips.

    spans, texts, speakers: of each utterance
    decoded:       {modality: SHA-256 of what was decoded of all utterances}
    features:      {modality: float32 [utterances, layers, dim]}, not a number where the encoder
                   finds nothing in an utterance
    probabilities: {modalities that were visible, joined by "+": float64 [utterances, 7 + 3]}
    machine:       processor, instruction sets, threads and versions of packages
    """

    spans: tuple[tuple[int, int], ...]
    texts: tuple[str, ...]
    speakers: tuple[str, ...]
    decoded: Mapping[str, str]
    features: Mapping[str, NDArray[np.float32]]
    probabilities: Mapping[str, NDArray[np.float64]]
    machine: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """stage: "decoded video", "text encoder", "probabilities from text+audio", ...

    largest:   difference of features as a share of the largest expected value, of probabilities
               as they are; of decoded bytes 0 where they are equal and else 1; None where there
               is nothing to compare
    tolerated: whether the prediction may be trusted all the same
    """

    stage: str
    largest: float | None
    tolerated: bool
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """machine, made_on: this machine, and the one that exported; stages: in the order of work"""

    bundle: str
    runtime: str
    machine: Mapping[str, str]
    made_on: Mapping[str, str]
    stages: tuple[StageDifference, ...]

    @property
    def trusted(self) -> bool:
        return all(stage.tolerated for stage in self.stages)

    @property
    def worst(self) -> str:
        """The first stage that is not tolerated, in words; "" where all are."""
        wrong = next((stage for stage in self.stages if not stage.tolerated), None)
        if wrong is None:
            return ""
        told = wrong.remark if wrong.largest is None else f"they differ by {wrong.largest:.2g}"
        return f"{wrong.stage}: {told}"

    def to_dict(self) -> dict[str, Any]:
        return to_values(self) | {"trusted": self.trusted}


def write_golden(predictor: Predictor, bundle: Path) -> None:
    """Raises StorageError, and MismatchError where a modality of the run gives nothing of our film:
    then the golden clips would not check it."""
    folder = bundle / GOLDEN
    film = _read(TALK)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error}") from error
    write_whole(folder / MEDIA_FILE, film)
    prepared = prepare_media(folder / MEDIA_FILE, WordsConfig(), predictor)
    golden = _compute(
        predictor,
        folder / MEDIA_FILE,
        [(each.span.start_ms, each.span.end_ms or 0) for each in prepared.spans],
        [each.text for each in prepared.spans],
        [each.speaker or "" for each in prepared.spans],
    )
    silent = [name for name in predictor.modalities if name not in golden.features]
    if silent:
        raise MismatchError(
            f"the {silent[0]} encoder finds nothing in the golden clips, so no other machine "
            "could be checked; is it the encoder that the run was trained with?"
        )
    write_whole(folder / FEATURES, save(dict(golden.features)))
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "media_sha256": hashlib.sha256(film).hexdigest(),
        "machine": golden.machine,
        "decoded": golden.decoded,
        "utterances": [
            {"start_ms": span[0], "end_ms": span[1], "words": text, "speaker": speaker}
            for span, text, speaker in zip(golden.spans, golden.texts, golden.speakers, strict=True)
        ],
        "probabilities": {name: rows.tolist() for name, rows in golden.probabilities.items()},
    }
    write_whole(folder / VALUES, json_bytes(values))


def verify_golden(predictor: Predictor, bundle: Path) -> Verification:
    """Computes the golden clips of a bundle on this machine.

    Raises:
        CacheCorrupt: they are missing or damaged.
        MismatchError: another version of their format.
        StorageError: they cannot be read.
    """
    wanted = read_golden(bundle)
    found = _compute(
        predictor, bundle / GOLDEN / MEDIA_FILE, wanted.spans, wanted.texts, wanted.speakers
    )
    stages = [
        *_compare_decoded(wanted, found),
        *_compare_features(wanted, found),
        *_compare_probabilities(wanted, found),
    ]
    return Verification(
        bundle=predictor.name,
        runtime=f"{predictor.runtime.name} on {predictor.runtime.device}",
        machine=found.machine,
        made_on=wanted.machine,
        stages=tuple(stages),
    )


def read_golden(bundle: Path) -> GoldenValues:
    """Raises as `verify_golden`."""
    folder = bundle / GOLDEN
    path = folder / VALUES
    try:
        values = json.loads(_read(path))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}")
        if values["format_version"] != FORMAT_VERSION:
            raise MismatchError(
                f"{path}: format version {values['format_version']}, this program reads "
                f"{FORMAT_VERSION}; export the run again"
            )
        if hashlib.sha256(_read(folder / MEDIA_FILE)).hexdigest() != values["media_sha256"]:
            raise CacheCorrupt(f"{folder / MEDIA_FILE}: not the film that was exported")
        said = [(str(each["words"]), str(each["speaker"])) for each in values["utterances"]]
        golden = GoldenValues(
            spans=tuple(_span(each) for each in values["utterances"]),
            texts=tuple(text for text, _ in said),
            speakers=tuple(speaker for _, speaker in said),
            decoded={str(name): str(digest) for name, digest in values["decoded"].items()},
            features=load(_read(folder / FEATURES)),
            probabilities={
                str(name): np.array(rows, np.float64)
                for name, rows in values["probabilities"].items()
            },
            machine={str(name): str(value) for name, value in values["machine"].items()},
        )
    except MALFORMED as error:
        raise CacheCorrupt(f"{path}: no golden clips ({error!r}); export the run again") from error
    except SafetensorError as error:
        raise CacheCorrupt(f"{folder / FEATURES}: not a safetensors file ({error})") from error
    _check_shapes(path, golden)
    return golden


def _check_shapes(path: Path, golden: GoldenValues) -> None:
    rows = len(golden.spans)
    wanted = (rows, len(EMOTIONS) + len(SENTIMENTS))
    wrong = [name for name, each in golden.probabilities.items() if each.shape != wanted]
    wrong += [name for name, each in golden.features.items() if len(each) != rows]
    if not rows or not golden.probabilities or wrong:
        raise CacheCorrupt(f"{path}: no golden clips (wrong shapes); export the run again")


def _span(values: Mapping[str, Any]) -> tuple[int, int]:
    start_ms, end_ms = values["start_ms"], values["end_ms"]
    MediaSpan(start_ms=start_ms, end_ms=end_ms)  # raises ValueError
    return start_ms, end_ms


def _compute(
    predictor: Predictor,
    film: Path,
    spans: Sequence[tuple[int, int]],
    texts: Sequence[str],
    speakers: Sequence[str],
) -> GoldenValues:
    clips = _decode(predictor, film, spans, texts, speakers)
    features = predictor.encode(clips)
    there = [name for name in predictor.modalities if any(name in each.raw for each in features)]
    return GoldenValues(
        spans=tuple(spans),
        texts=tuple(texts),
        speakers=tuple(speakers),
        decoded=_digests(predictor, clips),
        features={name: _stack([each.raw.get(name) for each in features]) for name in there},
        probabilities={
            "+".join(subset): _probabilities(predictor, features, subset)
            for subset in choose_subsets(predictor.modalities)
        },
        machine=describe_machine(predictor),
    )


def _decode(
    predictor: Predictor,
    film: Path,
    spans: Sequence[tuple[int, int]],
    texts: Sequence[str],
    speakers: Sequence[str],
) -> list[DecodedClip]:
    said = [
        Utterance(key=ClipKey("test", 0, number), text=text, speaker=speaker)
        for number, (text, speaker) in enumerate(zip(texts, speakers, strict=True))
    ]
    utterances = with_surroundings(said, predictor.recipe.encoders)
    parts = [MediaSpan(start_ms=start_ms, end_ms=end_ms) for start_ms, end_ms in spans]
    wanted = [name for name in predictor.modalities if name in MEDIA]
    media = [DecodedMedia(span=part) for part in parts]
    if predictor.decode is not None and wanted:
        media = list(HERE.decode(film, parts, predictor.decode, wanted))
    return [as_clip(*pair) for pair in zip(utterances, media, strict=True)]


def _stack(rows: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """Rows, at least one of them there -> [rows, layers, dim], not a number where one is not."""
    absent = np.full_like(next(row for row in rows if row is not None), np.nan)
    return np.stack([absent if row is None else row for row in rows])


def _digests(predictor: Predictor, clips: Sequence[DecodedClip]) -> dict[str, str]:
    """What was decoded, not what it means: only whether it is the same."""
    decoded = {}
    for modality in predictor.modalities:
        digest = hashlib.sha256()
        for clip in clips:
            digest.update(clip.content(modality))
        decoded[str(modality)] = digest.hexdigest()
    return decoded


def _probabilities(
    predictor: Predictor, features: Sequence[ClipFeatures], visible: Sequence[Modality]
) -> NDArray[np.float64]:
    """float64 [utterances, 7 + 3], in the order of EMOTIONS and SENTIMENTS."""
    seen = [
        replace(each, raw={name: each.raw[name] for name in visible if name in each.raw})
        for each in features
    ]
    return np.array(
        [
            [
                *(each.emotion.probabilities[name] for name in EMOTIONS),
                *(each.sentiment.probabilities[name] for name in SENTIMENTS),
            ]
            for each in predictor.predict(seen)
        ]
    )


def _compare_decoded(wanted: GoldenValues, found: GoldenValues) -> list[StageDifference]:
    """Never decides: what counts is what becomes of it."""
    return [
        StageDifference(
            stage=f"decoded {name}",
            largest=float(found.decoded.get(name) != digest),
            tolerated=True,
            remark="" if found.decoded.get(name) == digest else "decoded to other bytes here",
        )
        for name, digest in wanted.decoded.items()
    ]


def _compare_features(wanted: GoldenValues, found: GoldenValues) -> list[StageDifference]:
    stages = []
    for name in (each for each in MODALITIES if each in wanted.features):
        expected, here = wanted.features[name], found.features.get(name)
        if here is None or here.shape != expected.shape:
            remark = "no features here" if here is None else f"{here.shape} here, not as exported"
            stages.append(
                StageDifference(
                    stage=f"{name} encoder", largest=None, tolerated=False, remark=remark
                )
            )
            continue
        there, there_here = ~np.isnan(expected), ~np.isnan(here)
        if not np.array_equal(there, there_here):
            # What becomes of it decides, as of all features.
            remark = "finds something in other utterances here"
            stages.append(
                StageDifference(
                    stage=f"{name} encoder", largest=None, tolerated=True, remark=remark
                )
            )
            continue
        largest_expected = max(np.abs(expected[there]).max(initial=0.0), 1e-12)
        largest = float(np.abs(here - expected)[there].max(initial=0.0) / largest_expected)
        stages.append(StageDifference(stage=f"{name} encoder", largest=largest, tolerated=True))
    return stages


def _compare_probabilities(wanted: GoldenValues, found: GoldenValues) -> list[StageDifference]:
    stages = []
    for name, expected in wanted.probabilities.items():
        here = found.probabilities.get(name)
        if here is None:
            stages.append(
                StageDifference(
                    stage=name, largest=None, tolerated=False, remark="not a subset of this run"
                )
            )
            continue
        largest = float(np.abs(here - expected).max())
        changed = int((_choices(here) != _choices(expected)).any(axis=1).sum())
        stages.append(
            StageDifference(
                stage=f"probabilities from {name}",
                largest=largest,
                tolerated=largest <= TOLERANCE,
                remark=f"{changed} of {len(here)} most probable classes differ" if changed else "",
            )
        )
    return stages


def _choices(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 [utterances, 2]"""
    heads = np.split(probabilities, [len(EMOTIONS)], axis=1)
    return np.stack([head.argmax(axis=1) for head in heads], axis=1)


def describe_machine(predictor: Predictor) -> dict[str, str]:
    """What decides the last digits of a result."""
    return {
        **predictor.runtime.describe(),
        "processor": platform.machine(),
        "instructions": " ".join(sorted(cpu_features() & _INSTRUCTIONS)),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is missing; export the run again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
