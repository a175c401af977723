"""The estimate of memory against hand arithmetic; `tests/model/test_memory.py` compares it with what autograd saves."""

from rewarm.config.memory import estimate_memory
from rewarm.config.shapes import MODEL_SHAPES


def test_pythia_410m_at_65536_tokens_by_hand():
    fused = estimate_memory(MODEL_SHAPES['pythia-410m'], 32, 2048, 'bf16', fused=True)
    plain = estimate_memory(MODEL_SHAPES['pythia-410m'], 32, 2048, 'bf16', fused=False)
    assert fused.states == 16 * 405_334_016
    assert fused.layer == 65536 * (11 * 1024 * 2 + 16 * 4 + 8)  # 11 bf16 numbers for each of the width: 1.48 GB
    assert plain.layer == 65536 * (14 * 1024 * 2 + 1024 * 4 + 16 * 4 + 16)
    assert fused.activations == 24 * fused.layer + 2 * 405_334_016
    assert fused.loss == 400 * 2**20 + 50304 * 1024 * 4 + 65536 * 1024 * 2
    assert fused.total == fused.states + fused.activations + fused.loss < plain.total


def test_a_small_microbatch_has_no_full_chunk_of_logits():
    memory = estimate_memory(MODEL_SHAPES['pythia-14m'], 1, 32, 'fp32', fused=True)
    assert memory.loss == 32 * 50304 * 4 + 50304 * 128 * 4 + 32 * 128 * 4
    assert memory.activations == 6 * memory.layer
