"""Causal attention behind one function, and which kernel computes it.

    out = softmax(q @ k.T / sqrt(K), keys at or before the query only) @ v

Documents packed into one block attend to each other, as in Pythia's own training. The kernels are those of
:mod:`rewarm_kernels.attention`. On a GPU, ``auto`` tries each of them at the run's own shape before the run relies on
one: forward and backward, against the definition in fp64, and takes the fastest that is right. What was measured is kept
on disk for the next start. What is asked for by name is tried in the same way, and nothing runs in its place.

Choosing (:func:`choose_backend`) gives a name, which rank 0 can send to the others; :func:`attention_named` builds from it.

Shapes: B = batch, H = heads, T = tokens, K = head dimension.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rewarm_kernels.attention import BACKENDS, attend, attention_backward, attention_forward
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from rewarm.config.errors import UserError

__all__ = [
    'ERROR_FLOOR',
    'Attention',
    'Choice',
    'attention_named',
    'attention_ref',
    'cache_file',
    'choose_attention',
    'choose_backend',
    'fastest_backend',
    'first_line',
    'row_error',
    'scaled_dot_product',
]

_NAMES = ('auto', 'cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math')
_CANDIDATES = ('cudnn', 'flash', 'efficient', 'fa3', 'fa4')
"""What ``auto`` tries on a GPU. Not ``math``: it needs no trial, being the definition, and is many times slower."""
_REMEDIES = {
    'fa3': 'build it from github.com/Dao-AILab/flash-attention, folder hopper',
    'fa4': 'pip install "rewarm[fa4]"',
}
_DISTRIBUTIONS = ('flash-attn-3', 'flash-attn-4')

ERROR_FLOOR = {torch.float32: 1e-4, torch.bfloat16: 8e-3}
"""Errors that are never held against a kernel, relative to a row. Of bf16, two roundings. Of fp32, what rounding makes of
the first rows' gradients, whose terms cancel; a row that is missing is 1 off."""
_SMALL_ROW = 0.1
"""A row of an output or gradient counts as at least this much of a mean one, or rounding would look like an error."""
_REPETITIONS = 7
_PROBE_VERSION = 1
"""Part of the cache's key: raise it when what is tried or how it is called changes."""


@dataclass(frozen=True)
class Choice:
    """Which backend of :data:`rewarm_kernels.attention.BACKENDS` runs, and why; strings, to be sent to other ranks.

    Args:
        backend (str): Its name.
        description (str): What it is and why it was chosen, in words for the log.
    """

    backend: str
    description: str


@dataclass(frozen=True)
class Attention:
    """A chosen causal attention; called with query, key and value of ``(B, H, T, K)``, it gives ``(B, H, T, K)``.

    Args:
        backend (str): Its name in :data:`rewarm_kernels.attention.BACKENDS`, for operators that hold an attention.
        description (str): What computes it, in words for the log.
        function (Callable): The function that does.
    """

    backend: str
    description: str
    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """Computes causal attention."""
        return self.function(q_BHTK, k_BHTK, v_BHTK)


@dataclass(frozen=True)
class _Trial:
    """What trying a backend gave: a time, or why it is out."""

    milliseconds: float | None = None
    repeats: bool = True
    out: str | None = None


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
    trial = _Trials(where, shape, dtype).run(backend)
    if backend == 'cpu' and _sdpa_choice(shape[-1], dtype) != 'flash':
        trial = _Trial(out='is switched off in this process')
    if trial.out is None:
        measured = f'{_what_was_measured(trial)} for {_size(shape, dtype)}'
        return Choice(backend, f'{BACKENDS[backend].title}, asked for by name ({measured})')
    remedy = f'To have it: {_REMEDIES[name]}; otherwise write' if name in _REMEDIES else 'Write'
    raise UserError(
        f'`model.attention: {name}` was asked for, and {BACKENDS[backend].title} {trial.out}. '
        f'{remedy} `attention: auto`, or another of {", ".join(_NAMES[1:])}.'
    )


