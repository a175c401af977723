"""Brings a run's newest whole checkpoint, and the records that lead to it, from a bucket to a disk that lacks them."""

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from rewarm.buckets.errors import Damaged
from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.checkpoint import LARGEST_BYTES, MANIFEST_FILE, NAME
from rewarm.formats.files import read_bytes, write_whole
from rewarm.formats.logger_files import (
    IDENTITY_FILE,
    LARGEST_IDENTITY_BYTES,
    parse_identity,
    read_identity,
    write_identity,
)
from rewarm.formats.records import EVENTS as EVENT_LINES
from rewarm.formats.records import Damage, parse_lines
from rewarm.resume.archive import Archive, put_in_place
from rewarm.resume.verification import damage

__all__ = ['EVENTS', 'RECORDS', 'Fetched', 'fetch', 'fetch_identity']

RECORDS = ('metrics.jsonl', 'evals.jsonl')
EVENTS = 'events.jsonl'
LARGEST_EVENTS_BYTES = 256 << 20


@dataclass(frozen=True)
class Fetched:
    """The checkpoint that is in place."""

    name: str
    """Its folder's name."""
    where: Literal['disk', 'bucket']
    """Where it was."""


def fetch(
    archive: Archive,
    folder: Path,
    *,
    record: Callable[..., None],
    say: Callable[[str], None],
    wanted: str | None = None,
    trained: bool = False,
) -> Fetched | None:
    """Puts the newest whole checkpoint of disk and bucket in place, with its records.

    Records come from where the checkpoint comes from, so that they are whole up to its position: a local checkpoint
    appears after its records are flushed, a bucket's manifest after they are uploaded, and here they arrive before the
    checkpoint gets its name. Events tell of machines and not of the position; both copies are joined.

    Args:
        archive (Archive): The bucket's checkpoints.
        folder (Path): The local run folder.
        record (Callable): Called as ``record('fallback', path=..., reason=..., instead=...)`` for each damaged one.
        say (Callable): Tells the user something.
        wanted (str | None): The only checkpoint that will do, as it is in the bucket. Default: the newest.
        trained (bool): Whether a run must be able to go on from it.

    Returns:
        Fetched | None: None where none was ever finished.

    Raises:
        UserError: If there are checkpoints and none is whole, or the disk is full.
        BucketError: If the bucket cannot be read.
    """
    root = folder / 'checkpoints'
    wrong: dict[str, str] = {}
    try:
        root.mkdir(parents=True, exist_ok=True)
        _join_events(archive, folder, say)
        local = {path.name for path in root.glob('ba*') if NAME.fullmatch(path.name)}
        remote = set(archive.names())
        for name in [wanted] if wanted else sorted(local | remote, reverse=True):
            if name in local and (found := _why_not(archive, root / name, exactly=wanted is not None, trained=trained)):
                wrong[str(root / name)] = found
            elif name in local:
                _fetch_records(archive, folder, missing_only=True)
                return _done(Fetched(name, 'disk'), wrong, record, root)
            if name in remote:
                say(f'Fetching {name} from {archive.url} ...')
                try:
                    draft = archive.download(name, root, trained=trained)
                except Damaged as error:
                    wrong[f'{archive.url}/{name}'] = str(error)
                    continue
                _fetch_records(archive, folder)
                put_in_place(draft, root, name)
                return _done(Fetched(name, 'bucket'), wrong, record, root)
    except OSError as error:
        raise UserError(
            f'{root}: a checkpoint cannot be stored here ({error.strerror or error}). '
            'Free space, or set TMPDIR to a folder on a larger disk'
        ) from error
    if wanted and not wrong:
        raise UserError(f'{archive.url}/{wanted}: is not in the bucket, and this machine needs it')
    if wrong:
        raise UserError(
            f'{archive.url} has checkpoints and none of them is whole, so the run does not start over by itself.\n'
            + ''.join(f'  {path}: {reason}\n' for path, reason in wrong.items())
            + 'Bring back a good copy of one of them, or write another `run_folder` to start from the beginning.'
        )
    return None


def fetch_identity(archive: Archive, folder: Path) -> None:
    """Brings the run's identity, if the bucket has it: the bucket's holds, since other machines have it from there too.

    Raises:
        BucketError: If the bucket cannot be read.
        OSError: If the disk is full.
    """
    url = f'{archive.url.rpartition("/")[0]}/{IDENTITY_FILE}'
    try:
        data = archive.bucket.read(url, largest_bytes=LARGEST_IDENTITY_BYTES)
    except Damaged:
        return
    if data is None:
        return
    with suppress(DamagedFile):  # theirs: the start draws another where there is none; ours: theirs takes its place
        theirs = parse_identity(data, url)
        with suppress(DamagedFile):
            if read_identity(folder) == theirs:
                return
        write_identity(folder, theirs)


def _why_not(archive: Archive, path: Path, *, exactly: bool, trained: bool) -> str:
    """Why a local checkpoint will not do, in words; empty if it will."""
    if found := '; '.join(damage(path, trained=trained)):
        return found
    manifest = read_bytes(path / MANIFEST_FILE, largest_bytes=LARGEST_BYTES)
    if exactly and not archive.bucket.holds(f'{archive.url}/{path.name}/{MANIFEST_FILE}', manifest):
        return 'is not the one in the bucket'
    return ''


def _done(fetched: Fetched, wrong: dict[str, str], record: Callable[..., None], root: Path) -> Fetched:
    for path, reason in wrong.items():
        # Newer local ones that are damaged are set aside, and recorded, where the run looks for its newest.
        if path == str(root / fetched.name) or not path.startswith(str(root)):
            record('fallback', path=path, reason=reason, instead=f'{fetched.name} ({fetched.where})')
    return fetched


def _fetch_records(archive: Archive, folder: Path, *, missing_only: bool = False) -> None:
    top = archive.url.rpartition('/')[0]
    for name in RECORDS:
        if not (missing_only and (folder / name).exists()) and archive.bucket.find(f'{top}/{name}') is not None:
            archive.bucket.download(f'{top}/{name}', folder / name)


def _join_events(archive: Archive, folder: Path, say: Callable[[str], None]) -> None:
    """Adds the bucket's events to the local ones: after what both begin with, in the order of their times."""
    url, path = f'{archive.url.rpartition("/")[0]}/{EVENTS}', folder / EVENTS
    try:
        theirs = _lines(archive.bucket.read(url, largest_bytes=LARGEST_EVENTS_BYTES) or b'', url, say)
    except Damaged as error:
        say(f'{error}. The events of earlier starts are left out.')
        return
    ours = _lines(read_bytes(path, largest_bytes=LARGEST_EVENTS_BYTES) if path.exists() else b'', path, say)
    same = next((n for n, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    if same == len(theirs):
        return
    tails = ours[same:] + theirs[same:]
    if same < len(ours):
        tails.sort(key=lambda event: event.time)
    write_whole(path, b''.join(event.line for event in [*ours[:same], *dict.fromkeys(tails)]))


class _Event(NamedTuple):
    """A line of ``events.jsonl``, with its newline."""

    time: datetime
    line: bytes


def _lines(data: bytes, where: object, say: Callable[[str], None]) -> list[_Event]:
    """The events of a file; damaged lines are left out and told, but for a last one that a kill has torn."""
    damage = Damage(str(where))
    parsed = parse_lines(EVENT_LINES, io.BytesIO(data), damage)
    found = [_Event(event.time or datetime.min.replace(tzinfo=UTC), line) for line, event in parsed]
    if damage.lines:
        say(f'{damage}.')
    return found
