"""Sizes of the model: GPT-NeoX shapes under Hugging Face's names, and what follows from them by arithmetic."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class ModelShape:
    """The shape of a GPT-NeoX model, under the names ``transformers.GPTNeoXConfig`` uses.

    Args:
        hidden_size (int): Width of the residual stream.
        num_hidden_layers (int): Transformer blocks.
        num_attention_heads (int): Attention heads; each is ``hidden_size / num_attention_heads`` wide.
        intermediate_size (int): Width of the MLP.
        vocab_size (int): Rows of the embedding and of the output projection (Pythia pads 50,277 ids to 50,304).
        rotary_pct (float): Share of each head's width that is rotated by position.
        rotary_emb_base (float): Base of the rotary frequencies.
        max_position_embeddings (int): Longest sequence the model was meant for, in tokens.
        layer_norm_eps (float): Added to the variance in every LayerNorm.
        use_parallel_residual (bool): ``x + attention(LN1(x)) + mlp(LN2(x))`` instead of one after the other.
        tie_word_embeddings (bool): Whether the output projection is the embedding; never in Pythia.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 50304
    rotary_pct: float = 0.25
    rotary_emb_base: float = 10000.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    tie_word_embeddings: bool = False


def _pythia(hidden_size: int, layers: int, heads: int) -> ModelShape:
    return ModelShape(hidden_size, layers, heads, 4 * hidden_size)


MODEL_SHAPES: dict[str, ModelShape] = {
    'pythia-14m': _pythia(128, 6, 4),
    'pythia-31m': _pythia(256, 6, 8),
    'pythia-70m': _pythia(512, 6, 8),
    'pythia-160m': _pythia(768, 12, 12),
    'pythia-410m': _pythia(1024, 24, 16),
    'pythia-1b': _pythia(2048, 16, 8),
    'pythia-1.4b': _pythia(2048, 24, 16),
}
"""The Pythia sizes that fit one GPU for training. Source: the ``config.json`` of each EleutherAI repository."""

SHAPE_KEYS: tuple[str, ...] = tuple(field.name for field in fields(ModelShape))
"""The names of a shape's settings."""


def count_parameters(shape: ModelShape) -> int:
    """Counts the trainable parameters: biases everywhere but in the output projection, two LayerNorms a block and one last.

    Args:
        shape (ModelShape): The model.

    Returns:
        int: Parameters; 405,334,016 for Pythia-410M.
    """
    d, i = shape.hidden_size, shape.intermediate_size
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * i + i + i * d + d
    embeddings = shape.vocab_size * d * (1 if shape.tie_word_embeddings else 2)
    return embeddings + shape.num_hidden_layers * (attention + mlp + 4 * d) + 2 * d


def flops_per_token(shape: ModelShape, seq_len: int, convention: Literal['full', 'causal'] = 'full') -> int:
    """Floating-point operations of forward and backward for one trained token.

    Six for each parameter that multiplies (all but the embedding), plus attention's two products: ``12 L d T`` when every
    position is counted (``full``, as LLM Foundry does), half of it when only the causal ones are (``causal``).

    Args:
        shape (ModelShape): The model.
        seq_len (int): Sequence length in tokens.
        convention (Literal['full', 'causal']): How attention is counted.

    Returns:
        int: FLOPs per token; 2.727e9 (full) or 2.425e9 (causal) for Pythia-410M at 2,048.
    """
    dense = count_parameters(shape) - (0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size)
    attention = (12 if convention == 'full' else 6) * shape.num_hidden_layers * shape.hidden_size * seq_len
    return 6 * dense + attention
