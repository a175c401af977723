"""Where a conversion works until it is whole: what is done, what comes next, and the step that publishes it.

Beside ``OUT`` lies ``OUT.staging/`` with ``dataset/`` (shards so far) and ``work/`` (the ledger). A commit says up to
which part of which file the input is used; everything after it is done again after a kill, and gives the same bytes.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.conversion import Failure, Identity, Ledger
from rewarm.formats.files import flush, private_folder, read_bytes, write_whole
from rewarm.formats.strict_json import parse_json, read_file

_IDENTITY, _FAILED = 'identity.json', 'failed.json'


@dataclass
class Counts:
    """What went into one split so far."""

    documents: int = 0
    """Documents that ended."""
    tokens: int = 0
    """Their tokens, with EODs."""
    bytes: int = 0
    """UTF-8 bytes of their text."""
    shards: int = 0
    """Full shards on disk."""


@dataclass
class Progress:
    """How far a conversion is."""

    source: int = 0
    """Index of the file in use; the number of files when all are used."""
    part: int = 0
    """Parts of it that are used."""
    empty: int = 0
    """Records with an empty text."""
    rejects: int = 0
    """Records that could not be read."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """By split."""


class Staging:
    """The staging folder of one conversion, held by one process at a time.

    Args:
        folder (Path): The folder; made if it is not there.
        identity (Identity): What is converted, and how. Work for something else is refused, but for work that has failed,
            which is begun anew: what was wrong with files or settings is mended.
        splits (Iterable[str]): Names of the splits; ``''`` for none.

    Raises:
        UserError: If another process holds the folder, or it holds something else.
    """

    def __init__(self, folder: Path, identity: Identity, splits: Iterable[str]) -> None:
        self.folder, self.work, self.dataset = folder, folder / 'work', folder / 'dataset'
        self.restarted: str | None = None
        """Why work that was here is thrown away, in words; None if none is."""
        self._splits = tuple(splits)
        if folder.exists() and not (folder / 'lock').exists() and any(folder.iterdir()):
            raise UserError(f'{folder}: in the way, and not made by this program; move it or convert to another place')
        for path in (folder / 'lock', self.work, self.dataset):
            if path.is_symlink():
                raise UserError(f'{path}: is a link, and unfinished work is written to no other place; remove it')
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / 'lock').open('a')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f'{folder}: another conversion is at work there; wait for it or stop it') from None
        try:
            self._begin(identity)
        except DamagedFile as error:
            raise UserError(f'{error}. Delete {folder} and start again') from None

    def _begin(self, identity: Identity) -> None:
        self._check(identity)
        for split in self._splits:
            (self.dataset / split).mkdir(parents=True, exist_ok=True)
        self.progress = Progress(counts={split: Counts() for split in self._splits})
        self._pending = dict.fromkeys(self._splits, '')
        self._logs: dict[str, int] = {}
        self._load()

    def _check(self, identity: Identity) -> None:
        self.work.mkdir(exist_ok=True)
        before = read_identity(self.folder)
        failed = self.work / _FAILED
        if before is not None and before != identity:
            what = '; '.join(_differences(before, identity))
            if not failed.exists():
                raise UserError(
                    f'{self.folder} holds an unfinished conversion of something else ({what}). '
                    'Finish it with the same settings and files, or delete that folder and start again'
                )
            self.restarted = f'{what}; the try before ended with: {read_file(Failure, failed).reason}'
            for path in (self.work, self.dataset):
                shutil.rmtree(path)
                path.mkdir()
            before = None
        if before is None:
            write_whole(self.work / _IDENTITY, identity.model_dump_json().encode())
        failed.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Notes that this work ended with something the user has to mend; with other files or settings it begins anew."""
        if self.work.exists():  # or it is published already
            write_whole(self.work / _FAILED, Failure(reason=reason).model_dump_json().encode())

    def _load(self) -> None:
        path = self.work / 'progress.json'
        if path.exists():
            ledger = read_file(Ledger, path)
            if set(ledger.progress.counts) != set(self._splits) or set(ledger.pending) != set(self._splits):
                raise DamagedFile(path, what='it is of other splits')
            saved = ledger.progress.model_dump()
            counts = {split: Counts(**value) for split, value in saved.pop('counts').items()}
            self.progress = Progress(**saved, counts=counts)
            self._logs, self._pending = dict(ledger.logs), dict(ledger.pending)
        for log in self.work.glob('*.jsonl'):
            committed = self._logs.get(log.stem, 0)
            if log.is_symlink() or log.stat().st_size < committed:
                raise DamagedFile(log, what=f'it is a link, or has less than the {committed} bytes that were written')
            os.truncate(log, committed)

    def pending(self, split: str, dtype: str) -> NDArray[Any]:
        """Tokens of a split that did not fill a shard at the last commit."""
        if not (name := self._pending[split]):
            return np.zeros(0, dtype)
        try:
            return np.frombuffer(read_bytes(self.work / name, largest_bytes=1 << 33), dtype)
        except (FileNotFoundError, ValueError) as error:  # ValueError: of half a token, or damage
            raise UserError(f'{self.work / name}: {error}. Delete {self.folder} and start again') from None

    def append(self, log: str, rows: Iterable[Any]) -> None:
        """Adds rows to a list that commits and is cut back with the rest."""
        lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        if lines:
            with (self.work / f'{log}.jsonl').open('a', encoding='utf-8') as file:
                file.write(lines)

    def rows(self, log: str) -> Iterator[Any]:
        """The rows of a list so far."""
        path = self.work / f'{log}.jsonl'
        if path.exists():
            with path.open('rb') as file:
                for number, line in enumerate(file, 1):
                    yield parse_json(line, f'{path}:{number}')

    def commit(self, pending: dict[str, NDArray[Any]]) -> None:
        """Makes `progress`, the lists and the pending tokens the point from which a restart goes on."""
        stale = {name for name in self._pending.values() if name}
        for split, tokens in pending.items():
            name = f'pending-{split}-{self.progress.source}-{self.progress.part}.bin'
            write_whole(self.work / name, tokens.tobytes())
            self._pending[split] = name
        for log in self.work.glob('*.jsonl'):
            with log.open('rb') as file:
                os.fsync(file.fileno())
            self._logs[log.stem] = log.stat().st_size
        state = {'progress': asdict(self.progress), 'logs': self._logs, 'pending': self._pending}
        write_whole(self.work / 'progress.json', json.dumps(state).encode())
        for name in stale - set(self._pending.values()):
            (self.work / name).unlink()

    def publish(self, out: Path) -> None:
        """Gives the finished dataset its name, in one step, and removes what is left."""
        flush(self.dataset)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.dataset.rename(out)  # replaces an empty folder, and nothing else
        flush(out.parent)
        self.remove()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)
        self._lock.close()

    def close(self) -> None:
        """Lets go of the folder, which stays."""
        self._lock.close()


