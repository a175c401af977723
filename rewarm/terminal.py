"""What is written for people: no write to a standard stream raises, and a run's writes do not wait either.

A terminal is closed, a pipe's reader ends or stands still, a log's disk is full: none of it is the run's business.
:func:`take_over` puts streams of our own in the place of ``sys.stdout`` and ``sys.stderr``, so libraries, warnings and
tracebacks go through them too. Text that came from a file must not steer a terminal: see :func:`printable`.
"""

import atexit
import contextlib
import errno
import io
import os
import queue
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from rewarm.spare_reader import SpareReader

__all__ = [
    'OutputError',
    'drain',
    'never_wait',
    'on_loss',
    'printable',
    'say',
    'take_over',
    'wait_while_read',
]

MOST_WAITING = 1000
"""Writes that wait for a reader that stands still; what comes after them is left out."""

LAST_WORDS_SECONDS = 2.0
"""How long the end of a process waits for what it wrote to be taken."""

_STEERING = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
"""Control characters but for newline and tab, what reverses the direction of text, and halves of surrogate pairs."""

_DRAWING = re.compile(r'(\r|\x1b\[[0-9;]*[AKm])')
"""What bars and coloured tables need: back to the line's start, a line up, the rest of it erased, colours."""

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
"""What a write says when nobody will read there any more; a full disk may have room again."""


class OutputError(Exception):
    """Standard output takes no more, for a reason that is not its reader's."""


def printable(text: str) -> str:
    r"""The text with each character that a terminal obeys instead of showing spelled out, such as ``\x1b``."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)


def _tame(text: str) -> str:
    """The same for a whole stream, on which bars are drawn and tables are coloured."""
    if not _STEERING.search(text):
        return text
    return ''.join(part if index % 2 else printable(part) for index, part in enumerate(_DRAWING.split(text)))


class _Descriptor(io.RawIOBase):
    """File descriptor 1 or 2. Writes to it do not raise; after :meth:`never_wait` they do not wait either.

    Args:
        number (int): The descriptor.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._waits = True
        self._queue: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._left_out = 0
        self._spare: SpareReader | None = None

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Takes all of it. Also inside a signal handler: only queues that allow it are used."""
        if self._waits:
            self._deliver(bytes(data))
        elif self._queue.qsize() < MOST_WAITING:
            self._note_left_out()
            self._queue.put(bytes(data))
            self._start_thread()
        else:
            self._left_out += 1
            _lose('nobody reads what is written')
        return len(data)

    def never_wait(self, spare: SpareReader | None) -> None:
        """From now on a thread writes, and text is left out when too much of it waits."""
        self._waits, self._spare = False, spare

    def drain(self, seconds: float) -> None:
        """Waits until what was written so far is taken, but no longer than this."""
        if self._thread is None:
            self._look_for_reader()
            return
        self._note_left_out()
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait(seconds)

    def after_fork(self) -> None:
        """The child has neither the thread nor a right to what waits."""
        self._queue, self._thread, self._left_out, self._spare = queue.SimpleQueue(), None, 0, None

    def _note_left_out(self) -> None:
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            self._queue.put(f'\n[{left_out} writes are left out here: nobody read them]\n'.encode())

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name=f'output-{self.number}', daemon=True)
            self._thread.start()

    def _write_on(self) -> None:
        while True:
            item = self._queue.get()
            self._look_for_reader()
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._deliver(item)

    def _look_for_reader(self) -> None:
        """Before a write, and at the end, since others go on writing to the same pipe."""
        if self._spare is not None and self._spare.is_alone():
            self._spare.read_on()
            self._spare = None
            self._give_up(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))

    def _deliver(self, data: bytes) -> None:
        """Writes all of it, or nothing more once that fails."""
        while data:
            try:
                data = data[os.write(self.number, data) :]
            except BlockingIOError:  # whoever started us made it so; there is no telling when that ends
                room = select.poll()
                room.register(self.number, select.POLLOUT)
                room.poll()
            except OSError as error:
                self._give_up(error)
                return

    def _give_up(self, error: OSError) -> None:
        _lose(os.strerror(error.errno or errno.EIO))
        if error.errno in _GONE:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.number)  # for what writes there without us too, such as a compiler: it would die of it
            os.close(null)
        elif self._waits and self.number == 1:
            raise OutputError(
                f'standard output: {os.strerror(error.errno or errno.EIO)}: what was printed is not complete'
            )


class _Stream(io.TextIOWrapper):
    """A standard stream. Only what draws bars and colours steers the terminal; characters it does not know are escaped."""

    def write(self, text: str, /) -> int:
        super().write(_tame(text))
        return len(text)


_descriptors: dict[int, _Descriptor] = {}
_streams: dict[int, _Stream] = {}
_spares: dict[int, SpareReader] = {}
_lost: dict[str, str] = {}
_record: Callable[[str], object] | None = None


def wait_while_read(seconds: float) -> bool:
    """Waits, but no longer than somebody reads standard output; returns whether they still do."""
    if 'reason' in _lost:
        return False
    if 1 not in _descriptors:
        time.sleep(seconds)
        return True
    reader = select.poll()
    reader.register(1, 0)  # errors are told whatever is asked for
    return not reader.poll(seconds * 1000)


def take_over() -> None:
    """Puts streams that never raise in the place of this process's standard ones. Called first of all, once.

    A stream that someone replaced already, such as a test that captures output, stays.
    """
    for number in range(3):
        _open_if_closed(number)
    for name, number in (('stdout', 1), ('stderr', 2)):
        stream = getattr(sys, name)
        if number in _descriptors or (stream is not None and not _is_at(stream, number)):
            continue
        if stream is not None:
            with contextlib.suppress(OSError):  # nobody reads it
                stream.flush()
        _descriptors[number] = _Descriptor(number)
        encoding = getattr(stream, 'encoding', 'utf-8')
        raw = cast(BinaryIO, _descriptors[number])  # raw is enough for text, since its writes are always whole
        _streams[number] = _Stream(raw, encoding=encoding, errors='backslashreplace', line_buffering=True)
        setattr(sys, name, _streams[number])
    os.register_at_fork(after_in_child=_after_fork)
    atexit.register(drain)


def _open_if_closed(number: int) -> None:
    """With ``2>&-`` the next file opened would be 2, and get what is written to standard error."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


