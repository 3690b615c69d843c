"""Lines that every output about features needs: random weights, and which test clips were read."""


def print_test_clips(test_clips: str | None) -> None:
    if test_clips is not None:
        print(f"test clips: {test_clips}")


def print_random(modalities: tuple[str, ...]) -> None:
    for modality in modalities:
        print(f"{modality}: RANDOM WEIGHTS, asked for by name; these features are untrained")
