"""Checkpoints in a bucket: whole exactly when there is a ``manifest.json``, which goes up last and is deleted first.

Stores have no rename, so a folder ``ba00001200`` in a bucket grows and shrinks file by file. ``unfinished.json``, a copy of
the manifest, is there meanwhile: it tells which files are rewarm's own, also after a kill in the middle. ``latest`` is for
people and scripts; no resume reads it.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.buckets.bucket import Bucket, Entry
from rewarm.buckets.errors import Damaged
from rewarm.formats.files import flush
from rewarm.resume.checkpoint import (
    BROKEN_SUFFIX,
    FORMAT,
    MANIFEST_FILE,
    MODEL_FILE,
    NAME,
    STATE_FILE,
    TEMPORARY_PREFIX,
)
from rewarm.resume.refusals import Refusals

__all__ = ['Archive', 'batch_of']

UNFINISHED_FILE = 'unfinished.json'


@dataclass(frozen=True)
class _Kept:
    """A checkpoint's folder in the bucket, as listed."""

    objects: dict[str, Entry]

    @property
    def is_whole(self) -> bool:
        return MANIFEST_FILE in self.objects

    @property
    def is_unfinished(self) -> bool:
        return not self.is_whole and UNFINISHED_FILE in self.objects


class Archive:
    """The ``checkpoints`` folder of a run in a bucket.

    Args:
        bucket (Bucket): The store.
        url (str): The folder's URL.
    """

    def __init__(self, bucket: Bucket, url: str) -> None:
        self.bucket = bucket
        self.url = url
        self.damaged: set[str] = set()
        """Checkpoints that were found to be damaged by this object."""

    def names(self) -> list[str]:
        """The checkpoints that have a manifest, oldest first."""
        return [name for name, kept in self._list().items() if kept.is_whole]

    def upload(
        self,
        path: Path,
        *,
        refusals: Refusals,
        sent: set[str],
        before_write: Callable[[], None],
        before_manifest: Callable[[], None],
    ) -> bool:
        """Uploads a checkpoint; what is there of it, in files or in parts of files, is not sent again.

        Args:
            path (Path): The local folder, whole.
            refusals (Refusals): What makes each attempt, so that an object that is refused holds up none but the manifest.
            sent (set[str]): Files that this process has sent in earlier attempts; those of this one are added.
            before_write (Callable): Called before each file; may raise to stop.
            before_manifest (Callable): Called when all other files are there; may raise to stop.

        Returns:
            bool: Whether it was not there yet.

        Raises:
            Refused: If the bucket does not take a file of it.
            BucketError: If the store fails.
            OSError: If the local files cannot be read.
        """
        name, text = path.name, (path / MANIFEST_FILE).read_bytes()
        top, files = f'{self.url}/{name}', _files_of(text, str(path))
        before_write()
        there = self._list(name).get(name, _Kept({}))
        if there.is_whole and name not in self.damaged:
            if self.bucket.read(f'{top}/{MANIFEST_FILE}') == text and not _wrong_sizes(files, there):
                if UNFINISHED_FILE in there.objects:
                    self._unmark(name, refusals)
                return False
        if there.is_whole:  # other bits of the same batch, or damaged ones: nobody may take it while it changes
            self.remove(name)
        marker = f'{top}/{UNFINISHED_FILE}'
        refusals.attempt(marker, lambda: self.bucket.write(marker, text))
        for file in (file for file in files if file not in sent):
            before_write()
            if refusals.attempt(
                f'{top}/{file}', functools.partial(self._upload_file, path / file, files[file]['sha256'])
            ):
                sent.add(file)
        if refused := refusals.error(f'{top}/{file}' for file in files):
            raise refused
        before_manifest()
        before_write()
        manifest = f'{top}/{MANIFEST_FILE}'
        refusals.require(manifest, lambda: self.bucket.write(manifest, text))
        self.damaged.discard(name)
        self._unmark(name, refusals)
        return True

    def download(self, name: str, root: Path) -> Path:
        """Downloads a checkpoint under a temporary name, each file verified; files that an earlier try left are kept.

        Args:
            name (str): The checkpoint.
            root (Path): The local ``checkpoints`` folder.

        Returns:
            Path: The temporary folder, for :func:`put_in_place`.

        Raises:
            Damaged: If it is not whole in the bucket.
            BucketError: If the store fails.
            OSError: If the disk is full or not writable.
        """
        top = f'{self.url}/{name}'
        text = self.bucket.read(f'{top}/{MANIFEST_FILE}')
        try:
            files = _files_of(text or b'', top)
            if wrong := _wrong_sizes(files, self._list(name).get(name, _Kept({}))):
                raise Damaged('; '.join(wrong))
            draft = root / f'{TEMPORARY_PREFIX}fetched-{name}'
            draft.mkdir(parents=True, exist_ok=True)
            for file in [file for file in draft.iterdir() if file.name not in files]:
                file.unlink()
            for file, expected in files.items():
                self.bucket.download(f'{top}/{file}', draft / file, size=expected['bytes'], sha256=expected['sha256'])
        except Damaged:
            self.damaged.add(name)
            raise
        with (draft / MANIFEST_FILE).open('wb') as file:
            file.write(text or b'')
            file.flush()
            os.fsync(file.fileno())
        flush(draft)
        return draft

    def retain(
        self, *, keep: int, stage_ends: Collection[int], refusals: Refusals, before_write: Callable[[], None]
    ) -> list[str]:
        """Deletes all but the newest ``keep`` checkpoints, and what broken-off uploads and deletions left.

        Never a stage's end, the newest one, or a folder that holds anything its manifest does not list. Checkpoints
        known to be damaged do not count, and go when there is a newer whole one. One that cannot be deleted holds up no other.

        Args:
            keep (int): How many to keep besides stage ends; at least 1.
            stage_ends (Collection[int]): Batches at which a stage ends.
            refusals (Refusals): What makes each attempt.
            before_write (Callable): Called before each deletion; may raise to stop.

        Returns:
            list[str]: The whole ones that were deleted.
        """
        listed = self._list()
        whole = [name for name, kept in listed.items() if kept.is_whole]
        valid = [name for name in whole if name not in self.damaged]
        if not valid:
            return []
        ordinary = [name for name in valid if batch_of(name) not in stage_ends]
        older = [name for name in listed if name < valid[-1]]
        doomed = [name for name in older if name in ordinary[:-keep] or name in self.damaged]
        gone: list[str] = []
        for name in [*doomed, *(name for name in older if listed[name].is_unfinished)]:
            before_write()
            removed: list[bool] = []
            refusals.attempt(f'{self.url}/{name}', lambda: removed.append(self.remove(name)))  # noqa: B023 called at once
            if removed == [True] and name in whole:
                gone.append(name)
        return gone

    def remove(self, name: str) -> bool:
        """Deletes a checkpoint, its manifest first; one that holds anything rewarm did not write stays.

        Returns:
            bool: Whether it is gone.
        """
        top = f'{self.url}/{name}'
        objects = self._list(name).get(name, _Kept({})).objects
        marker = MANIFEST_FILE if MANIFEST_FILE in objects else UNFINISHED_FILE
        text = self.bucket.read(f'{top}/{marker}') or b''
        try:
            files = _files_of(text, top)
        except Damaged:
            return False
        if not set(objects) <= {*files, MANIFEST_FILE, UNFINISHED_FILE}:
            return False
        if UNFINISHED_FILE not in objects:
            self.bucket.write(f'{top}/{UNFINISHED_FILE}', text)
        for file in (MANIFEST_FILE, *files):
            self.bucket.delete(f'{top}/{file}')
        self.bucket.forget_uploads(top)
        self.bucket.delete(f'{top}/{UNFINISHED_FILE}')
        return True

    def point_latest(self) -> None:
        """Names the newest checkpoint in ``latest``."""
        text = ''.join(f'{name}\n' for name in self.names()[-1:]).encode()
        if text and self.bucket.read(f'{self.url}/latest') != text:
            self.bucket.write(f'{self.url}/latest', text)

    def _upload_file(self, path: Path, sha256: str) -> None:
        self.bucket.upload(path, f'{self.url}/{path.parent.name}/{path.name}', sha256)

    def _unmark(self, name: str, refusals: Refusals) -> None:
        marker = f'{self.url}/{name}/{UNFINISHED_FILE}'
        refusals.attempt(marker, lambda: self.bucket.delete(marker))

    def _list(self, name: str = '') -> dict[str, _Kept]:
        """Folders called ``ba...``, oldest first; hidden objects are a server's own leftovers."""
        found: dict[str, _Kept] = {}
        for entry in self.bucket.list(f'{self.url}/{name}'.rstrip('/')):
            folder, _, file = f'{name}/{entry.name}'.lstrip('/').partition('/')
            if NAME.fullmatch(folder) and file and not file.rpartition('/')[2].startswith('.'):
                found.setdefault(folder, _Kept({})).objects[file] = entry
        return dict(sorted(found.items()))


