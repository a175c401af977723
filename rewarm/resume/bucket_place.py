"""Which checkpoint of a bucket a user means, and how it comes to this machine.

The same words as on a disk (``rewarm/formats/checkpoint_place.py``): a checkpoint, a run, its ``checkpoints`` or ``latest``.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rewarm.buckets.bucket import Bucket, is_bucket, open_bucket
from rewarm.buckets.errors import Damaged
from rewarm.config.errors import UserError
from rewarm.formats.checkpoint import (
    LARGEST_BYTES,
    LATEST_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    PIN_FILE,
    STATE_FILE,
    UNFINISHED_FILE,
    parse_manifest,
)
from rewarm.formats.checkpoint_place import CHECKPOINTS, choose, find_checkpoint
from rewarm.formats.files import private_folder, write_whole
from rewarm.resume.archive import Archive

__all__ = [
    'BucketPlace',
    'bring_origin',
    'choose_origin',
    'download_checkpoint',
    'find_in_bucket',
    'forget_origins',
    'origin_folder',
    'unlisted',
]

_INSIDE = re.compile(r'(checkpoints/)?ba\d{8}/.+')


@dataclass(frozen=True)
class BucketPlace:
    """What a URL leads to.

    Args:
        bucket (Bucket): Its store.
        url (str): A checkpoint, or the folder of a run's checkpoints.
        names (list[str] | None): The run's complete checkpoints, oldest first; ``None`` if the URL is one checkpoint.
    """

    bucket: Bucket
    url: str
    names: list[str] | None

    @property
    def run(self) -> str | None:
        """The run folder's URL, as far as the names tell."""
        root = self.url if self.names is not None else self.url.rpartition('/')[0]
        return root.removesuffix(f'/{CHECKPOINTS}') if root.endswith(f'/{CHECKPOINTS}') else None

    def checkpoint(self, where: object) -> str:
        """The URL of the checkpoint, the newest one of a run.

        Args:
            where (object): What the user named, for the message.

        Raises:
            UserError: If there is none.
        """
        return self.url if self.names is None else f'{self.url}/{choose(self.names, where)}'


def find_in_bucket(url: str) -> BucketPlace:
    """Looks at what a URL leads to.

    Raises:
        UserError: If no checkpoint is there, or the bucket cannot be read.
    """
    bucket, url = open_bucket(url), url.rstrip('/')
    top = url.removesuffix(f'/{LATEST_FILE}')
    names = [entry.name for entry in bucket.list(top)]
    if MANIFEST_FILE in names or STATE_FILE in names or MODEL_FILE in names:
        return BucketPlace(bucket, top, None)
    inside = next((found for name in names if (found := _INSIDE.fullmatch(name))), None)
    if inside is None:
        raise UserError(
            f'{url}: no checkpoint there; name a run folder, or a checkpoint such as RUN/checkpoints/ba00001200'
        )
    root = f'{top}/{CHECKPOINTS}' if inside[1] else top
    return BucketPlace(bucket, root, Archive(bucket, root).complete_names())


def download_checkpoint(bucket: Bucket, url: str, folder: Path, *, optimizer: bool = True) -> Path:
    """Downloads a checkpoint, each file verified; what an earlier try brought is kept.

    Args:
        bucket (Bucket): The store.
        url (str): The checkpoint's.
        folder (Path): Where its files go; made if need be.
        optimizer (bool): Whether the optimizer's state comes along, two thirds of it.

    Returns:
        Path: ``folder``.

    Raises:
        UserError: If it is not complete in the bucket, or the bucket cannot be read or this disk not be written.
    """
    try:
        text = bucket.read(f'{url}/{MANIFEST_FILE}', largest_bytes=LARGEST_BYTES)
        if text is None:
            raise UserError(f'{url} is no complete checkpoint: {MANIFEST_FILE} is missing')
        manifest = parse_manifest(text, f'{url}/{MANIFEST_FILE}')
        folder.mkdir(parents=True, exist_ok=True)
        for name, entry in manifest.files.items():
            if optimizer or not OPTIMIZER_FILE.fullmatch(name):
                bucket.download(f'{url}/{name}', folder / name, size=entry.bytes, sha256=entry.sha256)
        write_whole(folder / MANIFEST_FILE, text)
    except Damaged as error:
        raise UserError(f'{url} is no complete checkpoint: {error}') from None
    except OSError as error:
        raise UserError(
            f'{folder}: cannot be written ({error.strerror or error}). Set TMPDIR to a larger disk'
        ) from None
    return folder


def unlisted(bucket: Bucket, url: str) -> list[str]:
    """What lies in a checkpoint's folder without being a part of it, in words."""
    listed = parse_manifest(bucket.read(f'{url}/{MANIFEST_FILE}', largest_bytes=LARGEST_BYTES) or b'', url).files
    own = {*listed, MANIFEST_FILE, PIN_FILE, UNFINISHED_FILE}
    return [f'{e.name} is not listed in {MANIFEST_FILE}' for e in bucket.list(url) if e.name not in own]


def choose_origin(origin: str) -> str:
    """The checkpoint that a run starts from; for one rank, since the run that it is of may be going on.

    Args:
        origin (str): What follows ``checkpoint:`` in ``model.init_from``.

    Returns:
        str: Its folder or URL.

    Raises:
        UserError: If there is none.
    """
    return find_in_bucket(origin).checkpoint(origin) if is_bucket(origin) else str(find_checkpoint(origin))


def bring_origin(chosen: str, run: str) -> None:
    """Downloads the checkpoint that a run starts from, if it is in a bucket; for one rank of each node.

    Args:
        chosen (str): From :func:`choose_origin`.
        run (str): The run's folder, which has a place of its own for it.

    Raises:
        UserError: If it cannot be brought here.
    """
    if is_bucket(chosen):
        download_checkpoint(open_bucket(chosen), chosen, origin_folder(chosen, run))


def origin_folder(chosen: str, run: str) -> Path:
    """Where that checkpoint is on this machine once it has been brought."""
    return _cache(run, chosen) if is_bucket(chosen) else Path(chosen)


def forget_origins(run: str) -> None:
    """Frees the disk of what :func:`bring_origin` has downloaded: the run has a checkpoint of its own by now."""
    shutil.rmtree(_cache(run), ignore_errors=True)


def _cache(run: str, *chosen: str) -> Path:
    names = [hashlib.sha256(text.rstrip('/').encode()).hexdigest()[:16] for text in (os.path.abspath(run), *chosen)]
    return private_folder(f'rewarm-{os.getuid()}', f'origin-{names[0]}', *names[1:])
