"""One question to a metadata service over HTTP, answered by a deadline or not at all.

Whoever answers there may be anybody: the deadline holds for the name's lookup, the connection, the headers and the body
together, however slowly they drip. Redirects and proxies are not followed: the address is the machine's own.
"""

import http.client
import ipaddress
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

__all__ = ['LARGEST_ANSWER_BYTES', 'Answer', 'ask']

LARGEST_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """One answer of a metadata service.

    Args:
        status (int): Of HTTP.
        body (bytes): As it came.
        headers (Message): Of HTTP.
        asked_at (float): On the clock of ``time.monotonic``, before the question was sent.
    """

    status: int
    body: bytes
    headers: Message
    asked_at: float

    @property
    def text(self) -> str:
        """The body as UTF-8; ``ValueError`` if it is none."""
        return self.body.decode()

    def deadline(self, moment: datetime, documented_seconds: float) -> float:
        """A moment that the answer names, on the clock of ``time.monotonic``.

        Args:
            moment (datetime): In UTC unless it says otherwise.
            documented_seconds (float): The notice that the cloud promises.
        """
        if (now := self._date()) is not None:
            left = (_aware(moment) - now).total_seconds() - 1  # `Date` has whole seconds
        else:
            left = min((_aware(moment) - datetime.now(UTC)).total_seconds(), documented_seconds)
        return self.asked_at + left

    def _date(self) -> datetime | None:
        try:
            return _aware(parsedate_to_datetime(self.headers.get('Date', '')))
        except (ValueError, TypeError, IndexError, OverflowError):  # an odd one is as none
            return None


def ask(
    url: str, headers: dict[str, str], *, method: str, timeout_seconds: float, silence_seconds: float | None = None
) -> Answer:
    """Asks once.

    Args:
        url (str): ``http://``, a host, perhaps a port, and a path.
        headers (dict[str, str]): Of the question.
        method (str): Of HTTP.
        timeout_seconds (float): From the question to the end of the answer.
        silence_seconds (float | None): Instead, from the question to the answer's first byte; the time-out then holds for
            the connection and for the rest of the answer.

    Raises:
        OSError: If no complete answer comes in time, or it is too large or no HTTP.
        ValueError: If the address or a header cannot be sent.
    """
    parts = urlsplit(url)
    if parts.scheme != 'http' or not parts.hostname or '@' in parts.netloc:
        raise ValueError('the address of a metadata service is like http://169.254.169.254')
    asked_at = time.monotonic()
    target = f'{parts.path or "/"}?{parts.query}' if parts.query else parts.path or '/'
    with _connect(parts.hostname, parts.port or 80, asked_at + timeout_seconds) as clocked:
        try:
            connection = http.client.HTTPConnection(parts.hostname, parts.port)
            connection.sock = clocked
            connection.request(method, target, headers=headers)
            if silence_seconds is not None:
                clocked.wait_for_the_first_byte(asked_at + silence_seconds)
                clocked.deadline = time.monotonic() + timeout_seconds
            response = connection.getresponse()
            body = response.read(LARGEST_ANSWER_BYTES + 1)
        except http.client.HTTPException as error:
            raise OSError(f'it does not speak HTTP: {error!r}') from error
    if len(body) > LARGEST_ANSWER_BYTES:
        raise OSError(f'its answer is larger than {LARGEST_ANSWER_BYTES:,} bytes')
    if response.length:
        raise OSError(f'its answer breaks off {response.length:,} bytes before its end')
    return Answer(response.status, body, response.headers, asked_at)


class _ClockedSocket(socket.socket):
    """A connection whose every wait ends at one deadline."""

    deadline: float

    def wait_for_the_first_byte(self, deadline: float) -> None:
        self.settimeout(_left(deadline))
        self.recv(1, socket.MSG_PEEK)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(_left(self.deadline))
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self.settimeout(_left(self.deadline))
        super().sendall(*args, **kwargs)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError('timed out')
    return left


def _connect(host: str, port: int, deadline: float) -> _ClockedSocket:
    failed: OSError | None = None
    for family, kind, protocol, _, where in _resolve(host, port, deadline):
        clocked = _ClockedSocket(family, kind, protocol)
        clocked.deadline = deadline
        try:
            clocked.settimeout(_left(deadline))
            clocked.connect(where)
            return clocked
        except OSError as error:
            clocked.close()
            failed = failed or error
    raise failed or OSError(f'{host} has no address')


def _resolve(host: str, port: int, deadline: float) -> list[Any]:
    """The addresses of a host; the system's own lookup of a name knows no deadline, so a thread waits for it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[Any] = []
    failed: list[Exception] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # ValueError: no name that can be looked up
            failed.append(error)

    thread = threading.Thread(target=look_up, name='lookup', daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise TimeoutError(f'the name {host} was not found in time')
    return found
