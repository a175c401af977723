"""The run's records on disk: ``metrics.jsonl``, ``evals.jsonl``, ``events.jsonl``; one JSON object a line, appended."""

import json
import math
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rewarm.formats.files import flush

__all__ = ['Events', 'JsonLines']


class JsonLines:
    """A file of JSON lines that only grows, but for :meth:`cut`.

    Args:
        path (Path): The file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds lines in one write, so that a kill tears at most the last one; a torn one is not written on."""
        text = ''.join(_line(record) for record in records)
        with self.path.open('ab+') as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b'\n' else '\n' + text
            file.write(text.encode())

    def read(self) -> list[dict[str, Any]]:
        """Every whole line; one that a kill has torn, or a bad disk changed, is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(errors='replace').split('\n'):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Keeps the lines for which ``keep`` is true, atomically, and torn lines not at all.

        Returns:
            int: Lines removed.
        """
        records = self.read()
        kept = [record for record in records if keep(record)]
        temporary = self.path.with_suffix('.tmp')
        temporary.write_text(''.join(_line(record) for record in kept))
        flush(temporary)
        temporary.replace(self.path)
        return len(records) - len(kept)

    def sync(self) -> None:
        """Forces what was appended to the disk."""
        if self.path.exists():
            flush(self.path)


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
        self.lines = JsonLines(run_folder / 'events.jsonl')
        self.active = active
        self.position: dict[str, Any] = {'batch': 0, 'tokens': 0, 'stage': None}

    def at(self, *, batch: int, tokens: int, stage: str | None) -> None:
        """Says where the run is; later events carry it."""
        self.position = {'batch': batch, 'tokens': tokens, 'stage': stage}

    def record(self, event: str, **fields: Any) -> None:
        """Writes one event with the time (UTC) and the position."""
        if self.active:
            now = datetime.now(UTC).isoformat(timespec='milliseconds')
            self.lines.append([{'time': now, 'event': event, **self.position, **fields}])

    def batches_of(self, event: str) -> list[int]:
        """The batch of each event of that name so far."""
        return [each['batch'] for each in self.lines.read() if each.get('event') == event]

    def record_once(self, event: str, **fields: Any) -> None:
        """Writes an event unless the same one at the same batch of the same stage is there from an earlier start."""
        same = {'event': event, **self.position, **fields}
        keys = ('event', 'stage', 'batch')
        if self.active and all(any(old.get(k) != same[k] for k in keys) for old in self.lines.read()):
            self.record(event, **fields)
