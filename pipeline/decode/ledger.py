"""One clip's accidents, collected while it is decoded."""

from pipeline.errors import ClipError
from pipeline.schema import ClipFailure, LocatedClip, Modality


class Ledger:
    """Collects one clip's accidents."""

    def __init__(self, clip: LocatedClip, wanted: list[Modality]) -> None:
        self.wanted = wanted
        self._key = clip.utterance.key
        self._entries: list[ClipFailure] = []

    def add(self, modality: Modality, error: ClipError, *, lost: bool) -> None:
        self._entries.append(
            ClipFailure(
                key=self._key,
                modality=modality,
                stage="decode",
                code=error.code,
                message=error.message,
                lost=lost,
            )
        )

    def lose_all(self, error: ClipError) -> None:
        lost = {entry.modality for entry in self._entries if entry.lost}
        for modality in self.wanted:
            if modality not in lost:
                self.add(modality, error, lost=True)

    @property
    def entries(self) -> tuple[ClipFailure, ...]:
        return tuple(self._entries)
