"""The learning rate of a whole run, drawn with characters."""

from rewarm.config.plan import Plan
from rewarm.config.units import count_in_words

__all__ = ['sketch']

_EIGHTHS = ' ▁▂▃▄▅▆▇█'


def sketch(plan: Plan, width: int = 96, height: int = 8) -> str:
    """Draws the learning rate of the whole run with characters.

    Args:
        plan (Plan): The run.
        width (int): Columns of the drawing.
        height (int): Rows of the drawing.

    Returns:
        str: Lines: the area under the curve, an axis with a mark where each stage begins, their names.
    """
    columns = [_peak(plan, column, width) for column in range(width)]
    top = max(columns) or 1.0
    levels = [round(rate / top * height * 8) for rate in columns]
    lines: list[str] = []
    for row in reversed(range(height)):
        label = f'{top:.2e}' if row == height - 1 else f'{top * row / height:.2e}' if row == height // 2 else ''
        cells = ''.join(_EIGHTHS[min(8, max(0, level - row * 8))] for level in levels)
        lines.append(f'{label:>9} ┤{cells}'.rstrip())
    axis, names = ['─'] * width, [' '] * width
    for stage in plan.stages:
        start = min(width - 1, stage.start_tokens * width // plan.tokens)
        axis[start] = '┬'
        for offset, letter in enumerate(stage.name):
            if start + offset < width:
                names[start + offset] = letter
    end = f'{count_in_words(plan.tokens)} tokens'
    return '\n'.join(
        [*lines, f'{0:>9} ┼{"".join(axis)}', f'{"":10} {"".join(names).rstrip()}', f'{0:>12}{end:>{width - 1}}', '']
    )


def _peak(plan: Plan, column: int, width: int) -> float:
    """Highest rate within a column: a short warm-up's peak must not fall between two samples."""
    samples = 8
    points = [plan.tokens * (column * samples + part) // (width * samples) for part in range(samples)]
    points = [point // plan.tokens_per_batch * plan.tokens_per_batch for point in points]
    return max(plan.lr_at(point) for point in points)
