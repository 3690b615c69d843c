"""What a cache holds (`meld info`)."""

from shlex import quote

from console.printing import print_json
from console.show.recipe import print_foreign, print_random
from pipeline.cache.info import CacheInfo, StaleRows
from pipeline.recipe import CHANNEL_RULES, DialogueReading

_SHOWN = 3
_READINGS: dict[DialogueReading, str] = {
    "none": "",
    "past": ", read in the dialogue up to each utterance",
    "whole": ", read in the whole dialogue",
}


def show_info(described: CacheInfo, as_json: bool, *, failures: bool = False) -> None:
    """failures: every one with its clip, and not the first of each reason alone"""
    if as_json:
        print_json(described.to_dict())
        return
    print(f"{described.path}: {described.split}, {described.rows} rows, {described.size_bytes:,} B")
    print(f"fingerprint {described.recipe.fingerprint}")
    for spec in described.recipe.encoders:
        shape = described.shapes.get(f"raw/{spec.modality}")
        print(
            f"  {spec.modality}: {described.present[spec.modality]} rows present, {spec.name}, "
            f"weights {spec.weights} ({spec.weights_hash[:19]}), {spec.pooling}"
            f"{f', context of {spec.context} utterances' if spec.context else ''}"
            f"{_READINGS[spec.dialogue]}"
            f"{f', started from {spec.started_from}' if spec.started_from else ''}, "
            f"{spec.precision}, raw {list(shape) if shape else 'none'}"
        )
    if described.recipe.decode is not None:
        decode = described.recipe.decode
        sizes = " and ".join(f"{view.height}x{view.width}" for view in decode.views)
        print(
            f"  decoded: {decode.num_frames} frames {sizes}, "
            f"{decode.sample_rate_hz} Hz, {decode.channel}, first {decode.max_duration_s:g} s, "
            f"test clips {decode.test_clips}"
        )
        print(f"  sound: {CHANNEL_RULES[decode.channel]}")
    print(f"  128-d embeddings: {'yes' if described.has_embedding else 'not yet (extract train)'}")
    for title, counts in (("emotion", described.emotions), ("sentiment", described.sentiments)):
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"  failures: {sum(described.failures.values())} in {described.rows_with_failures} rows")
    for reason, count in described.failures.items():
        first = "" if failures else f"; first {described.first_failures[reason]}"
        print(f"    {count} x {reason}{first}")
    for failure in described.ledger if failures else ():
        print(f"    {failure.key}: {failure.modality}: {failure.message} ({failure.code})")
    if not failures and len(described.ledger) > len(described.failures):
        print(f"    meld info {quote(str(described.path))} --failures lists all")
    if described.stale is not None:
        _show_stale(described.stale, described.rows)
    print_random(described.recipe.random_modalities)
    print_foreign(described.recipe.foreign)
    if described.damaged == ():
        print("  every checksum holds")


def _show_stale(stale: StaleRows, rows: int) -> None:
    kinds = {
        "clip added": stale.appeared,
        "clip removed": stale.went,
        "clip changed": stale.changed,
        "clip has another time or name, its bytes may be the same": stale.touched,
    }
    count = sum(map(len, kinds.values()))
    if not count:
        print(f"  clips in {stale.data}: unchanged since they were read")
        return
    print(f"  clips in {stale.data}: {count} of {rows} rows are stale; meld extract updates them")
    if 3 * count > 2 * rows:  # a row that never had a clip does not count
        print("    if the cache was made from another folder, name that one with --data")
    for what, keys in kinds.items():
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            print(f"    {what}: {', '.join(map(str, keys[:_SHOWN]))}{more}")
