"""Collects the failures of one span while it is decoded."""

from collections.abc import Sequence

from pipeline.errors import ClipError
from pipeline.schema import MediaFailure, Modality


class Ledger:
    """The failures of one span."""

    def __init__(self, wanted: Sequence[Modality]) -> None:
        self.wanted = wanted
        self._entries: list[MediaFailure] = []

    def add(self, modality: Modality, error: ClipError, *, lost: bool) -> None:
        self._entries.append(
            MediaFailure(modality=modality, code=error.code, message=error.message, lost=lost)
        )

    def extend(self, other: "Ledger") -> None:
        self._entries += other._entries

    def lose_all(self, error: ClipError) -> None:
        lost = {entry.modality for entry in self._entries if entry.lost}
        for modality in self.wanted:
            if modality not in lost:
                self.add(modality, error, lost=True)

    @property
    def entries(self) -> tuple[MediaFailure, ...]:
        return tuple(self._entries)
