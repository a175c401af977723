"""A ``tokenizer.json``: which text has which id, and the hash that ties a dataset to it.

The library that runs it, `tokenizers`, aborts the process on some files, gives added tokens other ids than the file
says, and takes the last of two tokens with one id. What is read here is a tokenizer that means one thing.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

from pydantic import Field, ValidationError

from rewarm.config.errors import DamagedFile, UserError
from rewarm.formats.files import read_bytes
from rewarm.formats.strict_json import Record, as_record, in_words, parse_json

__all__ = [
    'END_OF_TEXT',
    'LARGEST_VOCABULARY',
    'AddedToken',
    'TokenizerFile',
    'hash_of_content',
    'read_eos_token',
    'read_tokenizer_file',
    'tokenizer_hash',
]

LARGEST_VOCABULARY = 1 << 22
"""Ids of a tokenizer, and rows of an embedding. The largest in use have a quarter of a million."""

END_OF_TEXT = '<|endoftext|>'
"""What ends a document in GPT-2's and GPT-NeoX's tokenizers."""

_LARGEST_BYTES = 1 << 28
_LONGEST_PATTERN = 10_000

Id = Annotated[int, Field(ge=0, lt=LARGEST_VOCABULARY)]


class AddedToken(Record):
    """A token that is matched in the text before it is split."""

    id: Id
    """Its id."""
    content: str
    """Its text."""
    special: bool = False
    """Whether `tokenizers` can be told to take it for text."""
    lstrip: bool = False
    """Whether it takes the space before it."""
    rstrip: bool = False
    """Whether it takes the space behind it."""
    single_word: bool = False
    """Whether it must stand alone."""
    normalized: bool = True
    """Whether it is looked for in normalized text."""


class _Model(Record):
    type: str | None = None
    vocab: dict[str, Id] | list[tuple[str, float]]  # the second for Unigram, where the place is the id
    dropout: float | None = None
    byte_fallback: bool | None = False
    ignore_merges: bool | None = False
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _File(Record):
    model: _Model
    added_tokens: tuple[AddedToken, ...] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class _Named(Record):
    content: str


class _Config(Record):
    eos_token: str | _Named | None = None


class TokenizerFile(NamedTuple):
    """A tokenizer as its file has it."""

    path: Path
    """The file."""
    content: dict[str, Any]
    """All its JSON."""
    ids: dict[str, int]
    """The id of each token, added ones included."""
    added: tuple[AddedToken, ...]
    """Those that are matched before the text is split."""

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values()) + 1


def read_tokenizer_file(path: str | Path) -> TokenizerFile:
    """Reads a ``tokenizer.json``.

    Raises:
        UserError: If there is no such file.
        DamagedFile: If it is not a tokenizer, an id is none or is there twice, or a pattern is longer than any in use.
    """
    data = _read(path)
    content = parse_json(data, path)
    file = as_record(_File, data, path)
    vocab = file.model.vocab
    if isinstance(vocab, list) and len(vocab) > LARGEST_VOCABULARY:
        raise DamagedFile(path, place='model.vocab', what=f'{len(vocab):,} tokens, more than {LARGEST_VOCABULARY:,}')
    ids = dict(vocab) if isinstance(vocab, dict) else {token: at for at, (token, _) in enumerate(vocab)}
    if len(ids) != len(vocab):
        raise DamagedFile(path, place='model.vocab', what='a token is there twice')
    added = file.added_tokens or ()
    for at, token in enumerate(added):
        if not token.content:
            raise DamagedFile(path, place=f'added_tokens.{at}', what='a token without text')
        if ids.setdefault(token.content, token.id) != token.id:
            what = f'the token {token.content!r:.60} has the id {token.id} here and {ids[token.content]} elsewhere'
            raise DamagedFile(path, place=f'added_tokens.{at}', what=what)
    if not ids:
        raise DamagedFile(path, place='model.vocab', what='no token at all')
    _check_unique(ids, path)
    for part in (file.normalizer, file.pre_tokenizer, file.post_processor, file.decoder):
        _check_patterns(part, path)
    return TokenizerFile(Path(path), content, ids, added)


def read_eos_token(path: str | Path) -> str | None:
    """The token that ends a document, as a ``tokenizer_config.json`` names it; ``None`` if it does not, or is not there.

    Raises:
        DamagedFile: If it is not JSON, or the token is neither a text nor an object with one.
    """
    try:
        # Not read strictly: `model_max_length` is 10^30 in most of them.
        named = _Config.model_validate_json(read_bytes(path, largest_bytes=_LARGEST_BYTES)).eos_token
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise DamagedFile(path, place='.'.join(map(str, first['loc'])), what=in_words(first)) from None
    return named.content if isinstance(named, _Named) else named


def tokenizer_hash(path: str | Path) -> str:
    """Hashes a tokenizer by what it says, not by how its file is laid out.

    Args:
        path (str | Path): A ``tokenizer.json``.

    Returns:
        str: ``sha256:`` and 64 hex digits, of the file's JSON with sorted keys and no spaces.

    Raises:
        UserError: If the file is not there or is not JSON.
    """
    return hash_of_content(parse_json(_read(path), path))


def hash_of_content(content: object) -> str:
    """The same of a tokenizer's JSON that has been read."""
    canonical = json.dumps(content, sort_keys=True, separators=(',', ':'), ensure_ascii=False)
    return f'sha256:{hashlib.sha256(canonical.encode()).hexdigest()}'


def _read(path: str | Path) -> bytes:
    try:
        return read_bytes(path, largest_bytes=_LARGEST_BYTES)
    except FileNotFoundError:
        raise UserError(f'{path}: not a readable tokenizer.json (there is no such file)') from None


def _check_unique(ids: dict[str, int], path: str | Path) -> None:
    token_of: dict[int, str] = {}
    for token, number in ids.items():
        other = token_of.setdefault(number, token)
        if other != token:
            raise DamagedFile(path, what=f'the tokens {other!r:.60} and {token!r:.60} both have the id {number}')


def _check_patterns(part: object, path: str | Path) -> None:
    """A pattern can take memory and time without end; one of a usual length takes time only (see ``data/pool.py``)."""
    if isinstance(part, list):
        for item in cast('list[object]', part):
            _check_patterns(item, path)
    elif isinstance(part, dict):
        for key, value in cast('dict[str, object]', part).items():
            if key in ('Regex', 'String') and isinstance(value, str) and len(value) > _LONGEST_PATTERN:
                raise DamagedFile(path, place=key, what=f'a pattern of {len(value):,} characters')
            _check_patterns(value, path)
