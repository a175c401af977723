"""Files as they are read and written everywhere: regular ones only, within bounds, whole or not at all."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from rewarm.config.errors import DamagedFile

__all__ = ['flush', 'open_regular', 'read_bytes', 'write_whole']

LARGEST_BYTES = 1 << 30
"""Of a file that is read at once. An index of 35,000 shards has 20 MB, the tokenizers in use at most 20 MB."""


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file that somebody else may have made; a link is followed, and must lead to a regular file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is a folder, a pipe or a device, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to would block
        try:
            if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
                raise DamagedFile(path, what='it is a folder' if stat.S_ISDIR(mode) else 'it is no regular file')
            return os.fdopen(handle, 'rb')
        except BaseException:
            os.close(handle)
            raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, os.strerror(error.errno or 0), str(path)) from None
    except DamagedFile:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DamagedFile(path, what=f'it cannot be read ({getattr(error, "strerror", None) or error})') from None


def read_bytes(path: str | Path, *, largest_bytes: int = LARGEST_BYTES) -> bytes:
    """Reads a file that somebody else may have made; a link is followed, and must lead to a regular file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it is a folder, a pipe or a device, is larger than the bound, or cannot be read.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest_bytes:
            raise DamagedFile(path, what=f'it has {size:,} bytes, more than {largest_bytes:,}')
        try:
            return file.read(largest_bytes)
        except OSError as error:
            raise DamagedFile(path, what=f'it cannot be read ({error.strerror or error})') from None


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
