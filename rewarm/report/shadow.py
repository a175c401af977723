"""A run folder in a bucket as a folder here that takes little room: its records whole, its checkpoints in outline."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarm.buckets.bucket import Bucket, Entry, open_bucket
from rewarm.buckets.errors import BucketError
from rewarm.buckets.parallel import in_parallel
from rewarm.config.errors import UserError
from rewarm.report.run_folder import RUN_FILES, NoRunYet, no_run_there

__all__ = ['shadow']

RECORDS = ('config.yaml', 'plan.json', 'environment.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl', 'owner.json')
MANIFEST = 'manifest.json'
LARGEST_LINES_BYTES = 512 << 20
"""Of a ``.jsonl`` file. A million batches have 300 MB of metrics."""
LARGEST_BYTES = 16 << 20
"""Of any other file that is read."""
THREADS = 8
ATTEMPTS = 3
"""At an object that a run replaces meanwhile."""

_CHECKPOINT_FILE = re.compile(r'(checkpoints/ba\d{8})/([^/]+)')


@contextmanager
def shadow(url: str, *, listed: Collection[Entry] | None = None, tail_bytes: int | None = None) -> Iterator[Path]:
    """Brings what a glance at a run needs; a checkpoint's tensors are empty files of the right size.

    Args:
        url (str): Such as ``s3://bucket/run``.
        listed (Collection[Entry] | None): The objects there, if they are known. Default: they are listed.
        tail_bytes (int | None): Bring only so much of the end of each file of lines, from the beginning of a line on.

    Yields:
        Path: A temporary folder with the files that a run folder has, and no others, without the checkpoints whose
            manifest is not there: they are going up or down.

    Raises:
        UserError: If the bucket cannot be read, has nothing there, or a record has a size that none has.
    """
    url = url.rstrip('/')
    bucket = open_bucket(url)
    entries = {entry.name: entry for entry in (bucket.list(url) if listed is None else listed)}
    found = {name: entry.bytes for name, entry in entries.items()}
    if not found:
        raise NoRunYet(f'{url}: nothing there; give what `run_folder` says in the run file')
    tops = {folder for folder, _, file in (name.rpartition('/') for name in found) if file in RUN_FILES}
    if tops and '' not in tops:
        raise no_run_there(url, tops)
    parts = [match for name in found if (match := _CHECKPOINT_FILE.fullmatch(name))]
    whole = {part[1] for part in parts if part[2] == MANIFEST}
    outlines = [part[0] for part in parts if part[1] in whole and part[2] != MANIFEST]
    with tempfile.TemporaryDirectory(prefix='rewarm-status-') as temporary:
        folder = Path(temporary)

        def bring(name: str) -> None:
            bound = LARGEST_LINES_BYTES if name.endswith('.jsonl') else LARGEST_BYTES
            if tail_bytes is not None and name.endswith('.jsonl') and found[name] > tail_bytes:
                (folder / name).write_bytes(_tail(bucket, f'{url}/{name}', entries[name], tail_bytes))
                return
            (folder / name).write_bytes(bucket.read(f'{url}/{name}', largest_bytes=bound) or b'')

        for name in whole:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in outlines:
            (folder / name).touch()
            try:
                os.truncate(folder / name, found[name])
            except OSError as error:
                raise UserError(f'{url}/{name}: no file has {found[name]:,} bytes ({error.strerror})') from None
        records = [name for name in RECORDS if name in found]
        in_parallel(bring, [*records, *(f'{name}/{MANIFEST}' for name in whole)], THREADS)
        yield folder


def _tail(bucket: Bucket, url: str, entry: Entry, size: int) -> bytes:
    """The lines within the last bytes of an object, which a run may be replacing."""
    for attempt in range(ATTEMPTS):
        try:
            data = bucket.read_range(url, max(0, entry.bytes - size), entry.bytes, entry.version)
            return data[data.find(b'\n') + 1 :]
        except BucketError:
            newer = bucket.find(url)
            if newer is None or newer == entry or attempt == ATTEMPTS - 1:
                raise
            entry = newer
    raise AssertionError
