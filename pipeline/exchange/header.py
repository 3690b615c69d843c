"""What a cache holds beside its rows, as one JSON text that travels in files of other formats."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cache.format import FORMAT, FORMAT_VERSION, FeatureCache
from pipeline.errors import CacheCorrupt, InputError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMOTIONS, MODALITIES, SENTIMENTS, SPLITS, ClipFailure, ClipKey, Split
from pipeline.system.json_values import MALFORMED

_TEXTS = ("split", "recipe", "fingerprint", "rows_hash")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of `FeatureCache` that are not one value per row."""

    split: Split
    recipe: FeatureRecipe
    rows_hash: str
    projection_hash: str | None
    encoders_run: str | None
    failures: tuple[ClipFailure, ...]


def header_json(cache: FeatureCache) -> str:
    """The header of `cache`, with a fingerprint that tells whether its recipe is whole."""
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "split": cache.split,
        "recipe": cache.recipe.to_json(),
        "fingerprint": cache.fingerprint,
        "rows_hash": cache.rows_hash,
        "projection_hash": cache.projection_hash,
        "encoders_run": cache.encoders_run,
        "emotion_names": EMOTIONS,
        "sentiment_names": SENTIMENTS,
        "failures": [_failure_values(each) for each in cache.failures],
    }
    return json.dumps({**values, "header_sha256": _digest(values)}, ensure_ascii=False)


def _digest(values: dict[str, Any]) -> str:
    """Parquet's checksums are of its pages, and the header is in none."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _failure_values(failure: ClipFailure) -> dict[str, Any]:
    values = asdict(failure)
    _, dialogue_id, utterance_id = values.pop("key")
    return {"dialogue_id": dialogue_id, "utterance_id": utterance_id, **values}


def read_header_json(text: str, origin: str) -> Header:
    """The inverse. `origin` names the file in messages.

    Raises:
        InputError: the text is no header of ours, or one of another version.
        CacheCorrupt: a header that contradicts itself.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin}: its header is no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{origin}: not written by meld convert; meld import reads other features")
    if values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{origin}: format version {values.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; convert the cache again"
        )
    if values.pop("header_sha256", None) != _digest(values):
        raise CacheCorrupt(f"{origin}: its header does not match its checksum; convert again")
    try:
        return _checked(values, origin)
    except MALFORMED as error:
        raise CacheCorrupt(f"{origin}: its header cannot be read ({error!r})") from error


def _checked(values: dict[str, Any], origin: str) -> Header:
    for name in _TEXTS:
        if not isinstance(values[name], str):
            raise CacheCorrupt(f"{origin}: {name} of its header is no text")
    for name in ("projection_hash", "encoders_run"):
        if not isinstance(values[name], str | None):
            raise CacheCorrupt(f"{origin}: {name} of its header is no text")
    [split] = [each for each in SPLITS if each == values["split"]]
    recipe = FeatureRecipe.from_json(values["recipe"])
    if recipe.fingerprint != values["fingerprint"]:
        raise CacheCorrupt(f"{origin}: its recipe does not match its fingerprint")
    return Header(
        split=split,
        recipe=recipe,
        rows_hash=values["rows_hash"],
        projection_hash=values["projection_hash"],
        encoders_run=values["encoders_run"],
        failures=_read_failures(values["failures"], split),
    )


def _read_failures(rows: Sequence[dict[str, Any]], split: Split) -> tuple[ClipFailure, ...]:
    failures = []
    for row in rows:
        [modality] = [each for each in MODALITIES if each == row["modality"]]
        texts = {name: row[name] for name in ("stage", "code", "message")}
        ids = (row["dialogue_id"], row["utterance_id"])
        if not all(isinstance(each, str) for each in texts.values()):
            raise TypeError("a failure's stage, code or message is no text")
        if not all(type(each) is int for each in ids) or type(row["lost"]) is not bool:
            raise TypeError("a failure's ids are no numbers, or its lost is not true or false")
        failures.append(
            ClipFailure(key=ClipKey(split, *ids), modality=modality, lost=row["lost"], **texts)
        )
    return tuple(failures)