def put_in_place(draft: Path, root: Path, name: str) -> Path:
    """Gives a downloaded checkpoint its name, in one step; a damaged one of that name is set aside.

    Returns:
        Path: The folder.
    """
    target = root / name
    if target.exists():
        aside = target.with_name(target.name + BROKEN_SUFFIX)
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    draft.rename(target)
    latest = root / f'{TEMPORARY_PREFIX}latest'
    latest.write_text(name + '\n')
    latest.replace(root / 'latest')
    flush(root)
    return target


def batch_of(name: str) -> int:
    """Batches behind a checkpoint called ``name``."""
    return int(name.removeprefix('ba'))


def _files_of(manifest: bytes, where: str) -> dict[str, dict[str, Any]]:
    """What a manifest lists.

    Raises:
        Damaged: If it is not one of ours.
    """
    try:
        content = json.loads(manifest)
        files = {str(name): dict(about) for name, about in content['files'].items()}
        fine = all(Path(name).name == name and {'bytes', 'sha256'} <= set(about) for name, about in files.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f'{where}: {MANIFEST_FILE} cannot be read ({error})') from None
    if content.get('format') != FORMAT:
        raise Damaged(f'{where}: {MANIFEST_FILE} has format {content.get("format")}, and this version reads {FORMAT}')
    if not fine or not {MODEL_FILE, STATE_FILE} <= set(files):
        raise Damaged(f'{where}: {MANIFEST_FILE} does not list the files of a checkpoint')
    return files


def _wrong_sizes(files: dict[str, dict[str, Any]], kept: _Kept) -> list[str]:
    """Files that are missing or of another size, in words."""
    found: list[str] = []
    for name, expected in files.items():
        entry = kept.objects.get(name)
        if entry is None:
            found.append(f'{name} is missing')
        elif entry.bytes != expected['bytes']:
            found.append(f'{name} has {entry.bytes:,} bytes instead of {expected["bytes"]:,}')
    return found