def read_identity(folder: Path) -> Identity | None:
    """What the unfinished work in a staging folder is of; None if there is none.

    Raises:
        UserError: If it cannot be read; says what to do.
    """
    try:
        return read_file(Identity, folder / 'work' / _IDENTITY)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        raise UserError(f'{error}. Delete {folder} and start again') from None


def default_staging(out: str) -> Path:
    """Where a conversion works if nobody says: beside a folder; for a bucket, below the system's temporary folder."""
    if is_bucket(out):
        return private_folder(f'rewarm-convert-{hashlib.sha256(out.encode()).hexdigest()[:16]}')
    path = Path(out).absolute()
    return path.with_name(path.name + '.staging')


def _differences(before: Identity, now: Identity) -> Iterator[str]:
    keys = dict.fromkeys([*now.settings, *before.settings])
    if before.settings.get('val_fraction') != now.settings.get('val_fraction'):
        keys.pop('split_rule', None)  # it comes and goes with the split
    for key in keys:
        if before.settings.get(key) != now.settings.get(key):
            yield f'{key}: {before.settings.get(key)} there, {now.settings.get(key)} now'
    if before.sources != now.sources:
        there, here = ({source[0]: source for source in each.sources} for each in (before, now))
        names = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
        some = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
        yield f'the source files differ: {some}' if names else 'the source files are in another order'
