"""Which rank is the cause when training stands still: pure rules over what is known of each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rewarm.config.errors import UserError
from rewarm.formats.strict_json import Record
from rewarm.resume.preemption import EXIT_PREEMPTED

__all__ = [
    'STARTING_PATIENCE',
    'Cause',
    'Member',
    'exit_code_of',
    'find_failed',
    'find_hung',
    'find_lost',
    'may_be_an_echo',
]

STARTING_PATIENCE = 3.0
"""Until a stage's first batch is done: downloads and compilation, and imports that hold the interpreter's lock."""

EXIT_USER_ERROR = 2
EXIT_BUG = 1

COLLECTIVE = re.compile(r'gloo|nccl|collective|process ?group|connection|socket|peer|timed? ?out|broken pipe', re.I)


@dataclass(frozen=True)
class Member:
    """A rank as it is known at this moment.

    Args:
        rank (int): Its global rank.
        host (str): Its machine.
        pid (int): Its process.
        count (int): How often it has progressed.
        where (str): What it was at then.
        idle_seconds (float): Since then.
        patience (float): Times as long as usual that it may be idle or silent; more at its start.
        silent_seconds (float): Since it was last heard; 0 for the rank that looks.
        closed_seconds (float): Since its connection was closed; 0 if it was not.
        left (tuple[int, str] | None): Exit code and reason, if it has said that it leaves.
    """

    rank: int
    host: str = '?'
    pid: int = 0
    count: int = 0
    where: str = 'its start'
    idle_seconds: float = 0.0
    patience: float = STARTING_PATIENCE
    silent_seconds: float = 0.0
    closed_seconds: float = 0.0
    left: tuple[int, str] | None = None

    @property
    def failed(self) -> bool:
        """Whether it left for a reason that is neither the end nor a preemption."""
        return self.left is not None and self.left[0] not in (0, EXIT_PREEMPTED)


class Cause(Record):
    """Why this process has to leave."""

    kind: Literal['lost', 'failed', 'hung']
    """A rank is gone without a word; has failed and said so; hangs."""
    rank: int
    """Which."""
    host: str
    """Its machine."""
    pid: int
    """Its process."""
    where: str
    """What it was last at."""
    seconds: float
    """Since it was last heard (lost) or has last progressed (hung)."""
    reason: str
    """Its own words, if it failed."""
    exit_code: int
    """What everyone leaves with."""

    @property
    def text(self) -> str:
        """The cause in a sentence."""
        who = f'rank {self.rank} (host {self.host}, pid {self.pid})'
        if self.kind == 'failed':
            return f'{who} failed, last at {self.where}: {self.reason}'
        if self.kind == 'lost':
            return f'{who} is gone or frozen: last heard {self.seconds:.0f} s ago, last at {self.where}'
        return f'nothing moves: {who} is the furthest behind, for {self.seconds:.0f} s at {self.where}'


def find_failed(members: Iterable[Member]) -> Cause | None:
    """A rank that has said that it leaves because of an error.

    Args:
        members (Iterable[Member]): The ranks, in the order in which they said so.

    Returns:
        Cause | None: The first; everyone leaves with its exit code.
    """
    for member in members:
        if member.left is not None and member.failed:
            code, reason = member.left
            return _cause('failed', member, member.silent_seconds, reason, code)
    return None


def find_lost(members: Iterable[Member], *, silent_seconds: float, closed_seconds: float) -> Cause | None:
    """A rank that is gone without a word.

    Args:
        members (Iterable[Member]): The ranks that are watched.
        silent_seconds (float): Silence that means it.
        closed_seconds (float): A closed connection that is not opened again for this long means it too.

    Returns:
        Cause | None: The one that was heard least recently.
    """
    lost = [
        member
        for member in members
        if member.left is None
        and (member.silent_seconds >= silent_seconds * member.patience or member.closed_seconds >= closed_seconds)
    ]
    if not lost:
        return None
    member = max(lost, key=lambda member: member.silent_seconds)
    return _cause('lost', member, member.silent_seconds)


def find_hung(members: Iterable[Member], *, idle_seconds: float) -> Cause | None:
    """The rank that the others wait for, once nobody has progressed for longer than it may.

    Args:
        members (Iterable[Member]): The ranks that are watched.
        idle_seconds (float): Without progress, that mean it.

    Returns:
        Cause | None: The one with the least progress.
    """
    here = [member for member in members if member.left is None]
    if not here or any(member.idle_seconds < idle_seconds * member.patience for member in here):
        return None
    member = min(here, key=lambda member: (member.count, -member.idle_seconds))
    return _cause('hung', member, member.idle_seconds)


def may_be_an_echo(error: BaseException | None) -> bool:
    """Whether an error may be what a collective raises when another rank is gone.

    Args:
        error (BaseException | None): What was raised; what it was raised from counts too.
    """
    if error is None:
        return False
    if isinstance(error, RuntimeError) and COLLECTIVE.search(str(error)) is not None:
        return True
    return may_be_an_echo(error.__cause__ or error.__context__)


def exit_code_of(error: BaseException) -> int:
    """What a process leaves with that an error ends.

    Args:
        error (BaseException): What was raised.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_BUG if error.code else 0
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_BUG


def _cause(
    kind: Literal['lost', 'failed', 'hung'],
    member: Member,
    seconds: float,
    reason: str = '',
    exit_code: int = EXIT_PREEMPTED,
) -> Cause:
    return Cause(
        kind=kind,
        rank=member.rank,
        host=member.host,
        pid=member.pid,
        where=member.where,
        seconds=round(seconds, 1),
        reason=reason,
        exit_code=exit_code,
    )
