"""The corrected interpreter computes what hardware does, and says when a correction is no longer needed."""

import pytest
import torch
from rewarm_kernels.launch import INTERPRETED

from tests.kernels import interpreter

pytestmark = pytest.mark.skipif(not INTERPRETED, reason='kernels are compiled here, not interpreted')


def test_casts_round_to_nearest_even_also_at_ties_subnormals_infinity_and_nan():
    x = torch.randn(4096)
    ties = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]
    x[:9] = torch.tensor([*ties, float('inf'), float('-inf'), 1e-40, 3.4e38, 0.0, float('nan')])
    y = interpreter.cast(x)
    assert y[8].isnan()
    assert torch.equal(y[:8], x[:8].bfloat16())
    assert torch.equal(y[9:], x[9:].bfloat16())


def test_dot_of_bf16_is_a_product():
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    torch.testing.assert_close(interpreter.dot(a, b), a.float() @ b.float(), atol=1e-4, rtol=1e-4)


def test_both_corrections_are_still_needed(corrected_interpreter):
    assert corrected_interpreter == {'cast', 'dot'}, 'this triton mends a fault itself: drop its correction'
    assert interpreter.faults() == set()