def attention_named(choice: Choice) -> Attention:
    """Builds what was chosen.

    Args:
        choice (Choice): What :func:`choose_backend` gave, here or on another rank.

    Returns:
        Attention: The function over query, key and value, and the backend's name.
    """
    if choice.backend == 'cpu':  # the same kernel, without the cost of an operator in Python
        return Attention(choice.backend, choice.description, scaled_dot_product)
    return Attention(choice.backend, choice.description, functools.partial(_attend, choice.backend))


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
    key = _key(candidates, device, shape, dtype)
    kept, problem = ({}, '') if cache is None else _read_cache(cache)
    if key in kept:
        trials = kept[key]
        origin = f'as measured at an earlier start, from {cache}'
    else:
        run = _Trials(device, shape, dtype).run
        trials = {name: run(name) for name in candidates}
        origin = 'as measured now'
    right = {name: trial.milliseconds for name, trial in trials.items() if trial.milliseconds is not None}
    measured = '; '.join(f'{name} {_what_was_measured(trial)}' for name, trial in trials.items())
    if not right:
        raise UserError(
            f'`model.attention: auto` found no kernel that is right here, for {_size(shape, dtype)}: {measured}. '
            'Write `attention: math`, which is slow, or install what is missing.'
        )
    # Memory that another process took may be free at the next start.
    if (
        cache is not None
        and key not in kept
        and not any('out of memory' in (trial.out or '') for trial in trials.values())
    ):
        failure = _write_cache(cache, {**kept, key: trials})
        origin += '' if failure else f' and kept in {cache}'
        problem = '. '.join(filter(None, (problem, failure)))
    repeating = {name: milliseconds for name, milliseconds in right.items() if trials[name].repeats}
    backend = min(repeating or right, key=right.__getitem__)
    which = 'is right here' if len(repeating) in (0, len(right)) else 'is right here and gives the same bits each time'
    chosen = f'{BACKENDS[backend].title} ({backend}), the fastest that {which}, {origin}'
    return Choice(backend, '. '.join(filter(None, (f'{chosen}. For {_size(shape, dtype)}: {measured}', problem))))


def cache_file() -> Path:
    """Where measurements are kept: ``rewarm/attention.json`` in ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'rewarm' / 'attention.json'


def scaled_dot_product(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Causal attention by the kernel that PyTorch prefers for these inputs.

    Args:
        q_BHTK (Tensor): Queries, ``(B, H, T, K)``.
        k_BHTK (Tensor): Keys, ``(B, H, T, K)``.
        v_BHTK (Tensor): Values, ``(B, H, T, K)``.

    Returns:
        Tensor: ``(B, H, T, K)``.
    """
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)


def attention_ref(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """The definition of causal attention, in the dtype of its inputs.

    Args:
        q_BHTK (Tensor): Queries, ``(B, H, T, K)``.
        k_BHTK (Tensor): Keys, ``(B, H, T, K)``.
        v_BHTK (Tensor): Values, ``(B, H, T, K)``.

    Returns:
        Tensor: ``(B, H, T, K)``.
    """
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) / q_BHTK.shape[-1] ** 0.5
    is_future_TT = torch.ones(scores_BHTT.shape[-2:], dtype=torch.bool, device=q_BHTK.device).triu(1)
    return scores_BHTT.masked_fill(is_future_TT, float('-inf')).softmax(dim=-1) @ v_BHTK


