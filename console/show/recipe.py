"""What must always be said of features: untrained encoders, and which test clips."""


def print_test_clips(test_clips: str | None) -> None:
    if test_clips is not None:
        print(f"test clips: {test_clips}")


def print_random(modalities: tuple[str, ...]) -> None:
    for modality in modalities:
        print(f"{modality}: RANDOM WEIGHTS, asked for by name; these features are untrained")
