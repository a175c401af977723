"""What goes wrong with a bucket, in words; the caller decides whether to stop or to try again."""

from rewarm.config.errors import UserError
from rewarm.config.secrets import without_secrets

LONGEST = 2500
"""Characters of a message."""


class BucketError(UserError):
    """A request to a bucket failed; the message names the URL and what to do, and no secret."""

    takes_nothing = False
    """Whether the bucket was asked for something else at once and failed too."""

    def __init__(self, message: str) -> None:
        text = without_secrets(message)  # of which a server may have said any part
        super().__init__(text if len(text) <= LONGEST else f'{text[: LONGEST - 500]} ... {text[-500:]}')


class Unreachable(BucketError):
    """Nobody answered, or the server could not serve now: trying again may help, and nothing else will."""


class CutShort(Unreachable):
    """An answer began and broke off: the connection did, or the object is shorter than the server believes."""


class Declined(Unreachable):
    """The server answered that it cannot do this now; it may do other things."""


class Damaged(BucketError):
    """An object is missing, or is not what its size or its hash says."""
