"""What ranks say to each other over the watch channel: each message is one line of strict JSON."""

from typing import Annotated

from pydantic import Field

from rewarm.formats.strict_json import Record
from rewarm.resume.verdict import Cause

__all__ = ['Reply', 'Report']


class Report(Record):
    """What a rank says of itself."""

    rank: Annotated[int, Field(ge=0)]
    """Its global rank."""
    host: str
    """Its machine."""
    pid: int
    """Its process."""
    count: int
    """How often it has progressed."""
    where: str
    """What it is at."""
    idle_seconds: float
    """Since it has last progressed."""
    patience: float
    """Times as long as usual that it may be idle or silent."""
    left: tuple[int, str] | None
    """Exit code and reason, if it leaves."""
    knows: bool
    """Whether it knows why the run ends."""


class Reply(Record):
    """What rank 0 says to every other rank."""

    cause: Cause | None
    """Why all have to leave."""
    zero: Report
    """Rank 0 itself."""
