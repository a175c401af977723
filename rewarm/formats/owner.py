"""Who has a run: ``run.lock`` of a run folder, and ``owner.json`` of one in a bucket."""

import errno
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from rewarm.formats.files import read_bytes
from rewarm.formats.strict_json import Record, parse_record

__all__ = ['HELD', 'LARGEST_OWNER_BYTES', 'LOCK_FILE', 'NO_LOCKS', 'Claim', 'Holder', 'parse_claim', 'read_holder']

LARGEST_OWNER_BYTES = 64 << 10
LOCK_FILE = 'run.lock'

HELD = frozenset({errno.EACCES, errno.EAGAIN})
"""What a lock is refused with because another process has it."""
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""What it is refused with where a file system, or the way it is mounted, has none."""


class Claim(Record):
    """A start of a run, which took it over."""

    id: Annotated[str, Field(max_length=100)]
    """Drawn anew at each start."""
    host: Annotated[str, Field(max_length=300)]
    pid: Annotated[int, Field(ge=0)]
    since: datetime
    """When it took the run over, in UTC."""

    @field_validator('since')
    @classmethod
    def _in_utc(cls, since: datetime) -> datetime:
        if not 1970 < since.year < 2100:
            raise ValueError('is no time at which a run can have begun')
        return since.replace(tzinfo=UTC) if since.tzinfo is None else since.astimezone(UTC)


class Holder(Record):
    """The process that has written ``run.lock``; whether it still holds it only the kernel knows."""

    pid: Annotated[int, Field(ge=0)]
    host: Annotated[str, Field(max_length=300)]
    since: Annotated[float, Field(ge=0, lt=4e9)]
    """Seconds since the epoch."""


def parse_claim(data: bytes, where: object) -> Claim:
    """Reads ``owner.json``.

    Raises:
        DamagedFile: If it is not one, in any point.
    """
    return parse_record(Claim, data, where)


def read_holder(path: Path) -> Holder:
    """Reads ``run.lock``.

    Never call it in the process that holds the lock: closing the file would give it back.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it says nobody, such as before the holder has signed.
    """
    return parse_record(Holder, read_bytes(path, largest_bytes=LARGEST_OWNER_BYTES), path)
