"""Which documents are kept for validation: those whose text has a low hash, wherever they are and whatever is beside them.

Corpora are often sorted by a hash of their text, or are a part of one that was. So the hash that decides is one by
which nobody sorts: it is keyed. Rules have numbers, since a dataset that is half made must be finished by its own.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import xxhash

__all__ = ['RULE', 'RULES', 'is_validation', 'new_hash', 'rule_in_words', 'rule_of', 'share_in_words', 'split_warning']

RULE = 2
"""The rule of today. Rule 1 was SHA-1 without a key, by which deduplicated corpora are sorted."""

SEED = int.from_bytes(b'rewarm02', 'big')
"""Key of rule 2."""

_NEW_HASH: dict[int, Callable[..., Any]] = {1: hashlib.sha1, 2: functools.partial(xxhash.xxh3_64, seed=SEED)}
RULES = tuple(_NEW_HASH)
"""All rules that can be carried out."""

_HASH_IN_WORDS = {1: 'SHA-1', 2: f'XXH3-64 with seed {SEED:#x}'}

_UNLIKELY = math.log(1e6)
_FAR = 0.1


def rule_of(settings: Mapping[str, object]) -> int:
    """The rule by which something was split.

    Args:
        settings (Mapping[str, object]): Of a card, or of an unfinished conversion; the first rule was not named there.

    Returns:
        int: Its number, which may be one that this version does not know.
    """
    rule = settings.get('split_rule', 1)
    return rule if isinstance(rule, int) else 0


def new_hash(rule: int, data: bytes = b'') -> Any:
    """A hash object as those of `hashlib`, for text in UTF-8.

    Args:
        rule (int): Number of the rule.
        data (bytes): What it has been fed already.

    Returns:
        Any: Has ``update`` and ``digest``.
    """
    return _NEW_HASH[rule](data)


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether a document belongs to the validation split.

    Args:
        digest (bytes): Hash of its text in UTF-8.
        fraction (float): Share of documents that do.

    Returns:
        bool: Whether the digest's first 8 bytes, as a big-endian number over 2**64, are below `fraction`.
    """
    return int.from_bytes(digest[:8], 'big') < int(fraction * 2**64)


def rule_in_words(split: str, fraction: float, rule: int) -> str | None:
    """What a card says of the rule by which its documents were chosen; None for a dataset that was not split."""
    if not split:
        return None
    side = 'below' if split == 'val' else 'at or above'
    return (
        f'{split}: documents whose {_HASH_IN_WORDS[rule]} (UTF-8 text, first 8 bytes, big-endian, over 2**64) '
        f'is {side} {fraction} (rule {rule})'
    )


def share_in_words(share: float) -> str:
    """A share in percent, such as ``2.0 %`` or ``0.04 %``."""
    return f'{100 * share:.1f} %' if share >= 0.001 or not share else f'{100 * share:.2g} %'


def split_warning(documents: int, chosen: int, fraction: float, rule: int) -> str | None:
    """What to say if the share of documents that was reached is far from what was asked.

    Far is a tenth of it or more, and more than chance explains: Chernoff's bound of the binomial distribution puts it
    below one in a million. So a handful of documents is never far.

    Args:
        documents (int): Documents of both splits.
        chosen (int): Those that are in ``val``.
        fraction (float): The share that was asked for, within (0, 1).
        rule (int): The rule they were chosen by.

    Returns:
        str | None: A warning with the likely reason, or None.
    """
    share = chosen / documents if documents else fraction
    if abs(share - fraction) < _FAR * fraction or documents * _divergence(share, fraction) < _UNLIKELY:
        return None
    why = (
        'This work was begun by an older version, whose rule goes by the SHA-1 of a text: on an input that is sorted by '
        "it the split is biased. Delete the dataset and convert it again, and today's rule is taken"
        if rule == 1
        else 'A text that is there many times is on one side with all its copies: deduplicate the input first'
    )
    return (
        f'val holds {share_in_words(share)} of the documents, and {share_in_words(fraction)} was asked for, which is no '
        f'chance in {documents:,} documents. {why}'
    )


def _divergence(share: float, fraction: float) -> float:
    """Relative entropy of two coins, in nats: a share this far off has at most the chance ``exp(-documents * it)``."""
    parts = ((share, fraction), (1 - share, 1 - fraction))
    return sum(p * math.log(p / q) for p, q in parts if p > 0)
