"""Checkpoints in a bucket: whole exactly when there is a ``manifest.json``, which goes up last and is deleted first.

Stores have no rename, so a folder ``ba00001200`` in a bucket grows and shrinks file by file. ``unfinished.json``, a copy of
the manifest, is there meanwhile: it tells which files are rewarm's own, also after a kill in the middle. ``latest`` is for
people and scripts; no resume reads it.
"""

import functools
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rewarm.buckets.bucket import Bucket, Entry
from rewarm.buckets.errors import Damaged
from rewarm.config.errors import DamagedFile
from rewarm.formats.checkpoint import (
    LARGEST_BYTES,
    MANIFEST_FILE,
    NAME,
    PIN_FILE,
    PIN_TEXT,
    TEMPORARY_PREFIX,
    UNFINISHED_FILE,
    Manifest,
    batch_of,
    parse_manifest,
    read_state,
)
from rewarm.formats.files import flush, read_bytes, write_whole
from rewarm.resume.folders import is_pinned, make_draft, point_latest, set_aside
from rewarm.resume.refusals import Refusals
from rewarm.resume.verification import damage

__all__ = ['Archive', 'put_in_place']


@dataclass(frozen=True)
class _Kept:
    """A checkpoint's folder in the bucket, as listed."""

    objects: dict[str, Entry]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: entry.bytes for name, entry in self.objects.items()}

    @property
    def is_whole(self) -> bool:
        return MANIFEST_FILE in self.objects

    @property
    def is_pinned(self) -> bool:
        return self.is_whole and PIN_FILE in self.objects

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

    def complete_names(self) -> list[str]:
        """The checkpoints of which all files have the sizes that their manifests say, oldest first."""
        return self._complete(self._list())

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
            DamagedFile: If the local manifest is damaged.
        """
        name, text = path.name, read_bytes(path / MANIFEST_FILE, largest_bytes=LARGEST_BYTES)
        top, manifest = f'{self.url}/{name}', parse_manifest(text, path / MANIFEST_FILE)
        before_write()
        there = self._list(name).get(name, _Kept({}))
        if there.is_whole and name not in self.damaged:
            if self.bucket.holds(f'{top}/{MANIFEST_FILE}', text) and not manifest.wrong_sizes(there.sizes):
                if UNFINISHED_FILE in there.objects:
                    self._unmark(name, refusals)
                return False
        if there.is_whole:  # other bits of the same batch, or damaged ones: nobody may take it while it changes
            self.remove(name, replacing=True)
        marker = f'{top}/{UNFINISHED_FILE}'
        refusals.attempt(marker, lambda: self.bucket.write(marker, text))
        for file, entry in manifest.files.items():
            if file not in sent:
                before_write()
                url = f'{top}/{file}'
                if refusals.attempt(url, functools.partial(self.bucket.upload, path / file, url, entry.sha256)):
                    sent.add(file)
        if refused := refusals.error(f'{top}/{file}' for file in manifest.files):
            raise refused
        before_manifest()
        before_write()
        last = f'{top}/{MANIFEST_FILE}'
        refusals.require(last, lambda: self.bucket.write(last, text))
        self.damaged.discard(name)
        self._unmark(name, refusals)
        if is_pinned(path):  # asked now that the bucket shows it: whoever pins it later pins it there too
            pin = f'{top}/{PIN_FILE}'
            refusals.attempt(pin, lambda: self.bucket.write(pin, PIN_TEXT.encode()))
        return True

    def download(self, name: str, root: Path, *, trained: bool = False) -> Path:
        """Downloads a checkpoint under a temporary name, each file verified; files that an earlier try left are kept.

        Args:
            name (str): The checkpoint.
            root (Path): The local ``checkpoints`` folder.
            trained (bool): Whether a run must be able to go on from it: then its parts must belong together too.

        Returns:
            Path: The temporary folder, for :func:`put_in_place`.

        Raises:
            Damaged: If it is not whole in the bucket.
            BucketError: If the store fails.
            OSError: If the disk is full or not writable.
        """
        top, draft = f'{self.url}/{name}', root / f'{TEMPORARY_PREFIX}fetched-{name}'
        try:
            text = self._read(f'{top}/{MANIFEST_FILE}')
            manifest = parse_manifest(text, f'{top}/{MANIFEST_FILE}')
            if wrong := manifest.wrong_sizes(self._list(name).get(name, _Kept({})).sizes):
                raise Damaged('; '.join(wrong))
            _clear(draft, manifest)
            for file, entry in manifest.files.items():
                self.bucket.download(f'{top}/{file}', draft / file, size=entry.bytes, sha256=entry.sha256)
            write_whole(draft / MANIFEST_FILE, text)
            state, _ = read_state(draft)
            found = damage(draft, hashed=True, trained=True) if trained else []
            if trained and state.batch != batch_of(name):
                found.append(f'state.json is of batch {state.batch:,}')
            if found:
                raise Damaged(f'{top}: {"; ".join(found)}')
        except (Damaged, DamagedFile) as error:
            self.damaged.add(name)
            if isinstance(error, Damaged):
                raise
            place = f'{error.place}: ' if error.place else ''
            raise Damaged(f'{top}/{Path(error.where).name}: {place}{error.what}') from None
        flush(draft)
        return draft

    def retain(
        self, *, keep: int, stage_ends: Collection[int], refusals: Refusals, before_write: Callable[[], None]
    ) -> list[str]:
        """Deletes all but the newest ``keep`` checkpoints, and what broken-off uploads and deletions left.

        Never a stage's end, a pinned one, the newest one, or a folder that holds anything its manifest does not list. What lacks a
        file does not count, such as a copy that somebody is making; nor do checkpoints known to be damaged, which go
        when there is a newer complete one. One that cannot be deleted holds up no other.

        Args:
            keep (int): How many to keep besides stage ends and pinned ones; at least 1.
            stage_ends (Collection[int]): Batches at which a stage ends.
            refusals (Refusals): What makes each attempt.
            before_write (Callable): Called before each deletion; may raise to stop.

        Returns:
            list[str]: The whole ones that were deleted.
        """
        listed = self._list()
        whole = [name for name, kept in listed.items() if kept.is_whole]
        valid = [name for name in self._complete(listed) if name not in self.damaged]
        if not valid:
            return []
        ordinary = [name for name in valid if batch_of(name) not in stage_ends and not listed[name].is_pinned]
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

    def remove(self, name: str, *, replacing: bool = False) -> bool:
        """Deletes a checkpoint, its manifest first; one that is pinned, or holds anything rewarm did not write, stays.

        Args:
            name (str): The checkpoint.
            replacing (bool): Whether other bits of the same batch follow, which stay pinned if these are.

        Returns:
            bool: Whether it is gone.
        """
        top = f'{self.url}/{name}'
        kept = self._list(name).get(name, _Kept({}))
        objects, pin = kept.objects, f'{top}/{PIN_FILE}'
        if kept.is_pinned and not replacing:
            return False
        marker = MANIFEST_FILE if MANIFEST_FILE in objects else UNFINISHED_FILE
        try:
            text = self._read(f'{top}/{marker}')
            files = parse_manifest(text, f'{top}/{marker}').files
        except (Damaged, DamagedFile):
            return False
        if not set(objects) <= {*files, MANIFEST_FILE, UNFINISHED_FILE, PIN_FILE}:
            return False
        if UNFINISHED_FILE not in objects:
            self.bucket.write(f'{top}/{UNFINISHED_FILE}', text)
        # Whoever pins does the same the other way round: a pin first, then a look for this marker.
        if kept.is_whole and not replacing and self.bucket.find(pin) is not None:
            self.bucket.delete(f'{top}/{UNFINISHED_FILE}')
            return False
        for file in (MANIFEST_FILE, *files, *([] if replacing else [PIN_FILE])):
            self.bucket.delete(f'{top}/{file}')
        self.bucket.forget_uploads(top)
        self.bucket.delete(f'{top}/{UNFINISHED_FILE}')
        return True

    def point_latest(self) -> None:
        """Names the newest checkpoint in ``latest``."""
        text = ''.join(f'{name}\n' for name in self.complete_names()[-1:]).encode()
        if text and not self.bucket.holds(f'{self.url}/latest', text):
            self.bucket.write(f'{self.url}/latest', text)

    def _complete(self, listed: dict[str, _Kept]) -> list[str]:
        found: list[str] = []
        for name, kept in listed.items():
            if kept.is_whole:
                url = f'{self.url}/{name}/{MANIFEST_FILE}'
                try:
                    if not parse_manifest(self._read(url), url).wrong_sizes(kept.sizes):
                        found.append(name)
                except (Damaged, DamagedFile):
                    continue
        return found

    def _read(self, url: str) -> bytes:
        """A manifest; one that is not there is an empty text, which is none."""
        return self.bucket.read(url, largest_bytes=LARGEST_BYTES) or b''

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
    if os.path.lexists(target):
        set_aside(target)
    draft.rename(target)
    point_latest(root, name)
    return target


def _clear(draft: Path, manifest: Manifest) -> None:
    """Makes a folder that holds nothing but regular files which an earlier try left of this checkpoint."""
    make_draft(draft)
    for path in draft.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in manifest.files or path.is_symlink() or not path.is_file():
            path.unlink()