def _attend(backend: str, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    q_BTHK, k_BTHK, v_BTHK = (x_BHTK.transpose(1, 2) for x_BHTK in (q_BHTK, k_BHTK, v_BHTK))
    return attend(q_BTHK, k_BTHK, v_BTHK, backend).transpose(1, 2)


class _Trials:
    """Tries backends on the same random inputs, all of the run's shape.

    Right is what errs at most twice as much as the definition computed in the same dtype, and a floor, against the
    definition in fp64. Both are computed for one head of the first and of the last sequence, so they need little memory.
    An error is that of a row: a kernel that fails on a few of them is found.
    """

    def __init__(self, device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        num_sequences, num_heads, _, _ = shape
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.checked = {(0, 0), (num_sequences - 1, num_heads - 1)}  # sequence and head

    def run(self, backend: str) -> _Trial:
        """Tries one."""
        each = BACKENDS[backend]
        if self.device.type not in each.devices:
            return _Trial(out=f'runs on {" or ".join(each.devices)}, not on {self.device.type}')
        try:
            if each.load is not None:
                each.load()
        except Exception as error:  # a package may fail to load in any way
            return _Trial(out=f'cannot be imported here ({first_line(error)})')
        try:
            return self._run(backend)
        except Exception as error:  # nor is it said what a kernel raises
            return _Trial(out=f'does not run here ({first_line(error)})')
        finally:
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()

    def _run(self, backend: str) -> _Trial:
        q, k, v, dout = self._inputs

        def call() -> tuple[Tensor, ...]:
            out, lse = attention_forward(q, k, v, backend)
            return out, *attention_backward(dout, q, k, v, out, lse, backend)

        first = call()
        for at, truth, bounds in self._truths:
            for result, want, bound in zip(first, truth, bounds, strict=True):
                error = row_error(result[at], want)
                if not error <= bound:
                    return _Trial(out=f'gives wrong numbers here (relative error {error:.2g}, bound {bound:.2g})')
        repeats = all(torch.equal(x, again) for x, again in zip(first, call(), strict=True))
        if not repeats and torch.are_deterministic_algorithms_enabled():
            return _Trial(out='does not give the same bits again, and torch.use_deterministic_algorithms is on')
        del first
        return _Trial(milliseconds=_milliseconds(call, self.device), repeats=repeats)

    @functools.cached_property
    def _inputs(self) -> tuple[Tensor, ...]:
        num_sequences, num_heads, num_tokens, head_dim = self.shape
        generator = torch.Generator(self.device).manual_seed(0)
        draw = functools.partial(torch.randn, device=self.device, dtype=self.dtype, generator=generator)
        qkv = draw(num_sequences, num_tokens, num_heads, 3, head_dim)
        return *qkv.unbind(3), draw(num_sequences, num_tokens, num_heads, head_dim)

    @functools.cached_property
    def _truths(self) -> list[tuple[Any, tuple[Tensor, ...], list[float]]]:
        """For each head that is checked: where it is, its output and gradients in fp64, and the bounds of their errors."""
        found = []
        for sequence, head in sorted(self.checked):
            at = sequence, slice(None), head
            one_head = [x[at] for x in self._inputs]
            truth = _by_definition(*(x.double() for x in one_head))
            same = _by_definition(*one_head)
            bounds = [2 * row_error(x, want) + ERROR_FLOOR[self.dtype] for x, want in zip(same, truth, strict=True)]
            found.append((at, truth, bounds))
        return found


def _by_definition(q_TK: Tensor, k_TK: Tensor, v_TK: Tensor, dout_TK: Tensor) -> tuple[Tensor, ...]:
    """One head's output and gradients, in the dtype of its inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in (q_TK, k_TK, v_TK)]
    with torch.enable_grad():
        out = attention_ref(*(x[None, None] for x in leaves))[0, 0]
    return out.detach(), *torch.autograd.grad(out, leaves, dout_TK)


def row_error(x_TK: Tensor, truth_TK: Tensor) -> float:
    """The largest relative error of a row; not a number if one of them is none.

    Args:
        x_TK (Tensor): ``(..., K)``.
        truth_TK (Tensor): ``(..., K)``, fp64.
    """
    size = truth_TK.norm(dim=-1)
    difference = (x_TK.double() - truth_TK).norm(dim=-1)
    return (difference / size.clamp(min=max(_SMALL_ROW * size.mean().item(), 0.01))).max().item()


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The median time of a few calls; the first two have been made already."""
    times = []
    for _ in range(_REPETITIONS):
        if device.type == 'cuda':
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _what_was_measured(trial: _Trial) -> str:
    if trial.milliseconds is None:
        return f'is out: it {trial.out}'
    return f'{trial.milliseconds:.3g} ms' + ('' if trial.repeats else ', not the same bits each time')


def first_line(error: Exception) -> str:
    """What an error says, short enough for a sentence."""
    return (str(error).partition('\n')[0] or type(error).__name__).removesuffix('.')


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _size(shape: tuple[int, int, int, int], dtype: torch.dtype) -> str:
    return f'{" x ".join(map(str, shape))} in {_dtype_name(dtype)}, forward and backward'


def _sdpa_choice(head_dim: int, dtype: torch.dtype) -> str:
    x_BHTK = torch.zeros(1, 2, 128, head_dim, dtype=dtype)
    choice = SDPBackend(torch._fused_sdp_choice(x_BHTK, x_BHTK, x_BHTK, is_causal=True))  # pyright: ignore[reportPrivateImportUsage]
    return choice.name.lower().removesuffix('_attention')


def _key(
    candidates: tuple[str, ...], device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> str:
    """Everything that a measurement depends on, in one line that a person can read."""
    on_gpu = device.type == 'cuda'
    parts = [
        torch.cuda.get_device_name(device) if on_gpu else f'{platform.machine()}, {torch.get_num_threads()} threads',
        f'torch {torch.__version__}',
        f'cuDNN {torch.backends.cudnn.version() if on_gpu else None}',
        *(f'{name} {_version(name)}' for name in _DISTRIBUTIONS),
        f'{" x ".join(map(str, shape))} {_dtype_name(dtype)}',
        ' '.join(candidates),
        f'deterministic {torch.are_deterministic_algorithms_enabled()}',
        f'probe {_PROBE_VERSION}',
    ]
    return ' | '.join(parts)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _trial(milliseconds: float | None, repeats: bool, out: str | None) -> _Trial:
    """From a file, in which anything may be."""
    return _Trial(
        None if milliseconds is None else float(milliseconds), bool(repeats), None if out is None else str(out)
    )


def _read_cache(path: Path) -> tuple[dict[str, dict[str, _Trial]], str]:
    """What is kept, and what was wrong with it if it could not be read."""
    try:
        return {
            key: {name: _trial(**fields) for name, fields in trials.items()}
            for key, trials in json.loads(path.read_text())['trials'].items()
        }, ''
    except FileNotFoundError:
        return {}, ''
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return {}, f'{path} could not be read and was ignored ({type(error).__name__}: {first_line(error)})'


def _write_cache(path: Path, kept: dict[str, dict[str, _Trial]]) -> str:
    """Writes all of it or nothing; returns what was wrong if it could not."""
    text = json.dumps(
        {'trials': {key: {name: vars(trial) for name, trial in trials.items()} for key, trials in kept.items()}},
        indent=1,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.attention-')
        with os.fdopen(handle, 'w') as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        return f'The measurement could not be kept in {path} ({first_line(error)})'
    return ''
