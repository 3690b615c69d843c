"""Predicts one media file: its timeline, or the reason why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.inference.hearing import SavedStretches
from fusion.inference.media import PredictedUtterance
from fusion.inference.predict_media import WordsConfig, finish, predict_media, prepare_media
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import BUNDLED_RECOGNISER
from fusion.inference.saved_features import SavedFeatures
from fusion.inference.timeline import Timeline
from pipeline.decode.process import Decoder
from pipeline.errors import InputError, MeldError


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """timeline: None where the file could not be predicted, and `error` says why
    unfinished: its saved progress on the disk, to be removed at the end
    """

    path: Path
    timeline: Timeline | None
    written: tuple[Path, ...] = ()
    error: MeldError | None = None
    unfinished: tuple[SavedFeatures | SavedStretches, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "timeline": None if self.timeline is None else self.timeline.to_dict(),
            "written": [str(path) for path in self.written],
            "error": None if self.error is None else str(self.error),
        }


def predict_file(
    path: Path,
    words: WordsConfig,
    predictor: Predictor,
    decoder: Decoder,
    *,
    saved_in: Path | None = None,
    on_utterance: Callable[[PredictedUtterance], None] = lambda utterance: None,
    on_progress: Callable[[int, int], None] = lambda done_ms, total_ms: None,
    on_heard: Callable[[int, int], None] | None = None,
    recogniser: str = BUNDLED_RECOGNISER,
) -> FileResult:
    """A bad file is a result with an error.

    saved_in: folder for saved progress
    on_heard: of hearing, which comes first where nothing else says what is said; None tells
        `on_progress`
    recogniser: as in `prepare_media`

    Raises UsageError, MismatchError, WeightsMissing or StorageError: no file is to blame.
    """
    try:
        prepared = prepare_media(
            path,
            words,
            predictor,
            saved_in=saved_in,
            on_progress=on_heard or on_progress,
            decoder=decoder,
            recogniser=recogniser,
        )
        saved = None
        if saved_in is not None:
            saved = SavedFeatures(
                saved_in,
                media=prepared.media.sha256,
                model=predictor.identity,
                spans=prepared.spans,
            )
        utterances = []
        for each in predict_media(
            predictor, prepared, saved=saved, on_progress=on_progress, decoder=decoder
        ):
            on_utterance(each)
            utterances.append(each)
    except InputError as error:
        return FileResult(path=path, timeline=None, error=error)
    return FileResult(
        path=path,
        timeline=finish(predictor, prepared, utterances),
        unfinished=tuple(each for each in (saved, prepared.saved) if each is not None),
    )
