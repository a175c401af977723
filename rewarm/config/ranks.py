"""Which numbers of ranks can run a global batch, the most that a given machine park can use, and what would let it use more."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.schema import RunConfig
from rewarm.config.world_sizes import find_world_sizes, fitting_microbatch, nearest_batches


def ranks_command(
    run_yaml: str | Path,
    overrides: Sequence[str] = (),
    *,
    available: int,
    gpus_per_node: int = 1,
    as_json: bool = False,
) -> None:
    """Prints the largest number of ranks that can run a run file, and on stderr why it is not all of them.

    Args:
        run_yaml (str | Path): The run file.
        overrides (Sequence[str]): ``key=value`` each.
        available (int): GPUs at hand.
        gpus_per_node (int): Only whole nodes of so many GPUs are used.
        as_json (bool): Whether to print all of it as JSON on standard output.

    Raises:
        UserError: If the run file is wrong, or no number of whole nodes can run it.
    """
    config = load(run_yaml, overrides, world_size=1)
    ranks = largest_world_size(config, available, gpus_per_node=gpus_per_node)
    why = explain_choice(config, available, ranks, gpus_per_node=gpus_per_node) if ranks < available else None
    if as_json:
        print(
            json.dumps({'ranks': ranks, 'available': available, 'gpus_per_node': gpus_per_node, 'why': why}, indent=2)
        )
        return
    print(ranks)
    if why is not None:
        print(why, file=sys.stderr)


def largest_world_size(config: RunConfig, available: int, *, gpus_per_node: int = 1) -> int:
    """The largest number of ranks that can run the global batch.

    Args:
        config (RunConfig): The settings.
        available (int): GPUs at hand.
        gpus_per_node (int): Only multiples of it are considered.

    Returns:
        int: Ranks, at most ``available``.

    Raises:
        UserError: If no multiple of ``gpus_per_node`` can.
    """
    if available < gpus_per_node:
        raise UserError(f'--available {available}: less than one node of {gpus_per_node} GPUs')
    sizes = [ranks for ranks in find_world_sizes(config) if ranks <= available]
    whole = [ranks for ranks in sizes if ranks % gpus_per_node == 0]
    if whole:
        return whole[-1]
    fewer = max(gpus for gpus in sizes if gpus < gpus_per_node)
    raise UserError(
        f'{_misfit(config, gpus_per_node)}, and so not among any number of nodes of {gpus_per_node} GPUs. '
        f'Use {fewer} GPUs of each node (--gpus-per-node {fewer}, and --available for so many), or {_remedies(config, gpus_per_node)}'
    )


def explain_choice(config: RunConfig, available: int, ranks: int, *, gpus_per_node: int = 1) -> str:
    """Says why fewer ranks are used than there are, and what would use them.

    Args:
        config (RunConfig): The settings.
        available (int): GPUs at hand.
        ranks (int): From ``largest_world_size``.
        gpus_per_node (int): GPUs of a whole node.

    Returns:
        str: One line.
    """
    usable = available // gpus_per_node * gpus_per_node
    if ranks == usable:
        return f'{available} GPUs are {usable // gpus_per_node} whole nodes of {gpus_per_node}; using {ranks}'
    nodes = f' ({ranks // gpus_per_node} nodes of {gpus_per_node})' if gpus_per_node > 1 else ''
    return f'{_misfit(config, usable)}; using {ranks}{nodes}. To use all {usable}: {_remedies(config, usable)}'


def _misfit(config: RunConfig, ranks: int) -> str:
    batch, micro = config.global_train_batch_size, config.device_train_microbatch_size
    return f'global_train_batch_size {batch} with microbatch {micro} does not divide among {ranks} ranks'


def _remedies(config: RunConfig, ranks: int) -> str:
    """The microbatch may change at any time; the batch belongs to what a run has trained."""
    micro = fitting_microbatch(config, ranks)
    batches = ' or '.join(map(str, nearest_batches(config, ranks)))
    found = [f'device_train_microbatch_size {micro}'] if micro else []
    return ', or '.join([*found, f'global_train_batch_size {batches} (before its first batch)'])
