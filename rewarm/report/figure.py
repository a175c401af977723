"""The README's figure: the arms of a demo side by side, drawn from their run folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewarm.config.errors import UserError
from rewarm.report.arms import Arm, last_stage_arm
from rewarm.report.run_folder import read_runs
from rewarm.report.summary import in_order

__all__ = ['write_figure']

COLOURS = {
    'rewarm': '#b8480b',
    'constant': '#0a67a3',
    'scratch': '#6b6b6b',
    'replay': '#00805e',
    'same-data': '#a4468a',
}
OTHERS = ('#8a6d00', '#2f86c0', '#7c4bb0', '#a03038')
DASHES = {'rewarm': '-', 'constant': (0, (5, 2)), 'scratch': (0, (1, 1.5)), 'replay': (0, (6, 2, 1, 2))}
LABELS = {
    'rewarm': 're-warmed',
    'constant': 'constant rate',
    'scratch': 'from scratch',
    'replay': 're-warmed + replay',
    'same-data': 're-warmed, same data',
}
STYLE: dict[Any, Any] = {
    'font.family': 'sans-serif',
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#8a877f',
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'xtick.color': '#4a4843',
    'ytick.color': '#4a4843',
    'grid.color': '#ebe8e0',
    'axes.grid': True,
    'axes.axisbelow': True,
    'svg.fonttype': 'path',
    'svg.hashsalt': 'rewarm',  # the same runs give the same file
}


def write_figure(run_folders: Sequence[str | Path], out: str | Path) -> Path:
    """Draws old loss and new loss of several runs side by side over the tokens of the last stage, the rate below.

    The background is white, so it reads on light and dark pages alike. Where an untrained model begins, the loss axis
    is cut.

    Args:
        run_folders (Sequence[str | Path]): Run folders.
        out (str | Path): The file to write; its suffix says the format, ``.svg`` or ``.png``.

    Returns:
        Path: The file.

    Raises:
        UserError: If a folder is no run folder, none was evaluated, or the suffix is another.
    """
    path = Path(out)
    if path.suffix not in ('.svg', '.png'):
        raise UserError(f'{path}: a figure is written as .svg or .png')
    arms = [arm for arm in map(last_stage_arm, read_runs(run_folders)) if arm]
    if not arms:
        raise UserError('nothing to draw: no run was evaluated yet')
    arms = in_order(arms)

    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    unit, divisor = _unit(max(arm.stage.done_tokens for arm in arms))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.1), facecolor='white', layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2, sharex=True, gridspec_kw={'height_ratios': [3, 1]})
        for index, arm in enumerate(arms):
            alone = [other.part for other in arms].count(arm.part) == 1
            style = _style(arm, arm.part if alone else None, index)
            for column, curve in enumerate((arm.old_curve, arm.new_curve)):
                axes[0][column].plot([t / divisor for t, _ in curve], [y for _, y in curve], **style)
            batches = arm.run.stage_batches(arm.stage.name)
            for axis in axes[1]:
                axis.plot([line.stage_tokens / divisor for line in batches], [line.lr for line in batches], **style)
        for column, title in enumerate(('Loss on old data', 'Loss on new data')):
            axes[0][column].set_title(title)
            axes[0][column].set_ylim(*_limits(arms, column))
            axes[1][column].set_xlabel(
                f'tokens since the stage began ({unit})' if unit else 'tokens since the stage began'
            )
            axes[1][column].set_ylim(bottom=0)
            axes[1][column].ticklabel_format(axis='y', style='sci', scilimits=(0, 0), useMathText=True)
            axes[1][column].margins(x=0.01)
        axes[0][0].set_ylabel('nats per token')
        axes[1][0].set_ylabel('learning rate')
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside upper left', ncols=len(arms), frameon=False, handlelength=2.6)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, metadata={'Date': None} if path.suffix == '.svg' else None)
    return path


def _style(arm: Arm, role: str | None, index: int) -> dict[str, object]:
    """Of the only run of its part, the part's own; where several have the same part, their names tell them apart."""
    colour = COLOURS[role] if role else OTHERS[index % len(OTHERS)]
    label = LABELS[role] if role else arm.name.replace('$', r'\$')
    return {'color': colour, 'linestyle': DASHES.get(role or '', '-'), 'label': label, 'linewidth': 1.6}


def _limits(arms: Sequence[Arm], column: int) -> tuple[float, float]:
    """The loss axis: all that was measured, but of untrained starts only what lies near the others."""
    values = []
    for arm in arms:
        outcome = arm.old or arm.new
        after = 0.1 * arm.stage.planned_tokens if outcome and outcome.untrained else 0
        curve = arm.old_curve if column == 0 else arm.new_curve
        values += [loss for tokens, loss in curve if tokens >= after and math.isfinite(loss)]
    if not values:
        return 0.0, 1.0
    margin = 0.05 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


def _unit(tokens: int) -> tuple[str, int]:
    for unit, size in (('billions', 10**9), ('millions', 10**6), ('thousands', 10**3)):
        if tokens >= 0.5 * size:
            return unit, size
    return '', 1
