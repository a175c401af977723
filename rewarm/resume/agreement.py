"""What the ranks agree on at the end of each batch, without waiting for a GPU."""

import functools
from collections.abc import Sequence

import torch
import torch.distributed
from composer.utils import dist

__all__ = ['any_rank']


def any_rank(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set on any rank; every rank calls this at the same point.

    The flags travel between hosts: an all-reduce of a GPU's tensor would wait for all that the GPU has been given.
    """
    if dist.get_world_size() == 1:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.int32)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=_host_group())
    return [bool(flag) for flag in tensor.tolist()]


@functools.cache
def _host_group() -> torch.distributed.ProcessGroup | None:
    """A group of all ranks that moves host memory; the default one where it does."""
    if torch.distributed.get_backend() == 'gloo':
        return None
    group = torch.distributed.new_group(backend='gloo')
    assert isinstance(group, torch.distributed.ProcessGroup)
    return group
