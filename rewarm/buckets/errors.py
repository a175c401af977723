"""What goes wrong with a bucket, in words; the caller decides whether to stop or to try again."""

import re

from rewarm.config.errors import UserError

_USERINFO = re.compile(r'(?<=://)[^/\s\'"<>]*@')


class BucketError(UserError):
    """A request to a bucket failed; the message names the URL and what to do, and no user or password in a URL."""

    def __init__(self, message: str) -> None:
        super().__init__(_USERINFO.sub('***@', message))


class Unreachable(BucketError):
    """Nobody answered, or the server could not serve now: trying again may help, and nothing else will."""


class CutShort(Unreachable):
    """An answer began and broke off: the connection did, or the object is shorter than the server believes."""


class Declined(Unreachable):
    """The server answered that it cannot do this now; it may do other things."""


class Damaged(BucketError):
    """An object is missing, or is not what its size or its hash says."""
