"""Errors of the system that are a user's, not a bug's: a path that cannot be, a full disk."""

import errno

from pipeline.errors import StorageError
from pipeline.system.one_line import one_line

# Errors of a path that the user typed, raised by whatever code opens it first.
_PATH_FAILS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
# Errors of a disk, whatever code meets them first: that of a library has its own way to write.
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def storage_error(error: OSError) -> StorageError | None:
    """What is told of it; None where it is a bug."""
    is_of_path = error.filename is not None and error.errno in _PATH_FAILS
    if not is_of_path and error.errno not in DISK_FAILS:
        return None
    why = "no permission" if isinstance(error, PermissionError) else error.strerror
    if error.filename is None:
        return StorageError(f"the output cannot be written: {why}")
    return StorageError(f"{one_line(str(error.filename))}: {why}")
