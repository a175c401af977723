"""A run folder in a bucket as a folder here that takes little room: its records whole, its checkpoints in outline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarm.buckets.bucket import open_bucket
from rewarm.buckets.parallel import in_parallel
from rewarm.config.errors import UserError

__all__ = ['shadow']

RECORDS = ('config.yaml', 'plan.json', 'environment.json', 'metrics.jsonl', 'evals.jsonl', 'events.jsonl', 'owner.json')
MANIFEST = 'manifest.json'
THREADS = 8


@contextmanager
def shadow(url: str) -> Iterator[Path]:
    """Brings what a glance at a run needs; a checkpoint's tensors are empty files of the right size.

    Args:
        url (str): Such as ``s3://bucket/run``.

    Yields:
        Path: A temporary folder, without the checkpoints whose manifest is not there: they are going up or down.

    Raises:
        UserError: If the bucket cannot be read or has nothing there.
    """
    url = url.rstrip('/')
    bucket = open_bucket(url)
    found = {entry.name: entry.bytes for entry in bucket.list(url)}
    if not found:
        raise UserError(f'{url}: nothing there; give what `run_folder` says in the run file')
    whole = {name.rpartition('/')[0] for name in found if name.rpartition('/')[2] == MANIFEST}
    read = [name for name in found if name in RECORDS or name.rpartition('/')[2] == MANIFEST]
    with tempfile.TemporaryDirectory(prefix='rewarm-status-') as temporary:
        folder = Path(temporary)

        def bring(name: str) -> None:
            (folder / name).write_bytes(bucket.read(f'{url}/{name}') or b'')

        for name, size in found.items():
            if name.rpartition('/')[0] in whole:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
                os.truncate(folder / name, size)
        in_parallel(bring, read, THREADS)
        yield folder
