"""Files as they are read and written everywhere: regular ones only, within bounds, whole or not at all."""

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from rewarm.config.errors import DamagedFile, UserError

__all__ = ['flush', 'open_regular', 'private_folder', 'read_bytes', 'refuse_lost_link', 'regular_files', 'write_whole']

LARGEST_BYTES = 1 << 30
"""Of a file that is read at once. An index of 35,000 shards has 20 MB, the tokenizers in use at most 20 MB."""

_WAY_OUT = 'Remove it, or set TMPDIR to a folder of your own, such as ~/tmp'


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


def refuse_lost_link(path: Path) -> None:
    """For a file that is not there and need not be.

    Raises:
        DamagedFile: If there is a link that leads nowhere: somebody believes the file to be there.
    """
    if path.is_symlink() and not path.exists():
        raise DamagedFile(path, what='it is a link that leads nowhere')


def regular_files(folder: Path) -> dict[str, int]:
    """Bytes of each regular file of a folder, or of what a link there leads to, by name.

    Raises:
        OSError: If the folder cannot be listed.
    """
    found: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:  # a link to nothing, or deleted while we looked
                continue
            if stat.S_ISREG(status.st_mode):
                found[entry.name] = status.st_size
    return found


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


def private_folder(*names: str, below: Path | None = None) -> Path:
    """A folder below the system's temporary one that nobody else can have prepared or can write to.

    Each level is made with mode 0700, whatever the umask. One that is there is used only if it is a folder and no link,
    belongs to this user, and neither its group nor others may write to it.

    Args:
        *names (str): One name for each level.
        below (Path | None): Where the first one lies. Default: ``$TMPDIR``.

    Returns:
        Path: The last one.

    Raises:
        UserError: If one cannot be made or is not this user's own, with what to do.
    """
    try:
        path = below or Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f'{error.strerror or error}. Set TMPDIR to a folder that can be written') from None
    for name in names:
        path /= name
        try:
            _make_private(path)
        except OSError as error:
            raise UserError(f'{path}: cannot be made ({error.strerror}). Set TMPDIR to another folder') from None
    return path


def _make_private(path: Path) -> None:
    try:
        path.mkdir(0o700)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(handle, 0o700)  # the umask may have taken the owner's rights
        finally:
            os.close(handle)
    except FileExistsError:
        pass  # looked at now
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f'{path}: is no folder but a link or a file, where a private folder has to be. {_WAY_OUT}')
    if status.st_uid != os.geteuid():
        raise UserError(f'{path}: belongs to user {status.st_uid}, who may change what is in it. {_WAY_OUT}')
    if status.st_mode & 0o022:
        raise UserError(
            f'{path}: other users may write to it (mode {stat.S_IMODE(status.st_mode):04o}). See that all in it is '
            f'yours, then run `chmod -R go-w {path}`; or remove it'
        )
