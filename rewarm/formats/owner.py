"""``owner.json`` of a run folder in a bucket: which start of the run has it."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, field_validator

from rewarm.formats.strict_json import Record, parse_record

__all__ = ['LARGEST_OWNER_BYTES', 'Claim', 'parse_claim']

LARGEST_OWNER_BYTES = 64 << 10


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


def parse_claim(data: bytes, where: object) -> Claim:
    """Reads ``owner.json``.

    Raises:
        DamagedFile: If it is not one, in any point.
    """
    return parse_record(Claim, data, where)
