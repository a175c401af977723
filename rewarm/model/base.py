"""The model that a training started from: its name, and the licence that its files name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rewarm.formats.base import Base
from rewarm.formats.files import open_regular

__all__ = ['Base', 'find_base']

_ID = re.compile(r'[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?', re.ASCII)
_CACHE = re.compile(r'models--([\w.-]+?)--([\w.-]+)')
_PYTHIA = re.compile(r'EleutherAI/pythia-[\w.-]+', re.ASCII)
_LICENCE = re.compile(r'^license:[ \t]*["\']?([A-Za-z0-9][\w.+-]{0,59})["\']?[ \t]*$', re.MULTILINE | re.ASCII)
_TEXTS = (
    ('apache-2.0', re.compile(r'Apache License\s+Version 2\.0')),
    ('mit', re.compile(r'MIT License|Permission is hereby granted, free of charge, to any person obtaining a copy')),
)
_HEAD_BYTES = 1 << 16


def find_base(source: str, folder: Path) -> Base:
    """Who a Hugging Face folder says it is.

    Args:
        source (str): As the user names it, without ``hf:``.
        folder (Path): Where it is on this machine.

    Returns:
        Base: Its id, or its folder's name; and its licence, ``None`` if its files do not name one.
    """
    name = _name(source, folder)
    licence = _licence_of_card(folder) or _licence_of_text(folder)
    if licence is None and name is not None and _PYTHIA.fullmatch(name):
        licence = 'apache-2.0'
    return Base(name=name, licence=licence)


def _name(source: str, folder: Path) -> str | None:
    for part in reversed(folder.parts):
        if cached := _CACHE.fullmatch(part):
            return f'{cached[1]}/{cached[2]}'
    named = source.partition('@')[0]
    if not os.path.isdir(os.path.expanduser(source)) and _ID.fullmatch(named):
        return named
    return None


def _licence_of_card(folder: Path) -> str | None:
    text = _head(folder / 'README.md')
    front = text.split('---', 2)[1] if text.startswith('---') and text.count('---') > 1 else ''
    found = _LICENCE.search(front)
    return found[1].lower() if found else None


def _licence_of_text(folder: Path) -> str | None:
    for name in ('LICENSE', 'LICENSE.txt', 'LICENSE.md'):
        text = _head(folder / name)
        for licence, pattern in _TEXTS:
            if pattern.search(text):
                return licence
    return None


def _head(path: Path) -> str:
    """The beginning of a text; nothing where there is none to be read."""
    try:
        with open_regular(path) as file:
            return file.read(_HEAD_BYTES).decode(errors='replace')
    except (OSError, ValueError):
        return ''
