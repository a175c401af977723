"""Kernels run interpreted on a CPU (with the interpreter's faults corrected) and compiled where there is a GPU."""

import pytest
import torch

from tests.kernels.interpreter import correct


@pytest.fixture(scope='session', autouse=True)
def corrected_interpreter():
    return correct()


@pytest.fixture
def device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.fixture(autouse=True)
def seeded(device):
    """The same random numbers for each test, drawn where the kernels run."""
    torch.manual_seed(17)
    with torch.device(device):
        yield
