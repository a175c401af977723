"""Pins: checkpoints that no run deletes, each marked by a file in its folder, on a disk and in a bucket.

A pin may be set while a run deletes that very checkpoint. Who deletes renames the folder (in a bucket: writes
``unfinished.json``) and looks for a pin afterwards; who pins writes the pin and looks for the checkpoint afterwards. So
one of them sees the other, and what is said to be pinned is there and stays.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from rewarm.buckets.bucket import Bucket, is_bucket, open_bucket
from rewarm.config.errors import UserError
from rewarm.formats.checkpoint import (
    GONE_PREFIX,
    MANIFEST_FILE,
    NAME,
    PIN_FILE,
    PIN_TEXT,
    UNFINISHED_FILE,
    checkpoint_name,
)
from rewarm.formats.files import flush
from rewarm.resume.folders import is_pinned, names_below
from rewarm.resume.verification import is_complete

__all__ = ['find_pins', 'is_there', 'name_checkpoint', 'pin', 'unpin']

PATIENCE_SECONDS = 15.0
"""How long a deletion or an upload that is going on is waited for."""
LOOK_SECONDS = 0.1


def find_pins(run: str) -> list[str]:
    """The pinned checkpoints of a run, oldest first.

    Args:
        run (str): The run folder, here or in a bucket.

    Raises:
        UserError: If the bucket cannot be read.
    """
    if is_bucket(run):
        names = _names_in_bucket(open_bucket(run), run)
        return [name for name, files in names.items() if {MANIFEST_FILE, PIN_FILE} <= files]
    root = Path(run) / 'checkpoints'
    return [name for name in names_below(root) if is_pinned(root / name)]


def is_there(run: str, name: str) -> bool:
    """Whether a run's bucket has all of a checkpoint."""
    return open_bucket(run).find(f'{run.rstrip("/")}/checkpoints/{name}/{MANIFEST_FILE}') is not None


def name_checkpoint(run: str, text: str) -> str:
    """The checkpoint that a user means.

    Args:
        run (str): The run folder, here or in a bucket.
        text (str): Its name, its batch such as ``1200`` or ``1200ba``, or ``latest``.

    Returns:
        str: Such as ``ba00001200``; it may not be there.

    Raises:
        UserError: If it is none of these, or there is no checkpoint yet.
    """
    if NAME.fullmatch(text):
        return text
    if match := re.fullmatch(r'(\d{1,8})(ba)?', text, re.ASCII):
        return checkpoint_name(int(match[1]))
    if text != 'latest':
        raise UserError(f'{text}: no checkpoint; give its name such as ba00001200, its batch such as 1200, or latest')
    if is_bucket(run):
        names = _names_in_bucket(open_bucket(run), run)
        complete = [name for name, files in names.items() if MANIFEST_FILE in files]
    else:
        root = Path(run) / 'checkpoints'
        complete = [name for name in names_below(root) if is_complete(root / name)]
    if not complete:
        raise UserError(f'{run}: there is no complete checkpoint yet')
    return complete[-1]


def pin(run: str, name: str) -> None:
    """Pins a checkpoint: from now on no run deletes it. Pinning one again changes nothing.

    Args:
        run (str): The run folder, here or in a bucket; its run may be going on.
        name (str): From :func:`name_checkpoint`.

    Raises:
        UserError: If it is not there (any more), it cannot be written to, or what becomes of it cannot be told yet.
    """
    if is_bucket(run):
        _pin_in_bucket(open_bucket(run), run, name)
        return
    folder = Path(run) / 'checkpoints' / name
    if not os.path.lexists(folder):
        raise UserError(_not_there(run, name, names_below(folder.parent)))
    if folder.is_symlink():
        raise UserError(f'{folder} is a link, which no run deletes; what it leads to is not touched')
    if not is_complete(folder):
        raise UserError(f'{folder} is no complete checkpoint; `rewarm verify {folder}` says what is wrong with it')
    if not _wait_for(lambda: _pin_folder(folder)):
        raise UserError(_not_there(run, name, names_below(folder.parent)))


def unpin(run: str, name: str) -> None:
    """Takes a pin away; the run deletes the checkpoint with its next save if it would have.

    Raises:
        UserError: If it is not pinned, or cannot be written to.
    """
    if name not in find_pins(run):
        raise UserError(f'{run}: {name} is not pinned')
    if is_bucket(run):
        open_bucket(run).delete(f'{run.rstrip("/")}/checkpoints/{name}/{PIN_FILE}')
        return
    path = Path(run) / 'checkpoints' / name / PIN_FILE
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot be removed ({error.strerror or error})') from None


def _pin_folder(folder: Path) -> bool | None:
    """Pins once; whether that holds, None while the checkpoint is away and may come back."""
    marker, gone = folder / PIN_FILE, folder.with_name(GONE_PREFIX + folder.name)
    try:
        if not is_pinned(folder):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(marker, flags, 0o666), 'w') as file:
                file.write(PIN_TEXT)
            flush(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it was deleted in this moment, or is being looked at
    except OSError as error:
        raise UserError(f'{marker}: cannot be written ({error.strerror or error})') from None
    if is_pinned(folder):
        return True
    return None if os.path.lexists(gone) or os.path.lexists(folder) else False


def _pin_in_bucket(bucket: Bucket, run: str, name: str) -> None:
    top = f'{run.rstrip("/")}/checkpoints/{name}'
    if MANIFEST_FILE not in {entry.name for entry in bucket.list(top)}:
        raise UserError(_not_there(run, name, list(_names_in_bucket(bucket, run))))
    bucket.write(f'{top}/{PIN_FILE}', PIN_TEXT.encode())

    def decided() -> bool | None:
        files = {entry.name for entry in bucket.list(top)}
        return False if MANIFEST_FILE not in files else None if UNFINISHED_FILE in files else True

    decision = _wait_for(decided)
    if decision is False:
        bucket.delete(f'{top}/{PIN_FILE}')
        raise UserError(_not_there(run, name, list(_names_in_bucket(bucket, run))))
    if decision is None:
        raise UserError(
            f'{top}: its upload or its deletion has begun and not ended, so it cannot be told whether it stays. '
            'It is marked as pinned; ask again when the run goes on'
        )


def _wait_for(look: Callable[[], bool | None]) -> bool | None:
    """Asks until there is an answer, for a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (answer := look()) is None and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return answer


def _names_in_bucket(bucket: Bucket, run: str) -> dict[str, set[str]]:
    """The files of each checkpoint, oldest first."""
    found: dict[str, set[str]] = {}
    for entry in bucket.list(f'{run.rstrip("/")}/checkpoints'):
        name, _, file = entry.name.partition('/')
        if NAME.fullmatch(name):
            found.setdefault(name, set()).add(file)
    return dict(sorted(found.items()))


def _not_there(run: str, name: str, there: list[str]) -> str:
    others = f'there are {", ".join(there[-5:])}' if there else 'there is none yet'
    return f'{run}: {name} is not there; it was deleted, or never saved ({others})'
