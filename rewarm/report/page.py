"""Run folders -> one self-contained HTML page: charts, tables and what ran. It loads nothing from any network."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from rewarm.report.run_folder import read_runs
from rewarm.report.sections import Sections
from rewarm.report.tables import escape

__all__ = ['write_page']


def write_page(run_folders: Sequence[str | Path], out: str | Path, *, price: float | None = None) -> Path:
    """Writes the report on one or several runs, which are then also compared.

    Args:
        run_folders (Sequence[str | Path]): Run folders, finished or not, in the order in which they are shown.
        out (str | Path): The HTML file to write; it appears only when whole.
        price (float | None): Price of one device for an hour, in any unit of money, for what the runs cost.

    Returns:
        Path: The file.

    Raises:
        UserError: If one of them is no run folder.
    """
    sections = Sections(read_runs(run_folders), price)
    text = Template(_part('page.html')).substitute(
        title=escape(sections.title),
        style=_part('page.css'),
        body=sections.body(),
        figures=_script_json(sections.figures),
        plotly=_packed_plotly(),
        script=_part('page.js'),
    )
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(path)
    return path


def _part(name: str) -> str:
    return (files('rewarm.report') / name).read_text(encoding='utf-8')


@functools.cache
def _packed_plotly() -> str:
    """Plotly's script, which its package has only in full: packed it is 2 MB of the page instead of 4.8."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _script_json(value: object) -> str:
    """JSON that can stand inside a script element whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')
