"""Fused operations for GPT-NeoX models, one per file, each beside its definition in plain PyTorch (``<op>_ref``).

Where no kernels run (a CPU without Triton's interpreter) an operation is its definition. See ``kernels/README.md``.
"""

from rewarm_kernels.adamw import adamw_, adamw_ref, squared_norm
from rewarm_kernels.add_dual_layer_norm import add_dual_layer_norm, add_dual_layer_norm_ref
from rewarm_kernels.attention import attention, attention_ref
from rewarm_kernels.bias_gelu import bias_gelu, bias_gelu_ref
from rewarm_kernels.linear import linear, linear_ref
from rewarm_kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from rewarm_kernels.mlp import mlp, mlp_ref
from rewarm_kernels.qkv_attention import qkv_attention, qkv_attention_ref
from rewarm_kernels.rotary import rotary, rotary_ref

__all__ = [
    'adamw_',
    'adamw_ref',
    'add_dual_layer_norm',
    'add_dual_layer_norm_ref',
    'attention',
    'attention_ref',
    'bias_gelu',
    'bias_gelu_ref',
    'linear',
    'linear_cross_entropy',
    'linear_cross_entropy_ref',
    'linear_ref',
    'mlp',
    'mlp_ref',
    'qkv_attention',
    'qkv_attention_ref',
    'rotary',
    'rotary_ref',
    'squared_norm',
]
