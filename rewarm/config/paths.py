"""Paths and URLs as settings: one rule for every key that holds one."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rewarm.config.secrets import without_secrets
from rewarm.terminal import printable

__all__ = ['InitFrom', 'PathText', 'expand_path', 'is_url']

LONGEST_COMPONENT_BYTES = 255
"""Of Linux's file systems."""

LONGEST_PATH_BYTES = 3840
"""Linux takes 4,096, and what a run writes is below the folder that is named."""

LONGEST_KEY_BYTES = 1024
"""Of a name in S3, GCS and Azure."""

_VARIABLE = re.compile(r'\$([A-Za-z_][A-Za-z0-9_]*)')
_UNSEEN = re.compile('[\n\t\xad\u200b\u2060\ufeff]')
_KEYS_OF = {
    's3': '`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or a profile or role of AWS',
    'gs': '`GOOGLE_APPLICATION_CREDENTIALS`',
    'az': '`AZURE_ACCOUNT_NAME` and `AZURE_ACCOUNT_ACCESS_KEY`',
}
"""Where each object store's keys are looked for."""


def is_url(text: str) -> bool:
    """Whether this is a URL, as those of object stores are, and no path on this machine."""
    return '://' in text


def expand_path(text: str) -> str:
    """A path or URL as it is used: ``~`` and ``$NAME`` put in; one that no machine takes is refused.

    Args:
        text (str): As written.

    Returns:
        str: The path; expanding it again changes nothing.

    Raises:
        PydanticCustomError: With words, if it holds a secret, a control character, or a variable that is not set, or is too long.
    """
    if not text.strip():
        raise _refusal('must not be empty')
    if is_url(text) and without_secrets(text) != text:
        scheme = text.partition('://')[0].lower()
        where = _KEYS_OF.get(scheme, 'environment variables that its client reads')
        raise _refusal(
            f'must not hold a password or key, since it is written down in many places. Put them into {where}'
        )
    expanded = _VARIABLE.sub(_put_variable, _put_home(text))
    if '${' in expanded or (expanded != text and (_VARIABLE.search(expanded) or expanded.startswith('~'))):
        raise _refusal(f'is {expanded!r:.100} with its variables put in, which holds one again. Write it in full')
    if printable(expanded) != expanded or _UNSEEN.search(expanded):
        raise _refusal(f'must not hold control characters or line breaks, or what nobody sees, got {text!a:.100}')
    _check_length(expanded)
    return expanded


def _refusal(reason: str) -> PydanticCustomError:
    return PydanticCustomError('path', '{reason}', {'reason': reason})


def _put_home(text: str) -> str:
    if not text.startswith('~'):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith('~'):
        user = text.partition('/')[0]
        raise _refusal(
            f'begins with `{user:.40}`, whose home folder is not known. Write the path in full, or `./{user:.40}`'
        )
    return expanded


def _put_variable(found: re.Match[str]) -> str:
    value = os.environ.get(found[1])
    if not value:
        raise _refusal(
            f'holds `{found[0]:.60}`, which is not set in the environment. Set it, or write the path in full'
        )
    return value


def _check_length(path: str) -> None:
    longest = LONGEST_KEY_BYTES if is_url(path) else LONGEST_PATH_BYTES
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise _refusal('is no valid Unicode') from None
    if size > longest:
        raise _refusal(f'has {size:,} bytes, and at most {longest:,} are possible. Shorten it')
    longest_part = max(len(part.encode()) for part in path.split('/'))
    if longest_part > LONGEST_COMPONENT_BYTES and not is_url(path):
        raise _refusal(
            f'has a name of {longest_part:,} bytes in it, and file systems take {LONGEST_COMPONENT_BYTES}. Shorten it'
        )


def _expand_init(text: str) -> str:
    kind, colon, path = text.partition(':')
    return f'{kind}:{expand_path(path)}' if colon else text


PathText = Annotated[str, Field(min_length=1), AfterValidator(expand_path)]
"""A path on this machine, or a URL."""

InitFrom = Annotated[str, Field(pattern=r'^(hf:.+|checkpoint:.+|scratch)$'), AfterValidator(_expand_init)]
"""Where weights come from; a path follows the colon."""
