"""Which system calls change a file system, how to stop a process at each of them, and which file each is about.

Linux's seccomp hands a filtered call to a supervisor before the kernel acts on it, whatever made it: libc, Rust's raw
calls, a thread, a program started later. A preloaded library would miss the second: safetensors renames without libc.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ['Notice', 'SUPPORTED', 'answer', 'install_filter', 'next_notice', 'write_half']

SUPPORTED = platform.system() == 'Linux' and platform.machine() == 'x86_64'
"""The numbers below are those of one architecture."""

# Number, then for each file the call is about: where its folder's descriptor and where its path stands in the arguments.
CALLS: dict[str, tuple[int, tuple[tuple[int | None, int | None], ...]]] = {
    'write': (1, ((0, None),)),
    'open': (2, ((None, 0),)),
    'close': (3, ((0, None),)),
    'pwrite64': (18, ((0, None),)),
    'writev': (20, ((0, None),)),
    'sendfile': (40, ((0, None),)),
    'fsync': (74, ((0, None),)),
    'fdatasync': (75, ((0, None),)),
    'truncate': (76, ((None, 0),)),
    'ftruncate': (77, ((0, None),)),
    'rename': (82, ((None, 0), (None, 1))),
    'mkdir': (83, ((None, 0),)),
    'rmdir': (84, ((None, 0),)),
    'creat': (85, ((None, 0),)),
    'link': (86, ((None, 0), (None, 1))),
    'unlink': (87, ((None, 0),)),
    'symlink': (88, ((None, 1),)),
    'openat': (257, ((0, 1),)),
    'mkdirat': (258, ((0, 1),)),
    'unlinkat': (263, ((0, 1),)),
    'renameat': (264, ((0, 1), (2, 3))),
    'linkat': (265, ((0, 1), (2, 3))),
    'symlinkat': (266, ((1, 2),)),
    'sync_file_range': (277, ((0, None),)),
    'fallocate': (285, ((0, None),)),
    'pwritev': (296, ((0, None),)),
    'renameat2': (316, ((0, 1), (2, 3))),
    'copy_file_range': (326, ((2, None),)),
    'pwritev2': (328, ((0, None),)),
}
NAMES = {number: name for name, (number, _) in CALLS.items()}
FLAGS_OF_OPEN = {'open': 1, 'openat': 2}
CHANGING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

ARCHITECTURE = 0xC000003E  # x86-64
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
SECCOMP, PIDFD_OPEN, PIDFD_GETFD = 317, 434, 438
NEW_LISTENER, WAIT_KILLABLE = 1 << 3, 1 << 5
RECEIVE, SEND = 0xC0502100, 0xC0182101
GO_ON = 1
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Notice:
    """A call that waits for an answer.

    Args:
        id (int): By which it is answered.
        process (int): The thread that made it.
        name (str): Such as ``'rename'``.
        arguments (tuple[int, ...]): Its six arguments.
    """

    id: int
    process: int
    name: str
    arguments: tuple[int, ...]

    def paths(self) -> list[str]:
        """The files that it is about, absolute."""
        return [self._path(folder, path) for folder, path in CALLS[self.name][1]]

    def _path(self, folder: int | None, path: int | None) -> str:
        proc = f'/proc/{self.process}'
        if path is None:
            assert folder is not None
            return _link(f'{proc}/fd/{self.arguments[folder]}')
        text = self._text(self.arguments[path])
        descriptor = AT_FDCWD if folder is None else ctypes.c_int32(self.arguments[folder]).value
        return os.path.join(_link(f'{proc}/cwd' if descriptor == AT_FDCWD else f'{proc}/fd/{descriptor}'), text)

    def _text(self, address: int) -> str:
        with open(f'/proc/{self.process}/mem', 'rb', buffering=0) as memory:
            memory.seek(address)
            # A path may end at the end of a mapped page, and reading beyond it gives what there is.
            return os.fsdecode(memory.read(4096).split(b'\0', 1)[0])


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return '?'  # closed already


def install_filter() -> int:
    """Makes every changing call of this process and of its descendants wait for an answer, for good.

    Returns:
        int: Descriptor of the listener, for :func:`next_notice` in another process.

    Raises:
        OSError: If the kernel does not allow it.
    """
    program = [_step(LOAD, 4), _step(EQUAL, ARCHITECTURE, 1, 0), _step(RETURN, ALLOW), _step(LOAD, 0)]
    for name, (number, _) in CALLS.items():
        if name in FLAGS_OF_OPEN:
            argument = 16 + 8 * FLAGS_OF_OPEN[name]
            program += [_step(EQUAL, number, 0, 4), _step(LOAD, argument), _step(ANY_BIT, CHANGING_FLAGS, 0, 1)]
            program += [_step(RETURN, ASK), _step(RETURN, ALLOW)]
        else:
            program += [_step(EQUAL, number, 0, 1), _step(RETURN, ASK)]
    program.append(_step(RETURN, ALLOW))
    steps = ctypes.create_string_buffer(b''.join(program))
    header = struct.pack('HxxxxxxQ', len(program), ctypes.addressof(steps))
    _check(libc.prctl(38, 1, 0, 0, 0))  # no new privileges: then no root is needed
    return _check(libc.syscall(SECCOMP, 1, NEW_LISTENER | WAIT_KILLABLE, header))


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack('HBBI', code, if_true, if_false, value)


def next_notice(listener: int) -> Notice | None:
    """Takes the next waiting call; None if its process died meanwhile."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    identity, process, _, number, _, _, *arguments = struct.unpack('QIIiIQ6Q', buffer)
    return Notice(identity, process, NAMES[number], tuple(arguments))


def answer(listener: int, notice: Notice, *, error: int = 0, result: int | None = None) -> None:
    """Lets a call go on; or makes it fail with ``error``, or say ``result`` without having been made."""
    flags = GO_ON if not error and result is None else 0
    reply = struct.pack('QqiI', notice.id, result or 0, -error, flags)
    try:
        fcntl.ioctl(listener, SEND, reply)
    except OSError as problem:
        if problem.errno != errno.ENOENT:  # its process died meanwhile
            raise


def write_half(notice: Notice) -> int:
    """Writes the first half of what a ``write`` would, at its file's own position; returns the number of bytes."""
    descriptor, address, count = notice.arguments[:3]
    with open(f'/proc/{notice.process}/mem', 'rb', buffering=0) as memory:
        memory.seek(address)
        data = memory.read(max(1, count // 2))
    group = next(
        int(line.split()[1])
        for line in Path(f'/proc/{notice.process}/status').read_text().splitlines()
        if line.startswith('Tgid:')
    )
    process = _check(libc.syscall(PIDFD_OPEN, group, 0))
    try:
        twin = _check(libc.syscall(PIDFD_GETFD, process, descriptor, 0))
    finally:
        os.close(process)
    try:
        return os.write(twin, data)
    finally:
        os.close(twin)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
