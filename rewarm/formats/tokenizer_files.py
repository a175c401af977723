"""Where a tokenizer is on this machine, and its hash without reading it twice."""

import functools
import hashlib
import os
import re
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.formats.files import private_folder, read_bytes, write_whole
from rewarm.formats.tokenizer import tokenizer_hash

__all__ = ['find_tokenizer', 'is_in_hub_cache', 'remembered_hash']

_LARGEST_BYTES = 1 << 28
_HASH = re.compile(rb'sha256:[0-9a-f]{64}')


def find_tokenizer(name: str) -> Path:
    """Finds a ``tokenizer.json`` that is already on this machine.

    Args:
        name (str): Path to the file, to a folder that holds it, or a Hugging Face id in the local cache.

    Returns:
        Path: The file.

    Raises:
        UserError: If there is none.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        if os.path.isfile(path / 'tokenizer.json'):
            return path / 'tokenizer.json'
        raise UserError(f'{name}: the folder holds no tokenizer.json')
    if re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, 'tokenizer.json')
        if isinstance(cached, str):
            return Path(cached)
        raise UserError(
            f'tokenizer {name}: no such file, and no such id in the Hugging Face cache. Name a tokenizer.json, or '
            f'fetch it once with: hf download {name} tokenizer.json tokenizer_config.json'
        )
    raise UserError(f'tokenizer {name}: no such file')


def is_in_hub_cache(model_id: str) -> bool:
    """Whether anything of a Hugging Face id is in this machine's cache; without the library, whose import takes a third of a second.

    Args:
        model_id (str): Such as ``EleutherAI/pythia-410m``.

    Returns:
        bool: False only if the library would find nothing.
    """
    get = os.environ.get
    home = get('HF_HOME') or os.path.join(get('XDG_CACHE_HOME') or '~/.cache', 'huggingface')
    cache = get('HF_HUB_CACHE') or get('HUGGINGFACE_HUB_CACHE') or os.path.join(home, 'hub')
    name = f'models--{model_id.partition("@")[0].replace("/", "--")}'
    return os.path.isdir(os.path.expanduser(os.path.expandvars(os.path.join(cache, name))))


def remembered_hash(path: Path) -> str:
    """`tokenizer_hash`, whose third of a second for a usual vocabulary a machine takes once.

    What was found is kept below the temporary folder, under the SHA-256 of the file's bytes, so it cannot be out of date.

    Args:
        path (Path): A ``tokenizer.json``.

    Returns:
        str: ``sha256:`` and 64 hex digits.

    Raises:
        UserError: If the file is not there or is not a tokenizer's.
    """
    try:
        data = read_bytes(path, largest_bytes=_LARGEST_BYTES)
    except FileNotFoundError:
        raise UserError(f'{path}: not a readable tokenizer.json (there is no such file)') from None
    return _hash_of(path, hashlib.sha256(data).hexdigest())


@functools.cache
def _hash_of(path: Path, content: str) -> str:
    try:
        memory = private_folder(f'rewarm-{os.getuid()}', 'tokenizer-hashes') / content
    except UserError:
        return tokenizer_hash(path)  # nowhere to keep it
    if (known := _read_memory(memory)) is not None:
        return known
    found = tokenizer_hash(path)
    try:
        write_whole(memory, found.encode())
    except OSError:
        return found  # a full disk is no reason not to plan
    return found


def _read_memory(path: Path) -> str | None:
    """What is kept in a file; None if it is not there yet, or is no hash and is to be made anew."""
    try:
        text = read_bytes(path, largest_bytes=100)
    except (FileNotFoundError, UserError):
        return None
    return text.decode() if _HASH.fullmatch(text) else None
