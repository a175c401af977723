"""What is written for people: text that came from a file must not steer their terminal."""

import re

__all__ = ['printable']

_STEERING = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
"""Control characters but for newline and tab, what reverses the direction of text, and halves of surrogate pairs."""


def printable(text: str) -> str:
    r"""The text with each character that a terminal obeys instead of showing spelled out, such as ``\x1b``."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)
