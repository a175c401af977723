"""Errors that are the user's to fix: they end the command with exit code 2 and print no traceback."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where and what to write instead."""


class ConfigError(UserError):
    """One or more problems in a run file or on the command line, all found at once.

    Args:
        problems (Iterable[str]): One line for each problem, such as ``run.yaml:12: unknown key ...``.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__('\n'.join(self.problems))
