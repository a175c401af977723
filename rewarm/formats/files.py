"""Files as they are read and written everywhere: regular ones only, within bounds, whole or not at all."""

import os
import stat
from pathlib import Path

from rewarm.config.errors import DamagedFile

__all__ = ['flush', 'read_bytes', 'write_whole']

LARGEST_BYTES = 1 << 30
"""Of a file that is read at once. An index of 35,000 shards has 20 MB, the tokenizers in use at most 20 MB."""


def read_bytes(path: str | Path, *, largest_bytes: int = LARGEST_BYTES) -> bytes:
    """Reads a file that somebody else may have made; a link is followed, and must lead to a regular file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is a folder, a pipe or a device, is larger than the bound, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to would block
        with os.fdopen(handle, 'rb') as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedFile(path, what='it is no regular file')
            if status.st_size > largest_bytes:
                raise DamagedFile(path, what=f'it has {status.st_size:,} bytes, more than {largest_bytes:,}')
            return file.read(largest_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    except IsADirectoryError:
        raise DamagedFile(path, what='it is a folder') from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DamagedFile(path, what=f'it cannot be read ({getattr(error, "strerror", None) or error})') from None


def write_whole(path: Path, data: bytes, *, temporary: Path | None = None) -> None:
    """Writes a file so that it is there whole or not at all, also after a loss of power; a link there is replaced.

    Args:
        path (Path): The file.
        data (bytes): All it shall hold.
        temporary (Path | None): What it is called until it is whole; one left by a kill is removed. Default:
            ``.writing-NAME`` beside it.

    Raises:
        OSError: If the disk is full or not writable; the file is as it was.
    """
    temporary = temporary or path.with_name(f'.writing-{path.name}')
    temporary.unlink(missing_ok=True)
    with temporary.open('xb') as file:  # x follows no link
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def flush(path: Path) -> None:
    """Returns when a file's content, or the names in a folder, would survive a loss of power.

    Raises:
        OSError: If the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
