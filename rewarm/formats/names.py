"""The one rule for names that a file or a listing gives: below the folder they belong to, and nowhere else.

``shard.00000.mds`` and ``g0/shard.00000.mds`` are such names. What is absolute, climbs with ``..``, or could be two files
at once is refused before anything is opened, written or deleted by it.
"""

from collections.abc import Collection, Iterable

from rewarm.config.errors import DamagedFile

__all__ = ['check_names', 'is_plain', 'name_problem']

LONGEST_COMPONENT_BYTES = 255  # of Linux's file systems
LONGEST_NAME_BYTES = 1024  # of an S3 key


def name_problem(name: object) -> str | None:
    """What is wrong with a relative file name, as text; ``None`` if it may be used below any folder."""
    if not isinstance(name, str):
        return f'is no text but {name!r:.40}'
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return 'is no valid Unicode'
    components = name.split('/')
    if name.startswith('/'):
        return 'is absolute'
    if any(component in ('', '.', '..') for component in components):
        return 'has a part that is empty, `.` or `..`'
    if not name.isprintable():
        return 'has a character that cannot be printed'
    if size > LONGEST_NAME_BYTES or any(len(each.encode()) > LONGEST_COMPONENT_BYTES for each in components):
        return 'is too long'
    return None


def is_plain(name: object) -> bool:
    """Whether a name may be used below any folder."""
    return name_problem(name) is None


def check_names(names: Iterable[object], where: object, *, reserved: Collection[str] = ()) -> None:
    """Checks all names that one file gives.

    Args:
        names (Iterable[object]): As read, of any type.
        where (object): The file that gives them, for the message.
        reserved (Collection[str]): File names that none may have, in no folder.

    Raises:
        DamagedFile: If one is not plain, is there twice, is a folder of another, or is reserved.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if (problem := name_problem(name)) is not None:
            raise DamagedFile(where, place=f'the name {name!r:.100}', what=problem)
        text = str(name)
        if text in seen:
            raise DamagedFile(where, place=f'the name {text!r:.100}', what='is there twice')
        if text.rpartition('/')[2] in reserved:
            raise DamagedFile(where, place=f'the name {text!r:.100}', what='is the name of another file of this folder')
        seen.add(text)
        if '/' in text:
            folders.update(text[:at] for at, letter in enumerate(text) if letter == '/')
    if both := seen & folders:
        raise DamagedFile(where, place=f'the name {min(both)!r:.100}', what='is a file and a folder')
