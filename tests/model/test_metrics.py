"""The metrics over batches and over two real ranks."""

import subprocess
import sys

import pytest
import torch

from rewarm.model.metrics import MeanTokenLoss, TargetCount

RANK = """
import os, sys
import torch
from torch import distributed, tensor
from rewarm.model.metrics import MeanTokenLoss, TargetCount

rank, init_file = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group('gloo', init_method=f'file://{init_file}', rank=rank, world_size=2)
loss, targets = MeanTokenLoss(), TargetCount()
for loss_sum, num_targets in [[(6.0, 3), (1.0, 1)], [(30.0, 6)]][rank]:  # unequally many batches and targets
    for metric in (loss, targets):
        metric.update(tensor(loss_sum, dtype=torch.float64), tensor(num_targets))
print(loss.compute().item(), targets.compute().item(), flush=True)
distributed.barrier()
os._exit(0)  # both have printed; tearing the group down is not what is tested
"""


def test_ranks_are_added_up_by_targets(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', RANK, str(rank), str(tmp_path / 'init')], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert printed == [['3.7', '10'], ['3.7', '10']]  # (6 + 1 + 30) / 10, not the mean 3.375 of the ranks' means


def test_sums_stay_exact_over_many_batches():
    loss, targets = MeanTokenLoss(), TargetCount()
    for _ in range(1000):
        for metric in (loss, targets):
            metric.update(torch.tensor(0.1, dtype=torch.float64), torch.tensor(2**24 + 1))  # beyond fp32's integers
    assert targets.compute() == 1000 * (2**24 + 1)
    assert loss.compute().item() == pytest.approx(0.1 / (2**24 + 1), rel=1e-12)


def test_reset_starts_again():
    loss = MeanTokenLoss()
    loss.update(torch.tensor(5.0), torch.tensor(1))
    loss.reset()
    loss.update(torch.tensor(6.0), torch.tensor(3))
    assert loss.compute() == 2
