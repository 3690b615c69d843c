"""Where the utterances of a media file are, and what is said in them."""

from dataclasses import dataclass
from typing import Literal

from pipeline.schema import MediaSpan

# given: by the caller, in a transcript or as words; subtitles: from a subtitle file;
# recognised: by a speech recogniser, so it may be wrong; none: the words are not known
TextSource = Literal["given", "subtitles", "recognised", "none"]


@dataclass(frozen=True, kw_only=True)
class SpokenSpan:
    """One utterance of a media file, before anything is predicted of it.

    span:    where it is; milliseconds on the file's clock, as in `MediaSpan`
    text:    what is said; "" where it is not known
    speaker: as a transcript names who speaks; None where nobody said it. Nobody is recognised.
    """

    span: MediaSpan
    text: str = ""
    text_source: TextSource = "none"
    speaker: str | None = None

    def __post_init__(self) -> None:
        if bool(self.text) != (self.text_source != "none"):
            raise ValueError(f"text {self.text!r} cannot have the source {self.text_source!r}")
