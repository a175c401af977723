"""What is a secret, and text and data without any: for all that a run writes, sends or says.

A secret is known by the name it is under (``api_token``, ``password``, ``AWS_SECRET_ACCESS_KEY``, ``X-Amz-Signature``), by its
place in a URL (``s3://user:password@bucket``), or by a shape that nothing else has (``hf_...``, a bearer token). ``tokenizer``,
``max_tokens`` and ``text_key`` are no secrets.
"""

import re
from typing import Any

__all__ = ['REDACTED', 'has_secret', 'is_secret_name', 'redacted', 'without_secrets']

REDACTED = 'REDACTED'
"""Stands where a secret was."""

_ALWAYS = frozenset(
    'secret secrets password passwords passwd passphrase pwd credential credentials authorization apikey apikeys '
    'apitoken accesskey secretkey authtoken accesstoken signature sig'.split()
)
"""Words that make a secret of whatever they name."""

_SINGULAR = frozenset(('token', 'key'))
_PLURAL = frozenset(('tokens', 'keys'))
_OF_ACCESS = frozenset('api access auth secret private account bearer refresh session security'.split())
_OF_TEXT = frozenset('text eod eos bos pad unk sep cls mask special sort primary foreign'.split())
"""With these a ``token`` is one of a vocabulary, and a ``key`` one of a table."""

# Compiled at their first use: a run file without secrets needs none of them, and `rewarm plan` answers at once.
_WORDS = r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+'

_NAME = r'[A-Za-z0-9_][\w.-]*'
_URL_USER = r"""(?x)(?<=://)(?:
        [^\s/?#'"`:@]*:(?![0-9]{1,5}(?:[/?#\s'"`]|$))(?:(?!://)[^\s'"`])*(?=@)   # user:password, which may hold a / or an @
        | (?<=http://)[^\s/?#'"`@]+(?=@) | (?<=https://)[^\s/?#'"`@]+(?=@)       # of a web server: a token alone
    )"""
_QUOTED = rf"""(["'])({_NAME})\1(\s*[:=]\s*)(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&}})\]]+)"""
_ASSIGNED = rf"""(?<![\w.-])({_NAME})(=)(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&`'"}})\]]+)"""
_SPELLED = rf"""(?<![\w.-])({_NAME})(:\s*)(?!//)(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&`'"}})\]]+)"""
_SCHEME = r'\b(Bearer|Basic)\s+[A-Za-z0-9+/=._~-]{6,}'
_SHAPE = (
    r'(?<![A-Za-z0-9_-])(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[opsru]_[A-Za-z0-9]{20,}|github_pat_\w{20,}'
    r'|sk-[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{20,}(?:[.=][A-Za-z0-9_.=-]*)?)'
)
_OVERRIDE = rf'(?a)(-{{0,2}}{_NAME})='


def is_secret_name(name: object) -> bool:
    """Whether what is under this name is a secret.

    Args:
        name (object): A key, the dotted way to one, a variable, or an argument such as ``--api-key``.
    """
    return any(_is_secret_word(part) for part in str(name).split('.'))


def without_secrets(text: str) -> str:
    """Text in which ``REDACTED`` stands for every secret, such as a message of a library before it is shown or recorded.

    Args:
        text (str): Any text, also JSON and YAML.

    Returns:
        str: The text; unchanged where there is none.
    """
    if '://' in text:
        text = re.sub(_URL_USER, REDACTED, text)
    text = re.sub(_SHAPE, REDACTED, text)
    text = re.sub(_SCHEME, rf'\1 {REDACTED}', text)
    text = re.sub(_QUOTED, lambda found: _hide(found, found[2], f'{found[1]}{found[2]}{found[1]}{found[3]}'), text)
    text = re.sub(_ASSIGNED, _hide_assigned, text)
    return re.sub(_SPELLED, _hide_spelled, text)


def redacted(data: Any) -> Any:
    """Plain data in which ``REDACTED`` stands for every secret: settings, a command line, an event.

    Args:
        data (Any): Dicts, lists and scalars; a text of the form ``key=value`` is read as an override.

    Returns:
        Any: A copy of the same shape.
    """
    if isinstance(data, dict):
        return {key: _blank(item) if is_secret_name(key) else redacted(item) for key, item in data.items()}  # pyright: ignore
    if isinstance(data, list | tuple):
        return _redacted_list(list(data))  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(data, str):
        return data
    override = re.match(_OVERRIDE, data)
    if override and is_secret_name(override[1]):
        return f'{override[1]}={REDACTED}'
    return without_secrets(data)


def has_secret(data: Any) -> bool:
    """Whether plain data holds a secret that :func:`redacted` would take out."""
    return redacted(data) != data


def _redacted_list(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for index, item in enumerate(items):
        before = items[index - 1] if index else None
        hidden = isinstance(before, str) and before.startswith('--') and '=' not in before and is_secret_name(before)
        found.append(REDACTED if hidden and isinstance(item, str) and not item.startswith('-') else redacted(item))
    return found


def _blank(data: Any) -> Any:
    """The same shape with nothing in it; what is not set, or only switched, is no secret."""
    if isinstance(data, dict):
        return {key: _blank(item) for key, item in data.items()}  # pyright: ignore
    if isinstance(data, list | tuple):
        return [_blank(item) for item in data]  # pyright: ignore
    return data if data is None or isinstance(data, bool) or data == '' else REDACTED


def _hide(found: re.Match[str], name: str, kept: str) -> str:
    return kept + REDACTED if is_secret_name(name) else found[0]


def _hide_assigned(found: re.Match[str]) -> str:
    """``api_key=x``; of ``key=value`` only what is in a URL's query."""
    alone = found[1].lower() == 'key' and found.string[found.start() - 1 : found.start()] not in ('?', '&')
    kept = f'{found[1]}='
    if not alone and is_secret_name(found[1]):
        return kept + REDACTED
    return kept + re.sub(_ASSIGNED, _hide_assigned, found[0].removeprefix(kept))  # log_dir=/logs?token=x


def _hide_spelled(found: re.Match[str]) -> str:
    """``api_key: x`` of YAML and headers; but a sentence may say "the key: x"."""
    return (
        found[0] if found[1].lower() in ('key', 'token', 'signature') else _hide(found, found[1], found[1] + found[2])
    )


def _is_secret_word(name: str) -> bool:
    words = [word.lower() for word in re.findall(_WORDS, name)]
    for index, word in enumerate(words):
        before = words[:index]
        if word in _ALWAYS or (word in _PLURAL and not _OF_ACCESS.isdisjoint(before)):
            return True
        if word in _SINGULAR and _OF_TEXT.isdisjoint(before):
            return True
    return False
