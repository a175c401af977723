"""Where the time of a step goes, by kind of kernel, from the profiler."""

import re
from collections import defaultdict
from collections.abc import Iterable

__all__ = ['breakdown', 'kind_of']

KINDS = (
    ('attention', r'fmha|flash|sdpa|attention'),
    ('optimizer', r'adam|multi_tensor|foreach|squared_norm'),
    ('loss', r'cross_entropy|softmax|nll_loss|logsumexp'),
    ('gemm', r'gemm|nvjet|xmma|cutlass|split_?k|cublas|wgmma|aten::(add|ba)?mm\b'),
    ('elementwise', r'layer_?norm|rotate|pack_kernel|gelu|elementwise|reduce|vectorized|cat|copy|mem(cpy|set)|gammabeta|fill|'
                    r'embedding|index|sort|scan|triton_|aten::|at::native'),
)  # fmt: skip
"""A kernel is of the first kind one of whose words is in its name. The vocabulary projection is a GEMM, and what is left
of the loss is `loss`; the clipping of gradients is of the optimizer; copies and fills are elementwise."""


def kind_of(name: str) -> str:
    """The kind of a kernel.

    Args:
        name (str): As the profiler gives it.

    Returns:
        str: A kind of :data:`KINDS`, or ``other``.
    """
    return next((kind for kind, words in KINDS if re.search(words, name.lower())), 'other')


def breakdown(spans: Iterable[tuple[str, float, float]]) -> tuple[dict[str, float], list[str]]:
    """Sums up a step.

    Args:
        spans (Iterable): Name, begin and end of each kernel, in microseconds, by begin.

    Returns:
        tuple[dict[str, float], list[str]]: Milliseconds of each kind, ``gap`` for the time in which no kernel ran, and
        ``launches``; and the kernels that take longest, as ``ms name``.
    """
    of_kind = dict.fromkeys([*(kind for kind, _ in KINDS), 'other', 'gap'], 0.0)
    of_name: dict[str, float] = defaultdict(float)
    launches, reached = 0, None
    for name, begin, end in spans:
        of_kind[kind_of(name)] += (end - begin) / 1e3
        of_name[name] += (end - begin) / 1e3
        if reached is not None and begin > reached:
            of_kind['gap'] += (begin - reached) / 1e3
        reached = end if reached is None else max(reached, end)
        launches += 1
    longest = sorted(of_name, key=lambda name: -of_name[name])[:30]
    return {**{f'ms_{kind}': time for kind, time in of_kind.items()}, 'launches': launches}, [
        f'{of_name[name]:.2f} {name[:100]}' for name in longest
    ]
