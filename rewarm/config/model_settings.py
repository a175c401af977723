"""The settings of `model`: which one, its first weights, and what computes it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic.config import JsonDict

from rewarm.config.paths import InitFrom
from rewarm.config.schedules import Section
from rewarm.config.shapes import MODEL_SHAPES, SHAPE_KEYS, ModelShape

__all__ = ['KernelsConfig', 'ModelConfig', 'Positive', 'PositiveFloat']

Positive = Annotated[int, Field(gt=0, lt=1 << 31)]
PositiveFloat = Annotated[float, Field(gt=0)]

Implementation = Literal['auto', 'triton', 'torch']


class KernelsConfig(Section):
    """Which implementation of each fused operation runs: `triton` stops the run where it cannot, `auto` says what it took."""

    default: Implementation = 'auto'
    """Of the operations that are not named below."""
    add_dual_layer_norm: Implementation | None = None
    """The residual sum with both LayerNorms."""
    rotary: Implementation | None = None
    """Projection of queries, keys and values, rotary embedding and attention on one buffer."""
    bias_gelu: Implementation | None = None
    """The MLP with its GELU."""
    linear_cross_entropy: Implementation | None = None
    """The vocabulary projection with its loss."""

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen for each operation."""
        ops = [name for name in type(self).model_fields if name != 'default']
        return {name: getattr(self, name) or self.default for name in ops}


def _kernels(value: Any) -> Any:
    return {'default': value} if isinstance(value, str) else value


def _kernels_schema(schema: JsonDict) -> None:
    section = {key: schema.pop(key) for key in ('$ref', 'allOf') if key in schema}
    schema['anyOf'] = [{'enum': ['auto', 'triton', 'torch'], 'type': 'string'}, section]


class ModelConfig(Section):
    """Which model, where its weights come from, and which implementation runs it."""

    name: Literal[
        'pythia-14m', 'pythia-31m', 'pythia-70m', 'pythia-160m', 'pythia-410m', 'pythia-1b', 'pythia-1.4b', 'custom'
    ]
    """A Pythia size, or `custom` with the sizes below."""
    init_from: InitFrom
    """Starting weights: `hf:<id or folder>`, `checkpoint:<folder>` of another run (or its run folder, for the newest; also `s3://`; with AdamW's moments, which the first stage's `optimizer_state` keeps or resets), or `scratch`."""
    gelu: Literal['tanh', 'erf'] = 'tanh'
    """The activation: `tanh` is what Pythia trained with, `erf` what Hugging Face evaluates."""
    kernels: Annotated[KernelsConfig, BeforeValidator(_kernels), Field(json_schema_extra=_kernels_schema)] = (
        KernelsConfig()
    )
    """Which implementation of the fused operations runs: `auto`, `triton` or `torch`, or one for each, such as `{default: triton, rotary: torch}`."""
    compile: bool = False
    """Whether `torch.compile` compiles the layers, of either implementation; the first batch of each start then waits for it."""
    attention: Literal['auto', 'cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math'] = 'auto'
    """Which attention backend runs."""
    hidden_size: Positive | None = None
    """Only for `custom`, required: width of the residual stream."""
    num_hidden_layers: Positive | None = None
    """Only for `custom`, required: transformer blocks."""
    num_attention_heads: Positive | None = None
    """Only for `custom`, required: attention heads."""
    intermediate_size: Positive | None = None
    """Only for `custom`: width of the MLP. Default: 4 x `hidden_size`."""
    vocab_size: Positive | None = None
    """Only for `custom`: rows of the embedding. Default: 50,304."""
    rotary_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only for `custom`: share of each head that is rotated by position. Default: 0.25."""
    rotary_emb_base: PositiveFloat | None = None
    """Only for `custom`: base of the rotary frequencies. Default: 10,000."""
    max_position_embeddings: Positive | None = None
    """Only for `custom`: longest sequence meant, in tokens. Default: 2,048."""
    layer_norm_eps: PositiveFloat | None = None
    """Only for `custom`: added to the variance in every LayerNorm. Default: 1e-5."""
    use_parallel_residual: bool | None = None
    """Only for `custom`: attention and MLP side by side. Default: true."""
    tie_word_embeddings: Literal[False] | None = None
    """Only for `custom`: must be false, as in every Pythia."""

    @model_validator(mode='after')
    def _check_sizes(self) -> 'ModelConfig':
        given = [key for key in SHAPE_KEYS if getattr(self, key) is not None]
        if self.name != 'custom' and given:
            raise ValueError(
                f'`{given[0]}` belongs to `name: custom`; {self.name} has fixed sizes. Remove it, or write `name: custom`'
            )
        missing = [key for key in SHAPE_KEYS[:3] if key not in given]
        if self.name == 'custom' and missing:
            raise ValueError(f'`name: custom` needs {", ".join(f"`{key}`" for key in missing)}')
        if self.name == 'custom':
            self._check_heads()
        return self

    def _check_heads(self) -> None:
        shape = self.shape
        if shape.hidden_size % shape.num_attention_heads:
            raise ValueError(
                f'`hidden_size` {shape.hidden_size} must be a multiple of `num_attention_heads` {shape.num_attention_heads}'
            )
        rotary = int(shape.hidden_size // shape.num_attention_heads * shape.rotary_pct)
        if rotary < 2 or rotary % 2:
            raise ValueError(
                f'`rotary_pct` rotates {rotary} dimensions of a head; it must be an even number of at least 2'
            )

    @property
    def shape(self) -> ModelShape:
        """The model's sizes, from the table or from the custom keys."""
        if self.name != 'custom':
            return MODEL_SHAPES[self.name]
        given = {key: value for key in SHAPE_KEYS if (value := getattr(self, key)) is not None}
        given.setdefault('intermediate_size', 4 * given['hidden_size'])
        return ModelShape(**given)
