"""Objects that a bucket does not take though it takes others: each has its own verdict, and none holds up another.

One server was seen to answer ``InternalError`` to each PUT of one key for ever, after a kill in the middle of one.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rewarm.buckets.errors import BucketError, Declined, Unreachable

__all__ = ['Refusals', 'Refused']

PATIENCE_SECONDS = 60.0
"""How long a server may say of one object that it cannot now, while it takes others, before that is its last word."""


class Refused(BucketError):
    """The bucket does not take this object, and takes others."""

    seconds = 0.0
    """How long it has not."""
    at_once = False
    """Whether it said so once and for all, as it does where the keys do not allow it."""

    @property
    def for_good(self) -> bool:
        """Whether asking again is not expected to help."""
        return self.at_once or self.seconds >= PATIENCE_SECONDS


@dataclass
class _Refusal:
    reason: str
    since: float
    at_once: bool


class Refusals:
    """Keeps apart what a bucket refuses and a bucket that is away.

    Args:
        prove (Callable): Writes something else to the bucket; raises if that fails too.
        tell (Callable[[str, str | None], None]): Called with its URL and the reason when an object is refused that was
            not before, and with its URL alone when it is taken at last.
    """

    def __init__(self, prove: Callable[[], object], tell: Callable[[str, str | None], None]) -> None:
        self._prove = prove
        self._tell = tell
        self._refused: dict[str, _Refusal] = {}

    def attempt(self, url: str, send: Callable[[], object]) -> bool:
        """Sends or deletes an object.

        Returns:
            bool: Whether the bucket did it; if not, it does not do this one and does others.

        Raises:
            BucketError: If it does not answer, or takes nothing at all.
        """
        try:
            send()
        except BucketError as error:
            is_unanswered = isinstance(error, Unreachable) and not isinstance(error, Declined)
            if is_unanswered or error.takes_nothing or isinstance(error, Refused):
                raise
            self._prove_that_it_takes_others()
            before = self._refused.get(url)
            since = time.monotonic() if before is None else before.since
            self._refused[url] = _Refusal(str(error), since, at_once=not isinstance(error, Declined))
            if before is None:
                self._tell(url, str(error))
            return False
        if self._refused.pop(url, None) is not None:
            self._tell(url, None)
        return True

    def _prove_that_it_takes_others(self) -> None:
        try:
            self._prove()
        except BucketError as error:
            error.takes_nothing = True
            raise

    def require(self, url: str, send: Callable[[], object]) -> None:
        """Sends an object without which it does not go on.

        Raises:
            Refused: If the bucket does not take it.
            BucketError: As :meth:`attempt`.
        """
        if not self.attempt(url, send) and (refused := self.error([url])) is not None:
            raise refused

    def error(self, urls: Iterable[str]) -> Refused | None:
        """What to raise for those of some objects that are refused; None if none is."""
        found = [self._refused[url] for url in urls if url in self._refused]
        if not found:
            return None
        worst = min(found, key=lambda each: (not each.at_once, each.since))
        error = Refused(worst.reason + (f'. {len(found) - 1} more are refused' if len(found) > 1 else ''))
        error.seconds, error.at_once = time.monotonic() - worst.since, worst.at_once
        return error
