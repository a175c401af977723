"""Watches that every rank lives and progresses, so that one that dies or hangs ends the others with its name.

Each rank has a thread that tells rank 0 once a second what it is at, on a channel of its own (``channel``). Rank 0 finds
the cause (``verdict``) and tells it to all; of rank 0's own end the others convince themselves. Whoever knows the cause
prints it, gives the main thread a moment to leave by itself, and then ends the process: the main thread may be inside a
collective that never returns. If it holds the interpreter's lock there, the kernel ends the process (``backstop``).
"""

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from rewarm import terminal
from rewarm.config.errors import UserError
from rewarm.resume.backstop import Backstop
from rewarm.resume.channel import Hub, Line, Peer
from rewarm.resume.messages import Reply, Report
from rewarm.resume.preemption import EXIT_PREEMPTED
from rewarm.resume.verdict import (
    STARTING_PATIENCE,
    Cause,
    Member,
    exit_code_of,
    find_failed,
    find_hung,
    find_lost,
    may_be_an_echo,
)
from rewarm.terminal import printable

__all__ = ['Cause', 'Watchdog']

LONGEST_REASON = 2000
"""Characters of a rank's last words, so that they fit into a message."""

CLEAN_UP_SECONDS = 60
"""A rank that failed may take this long to end; communicators of ranks that are gone can hang there."""


