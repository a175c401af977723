"""What becomes of a logger's failures: said once, recorded once with the reason, and counted."""

import contextlib
from collections.abc import Callable

from rewarm.config.secrets import without_secrets

__all__ = ['Failures', 'reason_of']

LONGEST_REASON = 400


class Failures:
    """Counts the calls of one logger that failed or were dropped in this start. From any thread; never raises.

    Args:
        name (str): The logger's, as in the run file.
        record (Callable): Writes an event: ``logger_failed`` at the first failure, and ``logger_lost`` with the number of
            further calls at the 1st, 10th, 100th ... and at the end.
        say (Callable[[str], None]): Tells the user.
    """

    def __init__(self, name: str, *, record: Callable[..., None], say: Callable[[str], None]) -> None:
        self.name = name
        self.calls = 0
        self._record = record
        self._say = say
        self._told = False
        self._silent = False
        self._recorded = 0

    def silence(self) -> None:
        """Tells and records nothing from now on: the start is refused, which says it all."""
        self._silent = True

    def tell(self, reason: str) -> None:
        """Says and records that the logger fails, unless that is known."""
        if self._told or self._silent:
            return
        self._told = True
        reason = without_secrets(reason)
        with contextlib.suppress(
            OSError, ValueError
        ):  # a full disk or a closed stream, which training finds out and says
            self._say(
                f'Logger {self.name} fails: {reason}. Training goes on; `rewarm status` counts what the logger lost.'
            )
            self._record('logger_failed', logger=self.name, reason=reason)

    def lose(self, reason: str) -> None:
        """Counts a call, and tells the reason if it is the first."""
        self.calls += 1
        self.tell(reason)
        if self.calls >= 10 * self._recorded:
            self.close()

    def close(self) -> None:
        """Records how many calls were lost since that was recorded last."""
        if (calls := self.calls - self._recorded) > 0 and not self._silent:
            self._recorded += calls
            with contextlib.suppress(OSError):  # likewise
                self._record('logger_lost', logger=self.name, calls=calls)


def reason_of(error: BaseException) -> str:
    """An error of any library in a line."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f'{text[:LONGEST_REASON]}...'
