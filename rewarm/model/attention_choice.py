"""Which kernel computes attention.

On a GPU, ``auto`` tries each of them at the run's own shape before the run relies on one: forward and backward, against
the definition in fp64, and takes the fastest that is right. What was measured is kept on disk for the next start. What is
asked for by name is tried in the same way, and nothing runs in its place.

Choosing (:func:`choose_backend`) gives a name, which rank 0 can send to the others;
:func:`rewarm.model.attention.attention_named` builds from it.

Shapes: B = batch, H = heads, T = tokens, K = head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from rewarm_kernels.attention import BACKENDS
from torch.nn.attention import SDPBackend

from rewarm.config.errors import UserError
from rewarm.model.attention import Attention, Choice, attention_named
from rewarm.model.attention_cache import cache_file, describe_conditions, recall_or_try
from rewarm.model.attention_trials import Trial, Trials

__all__ = ['choose_attention', 'choose_backend', 'fastest_backend']

_NAMES = ('auto', 'cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math')
_CANDIDATES = ('cudnn', 'flash', 'efficient', 'fa3', 'fa4')
"""What ``auto`` tries on a GPU. Not ``math``: it needs no trial, being the definition, and is many times slower."""
_REMEDIES = {
    'fa3': 'build it from github.com/Dao-AILab/flash-attention, folder hopper',
    'fa4': 'pip install "rewarm[fa4]"',
}


def choose_attention(
    name: str,
    device: torch.device | str,
    *,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    num_sequences: int = 1,
    num_heads: int = 2,
    num_tokens: int = 128,
) -> Attention:
    """Chooses a kernel and builds from it, for a process that is alone: see :func:`choose_backend`.

    Args:
        name (str): The run file's ``model.attention``.
        device (torch.device | str): Where the model will run.
        head_dim (int): K of the model.
        dtype (torch.dtype): The model's ``compute_dtype``.
        num_sequences (int): B of a microbatch.
        num_heads (int): H of the model.
        num_tokens (int): T of the run.

    Returns:
        Attention: The function; log its ``description``.

    Raises:
        UserError: If what was asked for is absent, does not run here, or gives wrong numbers.
    """
    shape = num_sequences, num_heads, num_tokens, head_dim
    return attention_named(choose_backend(name, device, shape=shape, dtype=dtype))


def choose_backend(
    name: str, device: torch.device | str, *, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Choice:
    """Chooses the backend of causal attention by trying it.

    On a CPU, ``auto`` is what PyTorch itself takes, untried. With several ranks, let one choose and send its choice:
    times differ from one to another, and kernels in their rounding.

    Args:
        name (str): ``auto``, ``cudnn``, ``flash``, ``efficient``, ``fa3``, ``fa4`` or ``math``, the run file's
            ``model.attention``.
        device (torch.device | str): Where the model will run.
        shape (tuple[int, int, int, int]): B of a microbatch, H, T and K.
        dtype (torch.dtype): The model's ``compute_dtype``.

    Returns:
        Choice: For :func:`attention_named`.

    Raises:
        UserError: If what was asked for is absent, does not run here, or gives wrong numbers; of ``auto``, if that is
            so of everything.
    """
    where = torch.device(device)
    if name not in _NAMES:
        raise UserError(f'`model.attention` must be one of {", ".join(_NAMES)}, got {name!r}')
    if name == 'auto' and where.type == 'cpu':
        kernel = _sdpa_choice(shape[-1], dtype)
        if kernel == 'flash':
            return Choice('cpu', 'scaled_dot_product_attention, which picks its flash kernel here')
        return Choice('math', f'{BACKENDS["math"].title}, since torch would use its {kernel} kernel here')
    if name == 'auto':
        return fastest_backend(_CANDIDATES, where, shape=shape, dtype=dtype, cache=cache_file())
    if where.type == 'cpu':
        shape = 1, min(shape[1], 2), min(shape[2], 128), shape[3]  # it is only asked whether it is right
    backend = 'cpu' if (name, where.type) == ('flash', 'cpu') else name
    trial = Trials(where, shape, dtype).run(backend)
    if backend == 'cpu' and _sdpa_choice(shape[-1], dtype) != 'flash':
        trial = Trial(out='is switched off in this process')
    if trial.out is None:
        return Choice(backend, f'{BACKENDS[backend].title}, asked for by name ({trial} for {_size(shape, dtype)})')
    remedy = f'To have it: {_REMEDIES[name]}; otherwise write' if name in _REMEDIES else 'Write'
    raise UserError(
        f'`model.attention: {name}` was asked for, and {BACKENDS[backend].title} {trial.out}. '
        f'{remedy} `attention: auto`, or another of {", ".join(_NAMES[1:])}.'
    )


def fastest_backend(
    candidates: Iterable[str],
    device: torch.device,
    *,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    cache: Path | None,
) -> Choice:
    """Tries each candidate, forward and backward, and chooses the fastest that is right.

    One that gives the same bits each time goes before one that does not: a killed run must end as an unbroken one.

    Args:
        candidates (Iterable[str]): Names of backends.
        device (torch.device): Where to try them.
        shape (tuple[int, int, int, int]): B, H, T and K.
        dtype (torch.dtype): Of queries, keys and values.
        cache (Path | None): Where to look for an earlier measurement and to keep this one; ``None``: nowhere.

    Returns:
        Choice: With the time of each candidate, or why it is out, in its description.

    Raises:
        UserError: If none is right.
    """
    candidates = tuple(candidates)

    def run() -> dict[str, Trial]:
        attempts = Trials(device, shape, dtype)
        return {name: attempts.run(name) for name in candidates}

    conditions = describe_conditions(candidates, device, shape, dtype)
    trials, origin, problems = recall_or_try(cache, conditions, run)
    right = {name: trial.milliseconds for name, trial in trials.items() if trial.milliseconds is not None}
    measured = '; '.join(f'{name} {trial}' for name, trial in trials.items())
    if not right:
        raise UserError(
            f'`model.attention: auto` found no kernel that is right here, for {_size(shape, dtype)}: {measured}. '
            'Write `attention: math`, which is slow, or install what is missing.'
        )
    repeating = {name: milliseconds for name, milliseconds in right.items() if trials[name].repeats}
    backend = min(repeating or right, key=right.__getitem__)
    which = 'is right here' if len(repeating) in (0, len(right)) else 'is right here and gives the same bits each time'
    chosen = f'{BACKENDS[backend].title} ({backend}), the fastest that {which}, {origin}'
    return Choice(backend, '. '.join([chosen, f'For {_size(shape, dtype)}: {measured}', *problems]))


def _size(shape: tuple[int, int, int, int], dtype: torch.dtype) -> str:
    return f'{" x ".join(map(str, shape))} in {str(dtype).removeprefix("torch.")}, forward and backward'


def _sdpa_choice(head_dim: int, dtype: torch.dtype) -> str:
    x_BHTK = torch.zeros(1, 2, 128, head_dim, dtype=dtype)
    choice = SDPBackend(torch._fused_sdp_choice(x_BHTK, x_BHTK, x_BHTK, is_causal=True))  # pyright: ignore[reportPrivateImportUsage]
    return choice.name.lower().removesuffix('_attention')
