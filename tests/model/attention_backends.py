"""Attention backends of a test's own making, tried on the CPU."""

import dataclasses

import torch
from rewarm_kernels.attention import BACKENDS, Backend

from rewarm.model.attention import Choice
from rewarm.model.attention_choice import fastest_backend

SHAPE = 2, 2, 48, 16
CPU = torch.device('cpu')


def fastest(candidates=('math', 'cpu'), shape=SHAPE, dtype=torch.float32, cache=None) -> Choice:
    return fastest_backend(candidates, CPU, shape=shape, dtype=dtype, cache=cache)


def replace(monkeypatch, name, **changes) -> Backend:
    changed = dataclasses.replace(BACKENDS[name], devices=('cpu',), **changes)
    monkeypatch.setitem(BACKENDS, name, changed)
    return changed


def wrong_backward(change):
    def backward(*arguments):
        grads = [grad.clone() for grad in BACKENDS['math'].backward(*arguments)]
        change(*grads)
        return tuple(grads)

    return backward


def double_values(dq, dk, dv):
    dv *= 2
