r"""Learning-rate curves: pure functions of the tokens since a stage began. No torch, no state, checkable by hand.

In all of them ``t`` is tokens since the stage began, ``w`` the warm-up's length, ``T`` the stage's budget, and every length is in
tokens. The rate of a batch is the curve at the tokens trained *before* it, so the first batch of a warm-up from 0 has rate 0, as in
GPT-NeoX. Past its last phase a curve keeps its last value.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any


def warm_up(t: int, *, lr: float, warmup: int, start: float = 0.0) -> float:
    r"""Linear rise from ``start`` to ``lr``: :math:`s + (lr - s)\,t / w`.

    Args:
        t (int): Tokens since the stage began, at most ``warmup``.
        lr (float): Rate at the end of the rise.
        warmup (int): Length of the rise in tokens, above 0.
        start (float): Rate at ``t = 0``.

    Returns:
        float: Learning rate.

    Source: Gupta et al. 2023, section 3, https://arxiv.org/abs/2308.04014.
    """
    return _between(start, lr, t / warmup)


def linear(t: int, *, lr: float, min_lr: float, warmup: int, decay_until: int) -> float:
    r"""Straight fall from ``lr`` at ``w`` to ``min_lr`` at ``decay_until`` :math:`= d`: :math:`lr + (min - lr)\,(t - w) / (d - w)`.

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        min_lr (float): Rate from ``decay_until`` on; 0 is "linear to zero".
        warmup (int): Length of the warm-up in tokens.
        decay_until (int): Where the fall ends, in tokens since the stage began.

    Returns:
        float: Learning rate.
    """
    return _between(lr, min_lr, _progress(t, warmup, decay_until))


def cosine(t: int, *, lr: float, min_lr: float, warmup: int, decay_until: int) -> float:
    r"""Half a cosine from ``lr`` at ``w`` to ``min_lr`` at ``decay_until`` :math:`= d`, then flat.

    .. math:: min + (lr - min)\,(1 + \cos(\pi r)) / 2, \quad r = \min(1, (t - w) / (d - w))

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        min_lr (float): Rate from ``decay_until`` on.
        warmup (int): Length of the warm-up in tokens.
        decay_until (int): Where the fall ends, in tokens since the stage began.

    Returns:
        float: Learning rate.

    Source: Loshchilov and Hutter 2016, equation 5, https://arxiv.org/abs/1608.03983.
    """
    return _between(min_lr, lr, (1 + math.cos(math.pi * _progress(t, warmup, decay_until))) / 2)


def neox_clipped_cosine(t: int, *, lr: float, min_lr: float, warmup: int, budget: int) -> float:
    r"""The cosine of GPT-NeoX before August 2023: aimed at 0 over the *whole* budget, and cut off at ``min_lr``.

    .. math:: \max(lr / 2 \cdot (1 + \cos(\pi n / T)),\, min), \quad n = \min(t, T - w) - w

    With ``min_lr = lr / 10`` it is flat from :math:`w + 0.7952\,T` on: the "240B" of the paper's 297B tokens.

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        min_lr (float): Rate below which it does not go.
        warmup (int): Length of the warm-up in tokens, at most half of ``budget``.
        budget (int): The stage's budget in tokens.

    Returns:
        float: Learning rate.

    Source: ``megatron/learning_rates.py`` before https://github.com/EleutherAI/gpt-neox/pull/1008, which trained Pythia.
    """
    n = min(t, budget - warmup) - warmup
    return max(lr / 2 * (1 + math.cos(math.pi * n / budget)), min_lr)


def wsd(t: int, *, lr: float, min_lr: float, decay: int, budget: int, shape: str) -> float:
    r"""Warm-up, stable, decay: ``lr`` until the last ``decay`` tokens, where :math:`r` goes from 0 to 1 and the rate is

    :math:`min + (lr - min)\,f(r)` with :math:`f = 1 - \sqrt r`, :math:`1 - r` or :math:`(1 + \cos \pi r) / 2`, or
    :math:`lr\,(min / lr)^r` for ``exponential``.

    Args:
        t (int): Tokens since the stage began, past the warm-up.
        lr (float): The stable rate.
        min_lr (float): Rate at the end of the stage.
        decay (int): Length of the decay in tokens, above 0.
        budget (int): The stage's budget in tokens.
        shape (str): ``one_minus_sqrt``, ``linear``, ``cosine`` or ``exponential``.

    Returns:
        float: Learning rate.

    Raises:
        ValueError: If the shape is unknown.

    Source: MiniCPM, https://arxiv.org/abs/2404.06395, section 4.2; shapes of Hägele et al. 2024, https://arxiv.org/abs/2405.18392.
    """
    r = _progress(t, budget - decay, budget)
    match shape:
        case 'one_minus_sqrt':
            return _between(min_lr, lr, 1 - math.sqrt(r))
        case 'linear':
            return _between(min_lr, lr, 1 - r)
        case 'cosine':
            return _between(min_lr, lr, (1 + math.cos(math.pi * r)) / 2)
        case 'exponential':
            return _geometric(lr, min_lr, r)
        case _:
            raise ValueError(f'unknown decay shape {shape!r}')


def inverse_sqrt(t: int, *, lr: float, min_lr: float, warmup: int, timescale: int) -> float:
    r"""Inverse square root: :math:`\max(lr / \sqrt{1 + (t - w) / s},\, min)` with timescale :math:`s`.

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        min_lr (float): Rate below which it does not go.
        warmup (int): Length of the warm-up in tokens.
        timescale (int): Tokens after which the rate is ``lr / sqrt(2)``, above 0.

    Returns:
        float: Learning rate.

    Source: Zhai et al. 2021, https://arxiv.org/abs/2106.04560, section 3.5; the shape LLM Foundry offers for continual training.
    """
    return max(lr / math.sqrt(1 + (t - warmup) / timescale), min_lr)


def infinite_cosine(
    t: int,
    *,
    lr: float,
    constant_lr: float,
    min_lr: float,
    warmup: int,
    cooldown: int,
    constant: int | None,
    budget: int,
) -> float:
    r"""Cosine cooldown to ``constant_lr``, a constant phase, and an exponential anneal if the constant phase has an end.

    .. math:: c + (lr - c)\,(1 + \cos(\pi \tau)) / 2, \quad \tau = (t - w) / cooldown; \qquad c\,(min / c)^r

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        constant_lr (float): Rate of the constant phase.
        min_lr (float): Rate at the end of the anneal.
        warmup (int): Length of the warm-up in tokens.
        cooldown (int): Length of the cooldown in tokens, above 0.
        constant (int | None): Length of the constant phase in tokens; None is for ever.
        budget (int): The stage's budget in tokens, where the anneal ends.

    Returns:
        float: Learning rate.

    Source: Ibrahim et al. 2024, section 7.4, https://arxiv.org/abs/2403.08763.
    """
    tau = _progress(t, warmup, warmup + cooldown)
    if tau < 1:
        return _between(constant_lr, lr, (1 + math.cos(math.pi * tau)) / 2)
    return _anneal(t, constant_lr=constant_lr, min_lr=min_lr, begin=warmup + cooldown, constant=constant, budget=budget)


def infinite_inverse_sqrt(
    t: int,
    *,
    lr: float,
    constant_lr: float,
    min_lr: float,
    warmup: int,
    cooldown: int,
    constant: int | None,
    budget: int,
    alpha: float = 10.0,
) -> float:
    r"""As ``infinite_cosine``, cooling down by an inverse square root.

    .. math:: lr - (lr - c)\,h(\tau) / h(1), \quad h(\tau) = 1 / \sqrt{1 + \alpha \tau} - 1, \quad \tau = (t - w) / cooldown

    Args:
        t (int): Tokens since the stage began, at least ``warmup``.
        lr (float): Rate at the end of the warm-up.
        constant_lr (float): Rate of the constant phase.
        min_lr (float): Rate at the end of the anneal.
        warmup (int): Length of the warm-up in tokens.
        cooldown (int): Length of the cooldown in tokens, above 0.
        constant (int | None): Length of the constant phase in tokens; None is for ever.
        budget (int): The stage's budget in tokens, where the anneal ends.
        alpha (float): How sharply the cooldown bends.

    Returns:
        float: Learning rate.

    Source: Ibrahim et al. 2024, section 7.4, https://arxiv.org/abs/2403.08763; alpha = 10 in the authors' code.
    """
    tau = _progress(t, warmup, warmup + cooldown)
    if tau < 1:
        bend = (1 / math.sqrt(1 + alpha * tau) - 1) / (1 / math.sqrt(1 + alpha) - 1)
        return _between(lr, constant_lr, bend)
    return _anneal(t, constant_lr=constant_lr, min_lr=min_lr, begin=warmup + cooldown, constant=constant, budget=budget)


def multistep(t: int, *, lr: float, milestones: list[tuple[int, float]]) -> float:
    """``lr`` times the factors of all milestones passed.

    Args:
        t (int): Tokens since the stage began, past the warm-up.
        lr (float): Rate at the end of the warm-up.
        milestones (list[tuple[int, float]]): ``(tokens since the stage began, factor)`` of each drop.

    Returns:
        float: Learning rate.

    Source: DeepSeek LLM, https://arxiv.org/abs/2401.02954, section 2.3.
    """
    return lr * math.prod(factor for at, factor in milestones if t >= at)


def make_curve(schedule: Mapping[str, Any]) -> Callable[[int], float]:
    """Makes the curve of a resolved schedule, as ``StagePlan.schedule`` holds it.

    Args:
        schedule (Mapping[str, Any]): ``name``, ``lr``, ``warmup_tokens``, ``warmup_from_lr``, ``budget_tokens`` and the keys of the
            curve, with every rate a number and every length an ``int`` of tokens under ``<key>_tokens``.

    Returns:
        Callable[[int], float]: The rate at a number of tokens since the stage began.

    Raises:
        ValueError: If the curve's name is unknown.
    """
    after = _after_warm_up(schedule)
    warmup, lr, start = schedule['warmup_tokens'], schedule['lr'], schedule['warmup_from_lr']

    def curve(tokens: int) -> float:
        return warm_up(tokens, lr=lr, warmup=warmup, start=start) if tokens < warmup else after(tokens)

    return curve


def phase_edges(schedule: Mapping[str, Any]) -> dict[str, int]:
    """Where a resolved schedule goes from one phase to the next.

    Args:
        schedule (Mapping[str, Any]): As for ``make_curve``.

    Returns:
        dict[str, int]: What begins there, and its tokens since the stage began; only edges inside the budget, in order.
    """
    w, budget = schedule['warmup_tokens'], schedule['budget_tokens']
    edges = {'warm-up ends': w}
    match schedule['name']:
        case 'linear' | 'cosine':
            edges['decay ends'] = schedule['decay_until_tokens']
        case 'neox_clipped_cosine' if schedule['min_lr'] > 0:
            share = math.acos(max(-1.0, 2 * schedule['min_lr'] / schedule['lr'] - 1)) / math.pi
            edges['floor'] = w + math.ceil(share * budget)
        case 'wsd':
            edges['decay begins'] = budget - schedule['decay_tokens']
        case 'infinite_cosine' | 'infinite_inverse_sqrt':
            edges['cooldown ends'] = w + schedule['cooldown_tokens']
            if schedule['constant_tokens'] is not None:
                edges['anneal begins'] = edges['cooldown ends'] + schedule['constant_tokens']
        case 'multistep':
            edges |= {f'step {index + 1}': item['at_tokens'] for index, item in enumerate(schedule['milestones'])}
        case _:
            pass
    return {label: tokens for label, tokens in edges.items() if 0 < tokens < budget}


def _after_warm_up(schedule: Mapping[str, Any]) -> Callable[[int], float]:
    s = schedule
    lr, w, budget = s['lr'], s['warmup_tokens'], s['budget_tokens']
    match s['name']:
        case 'constant':
            return lambda _: lr
        case 'linear':
            return lambda t: linear(t, lr=lr, min_lr=s['min_lr'], warmup=w, decay_until=s['decay_until_tokens'])
        case 'cosine':
            return lambda t: cosine(t, lr=lr, min_lr=s['min_lr'], warmup=w, decay_until=s['decay_until_tokens'])
        case 'neox_clipped_cosine':
            return lambda t: neox_clipped_cosine(t, lr=lr, min_lr=s['min_lr'], warmup=w, budget=budget)
        case 'wsd':
            return lambda t: wsd(t, lr=lr, min_lr=s['min_lr'], decay=s['decay_tokens'], budget=budget, shape=s['shape'])
        case 'inverse_sqrt':
            return lambda t: inverse_sqrt(t, lr=lr, min_lr=s['min_lr'], warmup=w, timescale=s['timescale_tokens'])
        case 'infinite_cosine' | 'infinite_inverse_sqrt':
            return _infinite(s)
        case 'multistep':
            steps = [(item['at_tokens'], item['factor']) for item in s['milestones']]
            return lambda t: multistep(t, lr=lr, milestones=steps)
        case _:
            raise ValueError(f'unknown curve {s["name"]!r}')


def _infinite(s: Mapping[str, Any]) -> Callable[[int], float]:
    rates = {'lr': s['lr'], 'constant_lr': s['constant_lr'], 'min_lr': s['min_lr']}
    lengths = {'warmup': s['warmup_tokens'], 'cooldown': s['cooldown_tokens'], 'constant': s['constant_tokens']}
    if s['name'] == 'infinite_cosine':
        return lambda t: infinite_cosine(t, **rates, **lengths, budget=s['budget_tokens'])
    return lambda t: infinite_inverse_sqrt(t, **rates, **lengths, budget=s['budget_tokens'], alpha=s['alpha'])


def _anneal(t: int, *, constant_lr: float, min_lr: float, begin: int, constant: int | None, budget: int) -> float:
    if constant is None or t <= begin + constant:
        return constant_lr
    return _geometric(constant_lr, min_lr, _progress(t, begin + constant, budget))


def _progress(t: int, begin: int, end: int) -> float:
    """Share of the way from ``begin`` to ``end``, within [0, 1]."""
    return 1.0 if t >= end else max(0.0, (t - begin) / (end - begin))


def _between(start: float, end: float, share: float) -> float:
    """Point on the way from ``start`` to ``end``: exact at both ends, and never outside them through rounding."""
    value = start + (end - start) * share if share < 1 else end
    return min(max(value, min(start, end)), max(start, end))


def _geometric(start: float, end: float, share: float) -> float:
    value = start * (end / start) ** share if share < 1 else end
    return min(max(value, end), start)
