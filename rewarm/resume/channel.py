"""A line from every rank to rank 0 that training does not use: short JSON messages over TCP.

Not a ``TCPStore``: its client waits without limit for a server that is frozen, and nobody learns there that a connection
was closed, which is the fastest sign of a process that is gone.

Anybody who reaches the port can connect. A connection begins with the token, which is compared before anything is parsed;
until a rank has spoken on it, it is a stranger's: few of them are open at a time, for seconds, and nothing else is read.
"""

import errno
import hmac
import os
import secrets
import selectors
import socket
import time
import weakref
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from rewarm.formats.strict_json import parse_record
from rewarm.resume.messages import Reply, Report

__all__ = ['Hub', 'Line', 'Peer']

LARGEST_MESSAGE_BYTES = 1 << 16
TOKEN_BYTES = 32

STRANGERS = 16
"""Connections of strangers beside those of ranks that have yet to come; the oldest makes room for a new one."""

STRANGER_SECONDS = 5.0
"""For a stranger to become a rank."""

CALLERS_PER_EXCHANGE = 64
"""New connections looked at in one call: a flood of them takes a few per cent of a core and no more."""


@dataclass
class Peer:
    """What is known of a rank.

    Args:
        heard_at (float): When its last message came, on the clock of ``time.monotonic``; the start before the first.
        message (Report | None): The last one.
        closed_at (float | None): When its connection was closed since, if it was.
    """

    heard_at: float
    message: Report | None = None
    closed_at: float | None = None


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    since: float
    unread: bytes = b''
    trusted: bool = False  # it has said the token
    rank: int | None = None


