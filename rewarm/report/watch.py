"""Looking again and again: in place on a terminal, and in a pipe a block for each change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rewarm.config.errors import UserError
from rewarm.console import is_plain, open_console
from rewarm.report.run_folder import NoRunYet
from rewarm.terminal import printable, wait_while_read

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ['BUCKET_SECONDS', 'FOLDER_SECONDS', 'Look', 'choose_seconds', 'show', 'watch']

FOLDER_SECONDS = 5.0
"""Between two looks. One at a long run takes half a second of a core."""
BUCKET_SECONDS = 60.0
"""Each look downloads the records."""

PASSING = ('age_seconds', 'eta_seconds', 'goodput', 'device_hours', 'cost', 'cost_to_come')
"""Ends of the names of facts that change with the clock alone."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    facts: Any
    """As JSON types."""
    block: RenderableType | None
    """The same for people."""


def choose_seconds(place: str, every: float | None) -> float:
    """How long to wait between looks.

    Raises:
        UserError: If that is no time to wait.
    """
    if every is None:
        return BUCKET_SECONDS if '://' in place else FOLDER_SECONDS
    if not 0.1 <= every <= 86400:
        raise UserError(f'--every {every:g}: must be between 0.1 and 86,400 seconds')
    return every


def show(look: Callable[[], Look], place: str, *, as_json: bool, watching: bool, every: float | None) -> None:
    """Shows what ``look`` sees, once or again and again.

    Args:
        look (Callable): Looks once.
        place (str): Where it looks: a folder, here or in a bucket.
        as_json (bool): Whether to print JSON instead of blocks.
        watching (bool): Whether to go on, as :func:`watch` does.
        every (float | None): Seconds between looks then. Default: by where the folder is.

    Raises:
        UserError: If the look fails, or such a wait is none.
    """
    if watching:
        watch(look, seconds=choose_seconds(place, every), as_json=as_json)
    elif as_json:
        print(json.dumps(look().facts, indent=2, allow_nan=False))
    else:
        open_console().print(look().block)


def watch(look: Callable[[], Look], *, seconds: float, as_json: bool = False) -> None:
    """Shows what ``look`` sees until Ctrl-C, or until nobody reads any more.

    What cannot be seen yet is waited for. Later a failure is shown in its place, and the next look may see again.

    Args:
        look (Callable): Looks once.
        seconds (float): Time between looks.
        as_json (bool): Whether to print JSON, a line for each change, instead of blocks.

    Raises:
        UserError: If the first look fails for another reason than that nothing is there yet.
    """
    try:
        seen = _first(look)
        if as_json or is_plain():
            _print_changes(look, seen, seconds, as_json=as_json)
        else:
            _refresh(look, seen, seconds)
    except KeyboardInterrupt:
        return


def _first(look: Callable[[], Look]) -> Look:
    try:
        return look()
    except NoRunYet as error:
        return _failure(error)


def _again(look: Callable[[], Look]) -> Look:
    try:
        return look()
    except UserError as error:
        return _failure(error)


def _failure(error: UserError) -> Look:
    from rich.text import Text

    words = printable(str(error))
    return Look({'waiting_for': words}, Text(f'Waiting. {words}'))


def _refresh(look: Callable[[], Look], seen: Look, seconds: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    console = open_console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            hint = Text(f'{_clock()}, every {seconds:g} s; Ctrl-C ends this, not the run', style='dim')
            live.update(Group(seen.block or '', hint), refresh=True)
            if not wait_while_read(seconds):
                return
            seen = _again(look)


def _print_changes(look: Callable[[], Look], seen: Look, seconds: float, *, as_json: bool) -> None:
    console, shown = open_console(), None
    while True:
        if (lasting := _lasting(seen.facts)) != shown:
            shown = lasting
            if as_json:
                print(json.dumps(seen.facts, allow_nan=False), flush=True)
            else:
                print(f'--- {_clock()}')
                console.print(seen.block or '')
        if not wait_while_read(seconds):
            return
        seen = _again(look)


def _lasting(facts: Any) -> Any:
    """Facts without what changes with the clock alone."""
    if isinstance(facts, Mapping):
        return {key: _lasting(value) for key, value in facts.items() if not str(key).endswith(PASSING)}
    return [_lasting(each) for each in facts] if isinstance(facts, list) else facts


def _clock() -> str:
    return f'{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC'
