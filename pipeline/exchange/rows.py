"""The rows of a file that was in other hands: pandas or NumPy may have sorted, cut or doubled them,
and the header that travels with them says nothing of it."""

import logging
from collections import Counter
from dataclasses import replace

from pipeline.cache.format import FeatureCache
from pipeline.corpus.annotations import MAX_ID_DIGITS, hash_rows
from pipeline.errors import InputError
from pipeline.schema import Utterance

logger = logging.getLogger(__name__)

# Of a cache that is tied to no annotations; no hash is empty.
_NO_ROWS_HASH = ""


def settle_rows(cache: FeatureCache, origin: str) -> FeatureCache:
    """`cache` with what is said of its rows together true of those that are there.

    Where they are not those that its hash is of, it is tied to the rows as they are now, so that
    `meld extract` takes it for a cache of a CSV with the same rows, and of no other. Where features
    were made of a row's neighbours too, it is tied to none: these may be the ones that are gone.

    Raises InputError for keys that occur more than once or that no annotations have; `origin` names
    the file in messages.
    """
    _check_keys(cache, origin)
    rows_hash = _hash_of(cache)
    if rows_hash == cache.rows_hash:
        return cache
    logger.warning(
        "%s: its rows were changed after it was written; meld extract takes what is made of it for "
        "a cache of %s",
        origin,
        "no CSV" if _reads_neighbours(cache) else "a CSV with these rows in this order",
    )
    keys = set(cache.keys)
    there = {name for name, present in cache.present.items() if present.any()}
    return replace(
        cache,
        rows_hash=_NO_ROWS_HASH if _reads_neighbours(cache) else rows_hash,
        # A modality that no row has is no dataset.
        raw={name: values for name, values in cache.raw.items() if name in there},
        embedding={name: values for name, values in cache.embedding.items() if name in there},
        failures=tuple(failure for failure in cache.failures if failure.key in keys),
    )


def _check_keys(cache: FeatureCache, origin: str) -> None:
    for name, ids in (("dialogue_id", cache.dialogue_id), ("utterance_id", cache.utterance_id)):
        wrong = ids[(ids < 0) | (ids >= 10**MAX_ID_DIGITS)]
        if len(wrong):
            raise InputError(
                f"{origin}: {name} {wrong[0]}: numbers from 0, of at most {MAX_ID_DIGITS} digits"
            )
    repeated = {key: count for key, count in Counter(cache.keys).items() if count > 1}
    if repeated:
        raise InputError(
            f"{origin}: {next(iter(repeated))} occurs more than once "
            f"({sum(repeated.values())} such rows in all); one row per dialogue_id and utterance_id"
        )


def _hash_of(cache: FeatureCache) -> str:
    rows = zip(cache.keys, cache.text, cache.speaker, strict=True)
    return hash_rows([Utterance(key=key, text=text, speaker=name) for key, text, name in rows])


def _reads_neighbours(cache: FeatureCache) -> bool:
    return any(spec.context or spec.dialogue != "none" for spec in cache.recipe.encoders)