class Hub:
    """Rank 0's end: hears every rank, and gives all the same reply.

    Args:
        host (str): The address that the others call. The hub listens there alone, or, if no interface has it (it is
            translated on the way), at the address of the interface that leads to it.
        ranks (range): The others.

    Raises:
        OSError: If this machine has no such address.
    """

    def __init__(self, host: str, ranks: range) -> None:
        self._server = _listen(host)
        self._server.setblocking(False)
        # Not epoll: its kernel object would be shared with forked loader workers.
        self._selector = selectors.PollSelector()
        self._strangers: dict[socket.socket, _Connection] = {}  # the oldest first
        self._speakers: dict[int, _Connection] = {}
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(TOKEN_BYTES // 2)
        self.peers = {rank: Peer(time.monotonic()) for rank in ranks}
        _close_in_children(self)

    def exchange(self, reply: Reply, seconds: float) -> None:
        """Hears messages for a while and answers each.

        Args:
            reply (Reply): To all.
            seconds (float): How long.
        """
        line = to_json(reply) + b'\n'
        end = time.monotonic() + seconds
        callers = CALLERS_PER_EXCHANGE
        self._selector.register(self._server, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            self._drop_late_strangers()
            for key, _ in self._selector.select(left):
                if key.fileobj is not self._server:
                    self._hear(key.data, line)
                    continue
                callers = callers - 1 if self._accept(line) else 0
                if callers == 0:
                    self._selector.unregister(self._server)
        if callers > 0:
            self._selector.unregister(self._server)

    def close(self) -> None:
        """Closes every connection."""
        speakers = [speaker.socket for speaker in self._speakers.values()]
        for each in [self._server, *self._strangers, *speakers]:
            each.close()
        self._strangers.clear()
        self._speakers.clear()

    def _accept(self, reply: bytes) -> bool:
        """Whether there may be more callers that can be let in."""
        try:
            accepted, _ = self._server.accept()
        except OSError as error:
            return error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        accepted.setblocking(False)
        if len(self._strangers) >= STRANGERS + len(self.peers) - len(self._speakers):
            self._drop(next(iter(self._strangers.values())))
        connection = self._strangers[accepted] = _Connection(accepted, time.monotonic())
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        self._hear(connection, reply)  # a rank speaks at once, and so is no stranger that makes room
        return True

    def _hear(self, connection: _Connection, reply: bytes) -> None:
        if connection.socket.fileno() < 0:  # dropped since it was found to be readable
            return
        try:
            alive = self._read(connection, reply)
        except BlockingIOError:
            return
        except Exception:  # whatever a message does, it ends its own connection and not the watch
            alive = False
        if not alive:
            self._drop(connection)

    def _read(self, connection: _Connection, reply: bytes) -> bool:
        wanted = LARGEST_MESSAGE_BYTES if connection.trusted else TOKEN_BYTES - len(connection.unread)
        got = connection.socket.recv(wanted)
        connection.unread += got
        if not connection.trusted:
            if len(connection.unread) < TOKEN_BYTES:
                return bool(got)
            if not hmac.compare_digest(connection.unread, self.token.encode()):
                return False
            connection.trusted, connection.unread = True, b''
            return self._read(connection, reply)
        *lines, connection.unread = connection.unread.split(b'\n')
        known = all(self._note(connection, parse_record(Report, line, 'a message')) for line in lines)
        if not got or not known or len(connection.unread) >= LARGEST_MESSAGE_BYTES:
            return False
        return not lines or connection.socket.send(reply) == len(reply)

    def _note(self, connection: _Connection, message: Report) -> bool:
        rank = message.rank
        if rank not in self.peers or connection.rank not in (None, rank):
            return False
        if connection.rank is None:
            if (before := self._speakers.get(rank)) is not None:
                self._drop(before)  # the rank has connected again
            del self._strangers[connection.socket]
            connection.rank = rank
            self._speakers[rank] = connection
        self.peers[rank] = Peer(time.monotonic(), message)
        return True

    def _drop_late_strangers(self) -> None:
        latest = time.monotonic() - STRANGER_SECONDS
        while self._strangers and (oldest := next(iter(self._strangers.values()))).since < latest:
            self._drop(oldest)

    def _drop(self, connection: _Connection) -> None:
        if connection.rank is None:
            del self._strangers[connection.socket]
        else:
            del self._speakers[connection.rank]
            self.peers[connection.rank].closed_at = time.monotonic()
        self._selector.unregister(connection.socket)
        connection.socket.close()


class Line:
    """Another rank's end: says something, and hears rank 0's reply; connects again when it has to.

    Args:
        host (str): Rank 0's address.
        port (int): The hub's.
        token (str): The hub's; without it nobody is heard.
        timeout_seconds (float): For a reply.
    """

    def __init__(self, host: str, port: int, token: str, timeout_seconds: float) -> None:
        self._address = (host, port)
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._socket: socket.socket | None = None
        self._unread = b''
        _close_in_children(self)

    def exchange(self, message: Report) -> Reply:
        """Says something and waits for a reply, to this or to what was said before.

        Raises:
            ConnectionError: If nobody is there, or nobody who speaks as rank 0 does.
            OSError: If no reply comes in time; the connection stays, since closing it would mean this rank's end.
        """
        line = to_json(message) + b'\n'
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=self._timeout_seconds)
                line = self._token.encode() + line
            self._socket.settimeout(self._timeout_seconds)
            self._socket.sendall(line)
            return self._newest_reply(time.monotonic() + self._timeout_seconds)
        except TimeoutError:
            raise
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up."""
        self._unread = b''
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _newest_reply(self, end: float) -> Reply:
        assert self._socket is not None
        while b'\n' not in self._unread:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError('no reply of rank 0 in time')
            self._socket.settimeout(left)
            piece = self._socket.recv(LARGEST_MESSAGE_BYTES)
            if not piece:
                raise ConnectionResetError('rank 0 has hung up')
            self._unread += piece
            if len(self._unread) > 2 * LARGEST_MESSAGE_BYTES:
                raise ConnectionAbortedError('what answers there is not rank 0')
        *lines, self._unread = self._unread.split(b'\n')
        try:
            return parse_record(Reply, lines[-1], "rank 0's reply")
        except ValueError as error:
            raise ConnectionAbortedError(f'what answers there is not rank 0 ({error})') from error


def _listen(host: str) -> socket.socket:
    addresses = [(family, where) for family, _, _, _, where in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    errors: list[OSError] = []
    for family, where in addresses:
        try:
            return _listen_at(family, where)
        except OSError as error:
            errors.append(error)
    if all(error.errno != errno.EADDRNOTAVAIL for error in errors):
        raise errors[0]
    family, where = addresses[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((where[0], 9, *where[2:]))  # sends nothing
        own = probe.getsockname()
    return _listen_at(family, (own[0], 0, *own[2:]))


def _listen_at(family: int, where: Any) -> socket.socket:
    return socket.create_server(where, family=family, backlog=1024)


def _close_in_children(end: Hub | Line) -> None:
    """Loader workers are forked: a copy of a socket in one that outlives its rank would keep the connection open."""
    reference = weakref.ref(end)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    os.register_at_fork(after_in_child=close)
