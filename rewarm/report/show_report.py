"""``rewarm report``: writes the page, says where it is, and may show it in a browser."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewarm.report.arms import last_stage_arm
from rewarm.report.findings import findings
from rewarm.report.page import write_page
from rewarm.report.run_folder import read_runs
from rewarm.report.show_status import to_json
from rewarm.report.status import find_status
from rewarm.report.summary import in_order
from rewarm.terminal import printable

__all__ = ['report_command']

IN_TERMINAL = (webbrowser.GenericBrowser, webbrowser.Elinks)
"""What Python knows of that shows a page where the command was typed."""


def report_command(
    run_folders: Sequence[str | Path],
    out: Path,
    *,
    price: float | None = None,
    as_json: bool = False,
    opening: bool = False,
) -> None:
    """Writes the page and prints where it is.

    Args:
        run_folders (Sequence[str | Path]): Run folders, finished or not, in the order in which they are shown.
        out (Path): The HTML file to write.
        price (float | None): Price of one device for an hour, in any unit of money.
        as_json (bool): Whether to print JSON, with the status of each run and what they show together.
        opening (bool): Whether to show the page in a browser, if there is one.

    Raises:
        UserError: If one of them is no run folder, or the page cannot be written.
    """
    page = write_page(run_folders, out, price=price)
    if as_json:
        print(json.dumps(_to_json(run_folders, page, price), indent=2, allow_nan=False), flush=True)
    else:
        print(printable(str(page)), flush=True)
    if opening and (problem := _open(page)) is not None:
        print(f'{problem}; open the file yourself', file=sys.stderr)


def _to_json(run_folders: Sequence[str | Path], page: Path, price: float | None) -> dict[str, Any]:
    arms = in_order([arm for arm in map(last_stage_arm, read_runs(run_folders)) if arm])
    found = findings(arms) if len(arms) > 1 else []
    return {
        'page': printable(str(page)),
        'runs': [to_json(find_status(folder), price) for folder in run_folders],
        'findings': [asdict(each) for each in found],
    }


def _open(page: Path) -> str | None:
    """Shows a page in a browser of its own window; why not, in words.

    One that draws in the terminal would take it from whoever works there; it is used only if ``$BROWSER`` asks for it.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return 'no browser was found here'
    if type(browser) in IN_TERMINAL and not os.environ.get('BROWSER'):
        return f'the only browser here, {browser.name}, draws in the terminal'
    return None if browser.open(page.resolve().as_uri()) else 'the browser could not be started'
