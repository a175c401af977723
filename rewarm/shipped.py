"""The run files and launch recipes that come with the package: one copy, in a checkout at its root, in a wheel below `rewarm/`."""

import os
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from rewarm.config.errors import UserError

__all__ = ['FOLDERS', 'shipped_files', 'write_shipped']

FOLDERS = ('yamls', 'scripts/launch')
"""What is shipped, relative to the root of a checkout; in a wheel the same below ``rewarm/share``."""


def _root() -> Path:
    package = Path(__file__).parent
    installed = package / 'share'
    return installed if installed.is_dir() else package.parent


def shipped_files(folders: Iterable[str] = FOLDERS) -> dict[str, Path]:
    """Where each shipped file lies.

    Args:
        folders (Iterable[str]): Those of ``FOLDERS``, or folders in them, such as ``yamls/demo``.

    Returns:
        dict[str, Path]: By its name relative to a checkout, sorted, such as ``yamls/demo/quick.yaml``.
    """
    root = _root()
    files = (path for folder in folders for path in (root / folder).rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix(): path for path in sorted(files)}


def write_shipped(folder: Path, folders: Iterable[str] = FOLDERS) -> list[tuple[Path, str]]:
    """Copies shipped files into a folder, made if needed.

    Args:
        folder (Path): Where to.
        folders (Iterable[str]): Which, as for :func:`shipped_files`.

    Returns:
        list[tuple[Path, str]]: Each file that was written and what it says it is.

    Raises:
        UserError: If one of them is there already or cannot be written; in the first case nothing is written.
    """
    wanted = {folder / name: source for name, source in shipped_files(folders).items()}
    there = [path for path in wanted if os.path.lexists(path)]
    if there:
        more = f' and {len(there) - 1} more' if len(there) > 1 else ''
        raise UserError(f'{there[0]}{more} would be overwritten; name another folder')
    try:
        for path, source in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open('rb') as data, path.open('xb') as copy:
                shutil.copyfileobj(data, copy)
            path.chmod(path.stat().st_mode | source.stat().st_mode & 0o111)
    except OSError as error:
        raise UserError(f'{error.filename or folder}: cannot be written ({error.strerror})') from None
    return [(path, _first_words(source)) for path, source in wanted.items()]


def _first_words(path: Path) -> str:
    """How a file's own explanation begins."""
    lines = path.read_text('utf-8').splitlines()
    words = (line.removeprefix('#').strip() for line in lines if line.startswith('# ') and '$schema' not in line)
    if path.suffix == '.json':
        return 'JSON Schema of run files, for editors'
    sentence = re.split(r'[.:] (?=[A-Z])|[.:;]$', next(words, ''))[0]
    return textwrap.shorten(sentence, 90, placeholder=' ...')
