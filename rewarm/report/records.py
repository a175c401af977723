"""The run's records on disk as training writes them: lines are appended, and those of batches that are lost are cut."""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic

from rewarm.config.errors import DamagedFile
from rewarm.config.secrets import redacted
from rewarm.formats.files import flush, read_bytes, refuse_lost_link, write_whole
from rewarm.formats.records import EVENTS, Damage, Event, Kind, Record, open_records, parse_lines, read_lines

__all__ = ['Events', 'JsonLines']


class JsonLines(Generic[Record]):
    """A file of JSON lines that only grows, but for :meth:`cut`.

    Args:
        path (Path): The file; made when the first line is written.
        kind (Kind): What its lines are.
    """

    def __init__(self, path: Path, kind: Kind[Record]) -> None:
        self.path = path
        self.kind = kind

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds lines in one write, so that a kill tears at most the last one; a torn one is not written on.

        Raises:
            DamagedFile: If it is no regular file.
            OSError: If the disk is full or fails.
        """
        text = ''.join(_line(record) for record in records)
        with os.fdopen(self._open(), 'ab+') as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b'\n' else '\n' + text
            file.write(text.encode())

    def read(self, damage: Damage | None = None) -> list[Record]:
        """Every line that is whole.

        Args:
            damage (Damage | None): Gets those that are not. Default: they are left out, as the start has told.

        Raises:
            DamagedFile: If it is no regular file.
        """
        return read_lines(self.kind, self.path, Damage(str(self.path)) if damage is None else damage)

    def cut(self, keep: Callable[[Record], bool], damage: Damage) -> int:
        """Keeps the lines for which ``keep`` is true, atomically; damaged and torn ones not at all.

        Args:
            keep (Callable): Whether a line stays.
            damage (Damage): Gets the lines that are damaged.

        Returns:
            int: Lines removed that said something.

        Raises:
            DamagedFile: If it is no regular file; nothing is written.
        """
        kept: list[bytes] = []
        removed = 0
        try:
            with open_records(self.path) as file:
                for text, record in parse_lines(self.kind, file, damage):
                    if keep(record):
                        kept.append(text)
                    else:
                        removed += 1
        except FileNotFoundError:
            refuse_lost_link(self.path)
        write_whole(self.path, b''.join(kept))
        return removed

    def amend(self, applies: Callable[[Record], bool], **values: Any) -> None:
        """Gives some lines other values, atomically; all others stay as they are, byte for byte.

        Args:
            applies (Callable): Whether a line is one of them.
            values (Any): What it says from now on, by key.
        """
        if not any(map(applies, self.read())):
            return
        with open_records(self.path) as file:
            lines = list(parse_lines(self.kind, file, Damage(str(self.path))))
        texts = [_line({**json.loads(text), **values}).encode() if applies(line) else text for text, line in lines]
        write_whole(self.path, b''.join(texts))

    def sync(self) -> None:
        """Forces what was appended to the disk."""
        if self.path.exists():
            flush(self.path)

    def _open(self) -> int:
        """Opens the file to append to it. What a link leads to is not written to: a copy takes the link's place."""
        try:
            try:
                handle = self._open_without_link()
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                refuse_lost_link(self.path)
                write_whole(self.path, read_bytes(self.path))
                handle = self._open_without_link()
        except IsADirectoryError:
            raise DamagedFile(self.path, what='it is a folder') from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise DamagedFile(self.path, what='it is no regular file')
        return handle

    def _open_without_link(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self.path, flags, 0o666)


def _line(record: dict[str, Any]) -> str:
    """One line of JSON, which knows no NaN and no infinity: ``null`` stands for them."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + '\n'


class Events:
    """``events.jsonl``: what happened and when; never cut, since it tells of the machines and not of the training.

    Args:
        run_folder (Path): The run's folder.
        active (bool): Whether this process writes (only global rank 0 does).
    """

    def __init__(self, run_folder: Path, *, active: bool) -> None:
        self.lines: JsonLines[Event] = JsonLines(run_folder / 'events.jsonl', EVENTS)
        self.active = active
        self.position: dict[str, Any] = {'batch': 0, 'tokens': 0, 'stage': None}

    def at(self, *, batch: int, tokens: int, stage: str | None) -> None:
        """Says where the run is; later events carry it."""
        self.position = {'batch': batch, 'tokens': tokens, 'stage': stage}

    def record(self, event: str, **fields: Any) -> None:
        """Writes one event with the time (UTC) and the position."""
        if self.active:
            fields = {name: redacted(value) for name, value in fields.items()}  # a reason may be any library's words
            now = datetime.now(UTC).isoformat(timespec='milliseconds')
            self.lines.append([{'time': now, 'event': event, **self.position, **fields}])

    def batches_of(self, event: str) -> list[int]:
        """The batch of each event of that name so far."""
        return [each.batch for each in self.lines.read() if each.event == event and each.batch is not None]

    def record_once(self, event: str, **fields: Any) -> None:
        """Writes an event unless the same one at the same batch of the same stage is there from an earlier start."""
        same = {**self.position, **fields}
        wanted = (event, same['stage'], same['batch'])
        if self.active and all((old.event, old.stage, old.batch) != wanted for old in self.lines.read()):
            self.record(event, **fields)
