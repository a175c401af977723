"""The commit of a git checkout, read from its files: there may be no git on the machine that trains."""

import re
from contextlib import suppress
from pathlib import Path

__all__ = ['find_commit']

PROJECT = Path(__file__).resolve().parents[1]

_HASH = re.compile('[0-9a-f]{40}|[0-9a-f]{64}')


def find_commit(checkout: Path = PROJECT) -> str | None:
    """The commit that a checkout is at, whatever was changed since.

    Args:
        checkout (Path): Its top folder, which may be a worktree. Default: where this package lies.

    Returns:
        str | None: The full hash; ``None`` where there is no checkout, as in an installed package.
    """
    with suppress(OSError, UnicodeDecodeError):
        folder = checkout / '.git'
        if folder.is_file():  # of a worktree: it names the folder
            folder = checkout / folder.read_text().removeprefix('gitdir:').strip()
        head = (folder / 'HEAD').read_text().strip()
        name = head.removeprefix('ref:').strip()
        if name == head:  # no branch is checked out
            return head if _HASH.fullmatch(head) else None
        common = folder / 'commondir'
        shared = folder / common.read_text().strip() if common.is_file() else folder
        return _loose(shared / name) or _packed(shared / 'packed-refs', name)
    return None


def _loose(path: Path) -> str | None:
    text = path.read_text().strip() if path.is_file() else ''
    return text if _HASH.fullmatch(text) else None


def _packed(path: Path, name: str) -> str | None:
    lines = path.read_text().splitlines() if path.is_file() else []
    found = (line.partition(' ') for line in lines)
    return next((commit for commit, _, ref in found if ref == name and _HASH.fullmatch(commit)), None)
