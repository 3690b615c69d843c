"""The encoders behind a trained run."""

from pathlib import Path

from fusion.inference.description import RunDescription
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.find import find_encoders
from pipeline.encoders.saved import holds_encoders


def find_encoders_of(
    run: Path,
    description: RunDescription,
    *,
    weights_dir: Path | None = None,
    encoders: Path | None = None,
) -> tuple[EncoderChoice, ...]:
    """The encoders that made the features which `run` was trained on, one per modality.

    Those of a fine-tuned run and of a bundle are its own. A run on the features of a fine-tuned run
    is searched for that run by its recorded name: in the current folder, beside the run and beside
    its features.

    Args:
        weights_dir: a folder to look for pretrained weights in, before the libraries' own caches.
        encoders: the fine-tuned run that owns the encoders, wherever it lies.

    Raises:
        As `find_encoders`.
    """
    is_own = bool(description.finetuned) or holds_encoders(run)
    return find_encoders(
        description.recipe,
        description.dims.names,
        weights_dir=weights_dir,
        run=run if encoders is None and is_own else encoders,
        recorded=description.encoders_run,
        beside=[path for path in (run, description.features) if path is not None],
    )