def _is_at(stream: Any, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (AttributeError, OSError, ValueError):
        return False


def _after_fork() -> None:
    global _record
    _record = None  # the parent's to write
    for descriptor in _descriptors.values():
        descriptor.after_fork()
    for spare in _spares.values():
        spare.close()
    _spares.clear()


def never_wait() -> None:
    """From now on no write of this process waits for its reader: for work that must not be held up by a terminal."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # `stty tostop` would stop a process in the background that writes
    for number, descriptor in _descriptors.items():
        descriptor.never_wait(_spare_of(number))


def _spare_of(number: int) -> SpareReader | None:
    """One for both streams if they are the same pipe, or none would ever be alone."""
    pipe = os.fstat(number).st_ino
    if pipe not in _spares:
        try:
            _spares[pipe] = SpareReader(number)
        except OSError:
            return None
    return _spares[pipe]


def say(text: str) -> None:
    """Writes a line of its own to standard error, from a signal handler or any thread."""
    data = f'\n{printable(text)}\n'.encode()
    if 2 in _descriptors:
        _descriptors[2].write(data)
    else:
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, data)


def drain(seconds: float = LAST_WORDS_SECONDS) -> None:
    """Waits until what was written is taken, but no longer than this; for the end of a process."""
    end = time.monotonic() + seconds
    for number, stream in _streams.items():
        stream.flush()
        _descriptors[number].drain(max(0.0, end - time.monotonic()))


def on_loss(record: Callable[[str], object]) -> None:
    """Has it recorded, once, that what is written reaches nobody; at once if that is known already.

    Args:
        record (Callable[[str], object]): Called with the reason, by any thread.
    """
    global _record
    _record = record
    if 'reason' in _lost:
        _tell_loss(_lost['reason'])


def _lose(reason: str) -> None:
    if not _lost and _lost.setdefault('reason', reason) is reason:
        _tell_loss(reason)


def _tell_loss(reason: str) -> None:
    with contextlib.suppress(OSError):  # the disk fails; training will find that out and say it
        if _record is not None:
            _record(reason)
