"""Lines that every output about features needs: random weights, foreign features, and which test
clips were read."""

from collections.abc import Mapping

from pipeline.schema import Modality


def print_test_clips(test_clips: str | None) -> None:
    if test_clips is not None:
        print(f"test clips: {test_clips}")


def print_random(modalities: tuple[str, ...]) -> None:
    for modality in modalities:
        print(f"{modality}: RANDOM WEIGHTS, as requested; these features are untrained")


def print_foreign(foreign: Mapping[Modality, str]) -> None:
    """foreign: modality -> the tool that made its features"""
    for modality, name in foreign.items():
        print(f"{modality}: FOREIGN features, imported, made by {name}")
