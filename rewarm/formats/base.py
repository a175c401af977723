"""Which model a run or imported weights come from, as ``state.json`` says: for the model card of what is exported."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewarm.formats.strict_json import Record

__all__ = ['Base']


class Base(Record):
    """A model that others have made."""

    name: Annotated[str, Field(max_length=300)] | None = None
    """Its Hugging Face id; ``None`` if it is not known."""
    licence: Annotated[str, Field(max_length=60)] | None = None
    """As Hugging Face abbreviates it; ``None`` if its files do not name one."""

    def to_json(self) -> dict[str, str | None]:
        """For ``state.json``."""
        return {'name': self.name, 'licence': self.licence}
