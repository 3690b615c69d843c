"""Every exception this product raises, with the exit status the command line gives it.

    MeldError                 1  a bug, if it ever reaches a user as such
    ├── UsageError            2  the command itself is wrong
    │   └── LossNotFinite        a training with these settings diverged
    ├── InputError            4  bad input: file, row or clip is named
    │   └── AnnotationError      a CSV: file, row and column are named
    ├── StorageError          5  reading or writing failed
    │   ├── CacheCorrupt         a cache, shard or run that does not check out
    │   └── CacheBusy            another process is writing it
    └── MismatchError         6  things that do not belong together
        ├── RecipeMismatch       a cache made in another way; differing fields are named
        ├── ParityError          raw input and cache do not give the same logits
        └── WeightsMissing       pretrained weights are missing

    ClipError                 -  one clip's failure; becomes a `ClipFailure`, never an exit

Exit status 3 (finished, some items failed) is no exception: the run did finish.
"""


class MeldError(Exception):
    """Says in one line what was found, where, and what to do."""

    exit_status = 1


class UsageError(MeldError):
    exit_status = 2


class LossNotFinite(UsageError):
    pass


class InputError(MeldError):
    exit_status = 4


class AnnotationError(InputError):
    pass


class StorageError(MeldError):
    exit_status = 5


class CacheCorrupt(StorageError):
    pass


class CacheBusy(StorageError):
    pass


class MismatchError(MeldError):
    exit_status = 6


class RecipeMismatch(MismatchError):
    pass


class ParityError(MismatchError):
    pass


class WeightsMissing(MismatchError):
    pass


class ClipError(Exception):
    """One modality of one clip could not be read.

    `code` is a stable word for tables ("missing_file", "no_audio"); the message is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["ClipError"], tuple[str, str]]:
        return ClipError, (self.code, self.message)
