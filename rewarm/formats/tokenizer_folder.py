"""A tokenizer that travels: ``tokenizer.json`` and the small files beside it that `transformers` needs to load it.

A run folder has them in ``tokenizer/``, a checkpoint and an exported folder among their own files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rewarm.config.errors import DamagedFile
from rewarm.formats.files import read_bytes
from rewarm.formats.tokenizer import END_OF_TEXT, hash_of_content, read_tokenizer_file

__all__ = [
    'CONFIG_FILE',
    'RUN_TOKENIZER',
    'SPECIAL_TOKENS',
    'TOKENIZER_FILE',
    'TOKENIZER_FILES',
    'TokenizerFiles',
    'read_settings',
    'read_special_tokens',
    'read_tokenizer_files',
]

RUN_TOKENIZER = 'tokenizer'
"""The folder in a run folder."""
TOKENIZER_FILE = 'tokenizer.json'
CONFIG_FILE = 'tokenizer_config.json'
SPECIAL_TOKENS_FILE = 'special_tokens_map.json'
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE)
SPECIAL_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
"""The parts that a token can play, as `transformers` calls them."""

LARGEST_SMALL_BYTES = 1 << 22


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer in memory.

    Args:
        hash (str): As :func:`~rewarm.formats.tokenizer.tokenizer_hash` has it.
        files (Mapping[str, bytes]): The content of each file by its name; ``tokenizer.json`` and ``tokenizer_config.json``
            are always there.
    """

    hash: str
    files: Mapping[str, bytes]


def read_tokenizer_files(path: Path) -> TokenizerFiles:
    """Reads a tokenizer with what lies beside it.

    Args:
        path (Path): A ``tokenizer.json``.

    Returns:
        TokenizerFiles: Where no ``tokenizer_config.json`` lies beside it, one that says how to load it is made.

    Raises:
        UserError: If there is no such file.
        DamagedFile: If it is no tokenizer.
    """
    tokenizer = read_tokenizer_file(path)
    files = {TOKENIZER_FILE: read_bytes(path)}
    for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE):
        data = _read_object(path.with_name(name))
        if data is not None:
            files[name] = data
    if CONFIG_FILE not in files:
        names = read_special_tokens(files, tokenizer.ids)
        files[CONFIG_FILE] = json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **names}, indent=2).encode()
    return TokenizerFiles(hash_of_content(tokenizer.content), files)


def read_special_tokens(files: Mapping[str, bytes], ids: Mapping[str, int]) -> dict[str, str]:
    """Which tokens play which part.

    Args:
        files (Mapping[str, bytes]): Of a tokenizer, by name.
        ids (Mapping[str, int]): The id of each of its tokens.

    Returns:
        dict[str, str]: The token of each part that the files name, as far as the tokenizer has it. Where they name none,
            ``<|endoftext|>`` plays all that it plays in Pythia, if the tokenizer has it.
    """
    found: dict[str, str] = {}
    for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE):
        content = _as_object(files[name]) if name in files else None
        for part in SPECIAL_TOKENS:
            token = _content_of((content or {}).get(part))
            if isinstance(token, str) and token in ids:
                found.setdefault(part, token)
    if not found and END_OF_TEXT in ids:
        return dict.fromkeys(SPECIAL_TOKENS[:3], END_OF_TEXT)
    return found


def read_settings(files: Mapping[str, bytes], kinds: Mapping[str, type]) -> dict[str, object]:
    """Settings of a ``tokenizer_config.json`` that are there and of their kind.

    Args:
        files (Mapping[str, bytes]): Of a tokenizer, by name.
        kinds (Mapping[str, type]): The type of each.
    """
    content = (_as_object(files[CONFIG_FILE]) if CONFIG_FILE in files else None) or {}
    return {key: content[key] for key, kind in kinds.items() if isinstance(content.get(key), kind)}


def _content_of(token: object) -> object:
    return cast('dict[str, object]', token).get('content') if isinstance(token, dict) else token


def _as_object(data: bytes) -> dict[str, object] | None:
    """A JSON object; ``None`` if it is none. Not read strictly: `model_max_length` is 10^30 in most of them."""
    try:
        content: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast('dict[str, object]', content) if isinstance(content, dict) else None


def _read_object(path: Path) -> bytes | None:
    """A small file beside a tokenizer; ``None`` where there is none that anything could be read from."""
    try:
        data = read_bytes(path, largest_bytes=LARGEST_SMALL_BYTES)
    except (FileNotFoundError, DamagedFile):
        return None
    return None if _as_object(data) is None else data
