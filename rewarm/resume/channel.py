"""A line from every rank to rank 0 that training does not use: short JSON messages over TCP.

Not a ``TCPStore``: its client waits without limit for a server that is frozen, and nobody learns there that a connection
was closed, which is the fastest sign of a process that is gone.
"""

import ipaddress
import json
import os
import secrets
import selectors
import socket
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

__all__ = ['Hub', 'Line', 'Peer']

Message = dict[str, Any]

LARGEST_MESSAGE_BYTES = 1 << 16


@dataclass
class Peer:
    """What the hub knows of a rank.

    Args:
        message (Message): The last one; empty before the first.
        heard_at (float): When it came, on the clock of ``time.monotonic``; the hub's start before the first.
        closed_at (float | None): When its connection was closed since, if it was.
    """

    message: Message
    heard_at: float
    closed_at: float | None = None


@dataclass
class _Connection:
    socket: socket.socket
    unread: bytes = b''
    rank: int | None = None
    peers: dict[int, Peer] = field(default_factory=dict)


class Hub:
    """Rank 0's end: hears every rank, and gives all the same reply.

    Args:
        host (str): The address that the others call; a hub on the loopback is not reachable from other machines.
        ranks (range): The others.
    """

    def __init__(self, host: str, ranks: range) -> None:
        family, _, _, _, where = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        address = str(where[0]) if ipaddress.ip_address(where[0]).is_loopback else ''
        self._server = socket.create_server((address, 0), family=family, backlog=1024)
        self._server.setblocking(False)
        # Not epoll: its kernel object would be shared with forked loader workers.
        self._selector = selectors.PollSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._connections: set[socket.socket] = set()
        self.port: int = self._server.getsockname()[1]
        self.token = secrets.token_hex(16)
        self.peers = {rank: Peer({}, time.monotonic()) for rank in ranks}
        _close_in_children(self)

    def exchange(self, reply: Message, seconds: float) -> None:
        """Hears messages for a while and answers each.

        Args:
            reply (Message): To all.
            seconds (float): How long.
        """
        line = json.dumps(reply).encode() + b'\n'
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data, line)

    def close(self) -> None:
        """Closes every connection."""
        for each in [self._server, *self._connections]:
            each.close()
        self._connections.clear()

    def _accept(self) -> None:
        try:
            accepted, _ = self._server.accept()
        except OSError:  # the caller has hung up again
            return
        accepted.setblocking(False)
        self._connections.add(accepted)
        self._selector.register(accepted, selectors.EVENT_READ, _Connection(accepted))

    def _hear(self, connection: _Connection, reply: bytes) -> None:
        try:
            got = connection.socket.recv(LARGEST_MESSAGE_BYTES)
            *lines, connection.unread = (connection.unread + got).split(b'\n')
            good = bool(got) and len(connection.unread) < LARGEST_MESSAGE_BYTES
            for line in lines:
                good = good and self._note(connection, line)
                if good:
                    connection.socket.sendall(reply)
        except OSError:
            good = False
        if not good:
            self._drop(connection)

    def _note(self, connection: _Connection, line: bytes) -> bool:
        try:
            message = json.loads(line)
            rank = message['rank']
            known = secrets.compare_digest(message.pop('token'), self.token) and rank in self.peers
        except (ValueError, KeyError, TypeError):
            return False
        if known:
            connection.rank = rank
            self.peers[rank] = Peer(message, time.monotonic())
        return known

    def _drop(self, connection: _Connection) -> None:
        if connection.rank is not None:
            self.peers[connection.rank].closed_at = time.monotonic()
        self._selector.unregister(connection.socket)
        self._connections.discard(connection.socket)
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

    def exchange(self, message: Message) -> Message:
        """Says something and waits for a reply, to this or to what was said before.

        Raises:
            ConnectionError: If nobody is there.
            OSError: If no reply comes in time; the connection stays, since closing it would mean this rank's end.
        """
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=self._timeout_seconds)
            self._socket.sendall(json.dumps({**message, 'token': self._token}).encode() + b'\n')
            return self._newest_reply()
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

    def _newest_reply(self) -> Message:
        assert self._socket is not None
        while b'\n' not in self._unread:
            piece = self._socket.recv(LARGEST_MESSAGE_BYTES)
            if not piece:
                raise ConnectionResetError('rank 0 has hung up')
            self._unread += piece
        *lines, self._unread = self._unread.split(b'\n')
        return json.loads(lines[-1])


def _close_in_children(end: Hub | Line) -> None:
    """Loader workers are forked: a copy of a socket in one that outlives its rank would keep the connection open."""
    reference = weakref.ref(end)

    def close() -> None:
        if (alive := reference()) is not None:
            alive.close()

    os.register_at_fork(after_in_child=close)