class Watchdog:
    """A thread that watches this rank and, with rank 0's help, all others; use it as a context.

    Args:
        rank (int): This process's global rank.
        world_size (int): How many there are.
        timeout_seconds (float): Without progress on any rank for this long, the run counts as hung; this and silence
            may last three times as long until ``progress`` has said that the first batch is done.
        agree (Callable): Runs a function on rank 0 and gives its result to every rank; called once, at the start.
        host (str | None): Rank 0's address. Default: ``MASTER_ADDR``, else this machine.
        record (Callable[..., object] | None): Writes an event.
        folder (Path | None): Where the stacks of a hang go too, as ``stacks-rank<n>.txt``.
        interval_seconds (float): Between two messages of a rank.
        gone_after_seconds (float): A rank that is silent for this long is gone.
        leave_seconds (float): From knowing the cause to the end of the process, at most.
    """

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        timeout_seconds: float,
        agree: Callable[[Callable[[], tuple[int, str]]], tuple[int, str]],
        host: str | None = None,
        record: Callable[..., object] | None = None,
        folder: Path | None = None,
        interval_seconds: float = 1.0,
        gone_after_seconds: float = 10.0,
        leave_seconds: float = 5.0,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self.agree = agree
        self.host = host or os.environ.get('MASTER_ADDR', '127.0.0.1')
        self.record = record
        self.folder = folder
        self.interval_seconds = interval_seconds
        self.gone_after_seconds = gone_after_seconds
        self.leave_seconds = leave_seconds
        self._progress: tuple[int, str, float, bool] = (0, 'its start', time.monotonic(), False)
        self._left: tuple[int, str] | None = None
        self._left_at = 0.0
        self._cause: Cause | None = None
        self._found = threading.Event()  # the cause is known
        self._told = threading.Event()  # the others know that this rank leaves
        self._wake = threading.Event()
        self._closing = False
        self._hub: Hub | None = None
        self._line: Line | None = None
        self._zero = Peer(time.monotonic())  # rank 0, as the others know it
        self._thread: threading.Thread | None = None
        self._backstop = Backstop(EXIT_PREEMPTED)

    def start(self) -> None:
        """Connects the ranks and begins to watch; every rank calls it at the same point.

        Raises:
            UserError: If this rank cannot reach rank 0.
        """
        if self.world_size > 1:
            port, token = self.agree(self._open_hub)
            if self.rank != 0:
                self._line = Line(self.host, port, token, 2 * self.interval_seconds)
                self._meet(port)
        self._progress = (0, 'its start', time.monotonic(), False)
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
        self._thread.start()

    def progress(self, where: str, *, settled: bool | None = None) -> None:
        """Says what this rank is at; cheap enough for every step.

        Args:
            where (str): Such as ``forward of batch 12``.
            settled (bool | None): Whether the first batch is done and the usual time applies. Default: as before.
        """
        count, _, _, before = self._progress
        self._progress = (count + 1, where, time.monotonic(), before if settled is None else settled)

    def explain(self, error: BaseException) -> Cause | None:
        """Finds out whether another rank is the cause of an error of this one; waits for it, within bounds.

        Args:
            error (BaseException): What was raised here.

        Returns:
            Cause | None: The true cause, of which everyone leaves with ``exit_code``; None if the error is this rank's own.
        """
        if self.world_size == 1 or not may_be_an_echo(error):
            return None
        self._found.wait(self.gone_after_seconds + 3 * self.interval_seconds)
        return self._cause

    def leaving(self, code: int, reason: str) -> None:
        """Tells the others that this rank is about to leave, and waits a moment until they know.

        Args:
            code (int): Its exit code. With 0 and 75 the others go on; with any other they leave too.
            reason (str): For the others to print.
        """
        if self._left is not None or self._thread is None or self.world_size == 1:
            return
        self._left, self._left_at = (code, printable(reason)), time.monotonic()
        self._wake.set()
        self._told.wait(self.leave_seconds)

    def close(self) -> None:
        """Ends the watch; the others go on without this rank."""
        self.leaving(0, 'finished')
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2 * self.leave_seconds)
            self._thread = None

    def __enter__(self) -> 'Watchdog':
        """Starts it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Tells the others why this rank leaves, and ends the watch."""
        if self._cause is not None:
            self.leaving(self._cause.exit_code, self._cause.text)
        elif error is not None:
            self.leaving(exit_code_of(error), f'{type(error).__name__}: {error}'[:LONGEST_REASON])
        self.close()
        if self._left is not None and (self._cause or error) is not None:
            Backstop(self._left[0]).arm(CLEAN_UP_SECONDS)

    def _open_hub(self) -> tuple[int, str]:
        try:
            self._hub = Hub(self.host, range(1, self.world_size))
        except OSError as error:
            raise UserError(f'Rank 0 cannot listen at {self.host} ({error}). Check MASTER_ADDR') from error
        return self._hub.port, self._hub.token

    def _meet(self, port: int) -> None:
        """The first words with rank 0."""
        assert self._line is not None
        end = time.monotonic() + self.gone_after_seconds
        while True:
            try:
                self._zero = Peer(time.monotonic(), self._line.exchange(self._message()).zero)
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f'Rank {self.rank} cannot reach rank 0 at {self.host}:{port} ({error}). The ranks watch each '
                        "other there: open the machines' ports to each other, and check MASTER_ADDR"
                    ) from error
            time.sleep(self.interval_seconds / 4)

    def _watch(self) -> None:
        try:
            while not self._is_over():
                self._backstop.arm(self._longest_silence_seconds())
                self._exchange(self.interval_seconds)
                cause = self._find_cause()
                if cause is not None and self._left is None:
                    self._leave(cause)
        except Exception as error:
            terminal.say(f'The watchdog of rank {self.rank} has failed: {error!r}')
            if self.record is not None:
                self.record('watch_failed', rank=self.rank, reason=repr(error)[:LONGEST_REASON])
        finally:
            self._told.set()
            self._backstop.close()
            for end in (self._hub, self._line):
                if end is not None:
                    end.close()

    def _is_over(self) -> bool:
        if self._left is not None and time.monotonic() > self._left_at + self.leave_seconds:
            self._told.set()  # as many as can be
        return self._closing and (self._told.is_set() or self.world_size == 1)

    def _longest_silence_seconds(self) -> float:
        """After which this process, whose threads cannot run, is of no use: the others have given it up."""
        patience = 1.0 if self._progress[3] else STARTING_PATIENCE
        return patience * (self.timeout_seconds if self.world_size == 1 else 2 * self.gone_after_seconds)

    def _exchange(self, seconds: float) -> None:
        """Tells and hears what is new, and lets some time pass."""
        if self._hub is not None:
            self._talk_to_all(seconds)
        elif self._line is not None:
            self._talk_to_zero()
            self._wake.wait(seconds if self._left is None else seconds / 10)
        else:
            self._wake.wait(seconds)
        self._wake.clear()

    def _talk_to_all(self, seconds: float) -> None:
        assert self._hub is not None
        left = self._left
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._wake.is_set():
            reply = Reply(cause=self._cause, zero=self._message())
            self._hub.exchange(reply, seconds / 20)
            if reply.cause is None and find_failed(self._members()) is not None:
                break
        if left is not None and self._all_know():
            self._told.set()

    def _all_know(self) -> bool:
        peers = () if self._hub is None else self._hub.peers.values()
        return all(peer.closed_at is not None or (peer.message and peer.message.knows) for peer in peers)

    def _talk_to_zero(self) -> None:
        assert self._line is not None
        message = self._message()
        if _has_left(self._zero) and self._zero.closed_at is not None:
            self._told.set()  # nobody is there any more
            return
        try:
            reply = self._line.exchange(message)
        except OSError as error:
            if isinstance(error, ConnectionError) and self._zero.closed_at is None:
                self._zero.closed_at = time.monotonic()
            if self._cause is not None:
                self._told.set()  # rank 0 knows already, or is the cause
            return
        self._zero = Peer(time.monotonic(), reply.zero)
        self._cause = self._cause or reply.cause
        if message.left is not None:
            self._told.set()

    def _message(self) -> Report:
        count, where, at, settled = self._progress
        return Report(
            rank=self.rank,
            host=printable(socket.gethostname()),
            pid=os.getpid(),
            count=count,
            where=printable(where),
            idle_seconds=time.monotonic() - at,
            patience=1.0 if settled else STARTING_PATIENCE,
            left=self._left,
            knows=self._left is not None or self._cause is not None or _has_left(self._zero),
        )

    def _find_cause(self) -> Cause | None:
        if self._cause is not None:
            return self._cause
        if self._line is not None and not _has_left(self._zero):
            zero = _member(0, self._zero)
            return find_lost([zero], **self._limits)
        members = list(self._members())
        others = [member for member in members if member.rank != self.rank]
        self._cause = (
            find_failed(members)
            or find_lost(others, **self._limits)
            or find_hung(members, idle_seconds=self.timeout_seconds)
        )
        return self._cause

    @property
    def _limits(self) -> dict[str, float]:
        return {'silent_seconds': self.gone_after_seconds, 'closed_seconds': 2 * self.interval_seconds}

    def _members(self) -> Iterator[Member]:
        """All that this rank knows of: rank 0 knows every one, the others in the end only themselves."""
        yield _member(self.rank, Peer(time.monotonic(), self._message()))
        if self._hub is not None:
            yield from (_member(rank, peer) for rank, peer in self._hub.peers.items())

    def _leave(self, cause: Cause) -> None:
        """Prints the cause and ends the process, unless the main thread comes to its own end before."""
        self._cause = cause
        end = time.monotonic() + self.leave_seconds
        self._backstop.arm(2 * self.leave_seconds)
        terminal.say(f'{cause.text[0].upper()}{cause.text[1:]}. Leaving with {cause.exit_code}.')
        if cause.kind == 'hung':
            terminal.say(_stacks())
        self._found.set()
        # The disk may be what hangs.
        notes = threading.Thread(target=self._note, args=(cause,), daemon=True)
        notes.start()
        while (left := end - time.monotonic()) > 0:
            self._exchange(min(left, self.interval_seconds))
            if self._closing and self._all_know():
                return
            if cause.kind == 'hung' and not notes.is_alive() and self._all_know():
                break
        terminal.drain()
        os._exit(cause.exit_code)

    def _note(self, cause: Cause) -> None:
        if cause.kind == 'hung' and self.folder is not None:
            (self.folder / f'stacks-rank{self.rank}.txt').write_text(_stacks())
        about = {'rank': cause.rank, 'host': cause.host, 'seconds': cause.seconds}
        if self.record is not None and cause.kind == 'lost':
            self.record('rank_lost', **about)
        elif self.record is not None and cause.kind == 'hung':
            self.record('hang', **about, where=cause.where)


def _has_left(peer: Peer) -> bool:
    return peer.message is not None and peer.message.left is not None


def _member(rank: int, peer: Peer) -> Member:
    now = time.monotonic()
    silent = now - peer.heard_at
    closed = 0.0 if peer.closed_at is None else now - peer.closed_at
    if (message := peer.message) is None:
        return Member(rank, silent_seconds=silent, closed_seconds=closed)
    return Member(
        rank,
        host=message.host,
        pid=message.pid,
        count=message.count,
        where=message.where,
        idle_seconds=message.idle_seconds + silent,
        patience=message.patience,
        silent_seconds=silent,
        closed_seconds=closed,
        left=message.left,
    )


def _stacks() -> str:
    """What every thread is at, by way of memory: a terminal that stands still must not hold this process here."""
    with open(os.memfd_create('stacks'), 'r+') as file:
        faulthandler.dump_traceback(file=file)
        file.seek(0)
        return file.read()
