"""The settings of each learning-rate curve; ``name`` picks the curve, so a wrong key for that curve is caught.

``t`` is the tokens since the stage began, ``T`` the stage's budget, ``w`` the warm-up. The curves are in ``rewarm.schedule.curves``.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from rewarm.config.duration import Duration


class Section(BaseModel):
    """A frozen group of settings: nothing is converted, unknown keys are errors, the text under a key is its description."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra='forbid', use_attribute_docstrings=True, allow_inf_nan=False
    )


LARGEST_RATE = 1e6
"""Far beyond any that trains; a larger one is no number of 32 bits after a few batches."""


def _rate(value: Any) -> float | str:
    if value == 'current':
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LARGEST_RATE:
        return float(value)
    raise PydanticCustomError(
        'rate',
        '{reason}',
        {'reason': f'must be a learning rate above 0 and at most 1e6, such as 3.0e-4, or `current`, got {value!r:.60}'},
    )


Rate = Annotated[
    float | Literal['current'],
    PlainValidator(_rate),
    WithJsonSchema(
        {'anyOf': [{'type': 'number', 'exclusiveMinimum': 0, 'maximum': LARGEST_RATE}, {'const': 'current'}]}
    ),
]
"""A learning rate, or ``current``: the rate of the last batch before the stage."""

Floor = Annotated[float, Field(ge=0)]
"""A learning rate that may be 0."""


class BaseSchedule(Section):
    """What every curve has: a peak and a linear warm-up to it."""

    lr: Rate
    """Learning rate reached at the end of the warm-up; `current` is the rate that the previous stage ended with."""
    warmup: Duration = Duration(0, 'tok')
    """Length of the linear rise to `lr`: tokens, batches or % of the stage's budget. 0 starts at `lr`."""
    warmup_from: Literal['zero', 'current'] = 'zero'
    """Where the rise begins: at 0, or at the rate that the previous stage ended with."""


class ConstantSchedule(BaseSchedule):
    """Holds `lr` after the warm-up."""

    name: Literal['constant']
    """Which curve."""


class _Decay(BaseSchedule):
    min_lr: Floor = 0.0
    """Learning rate at the end of the decay, held from there on."""
    decay_until: Duration | None = None
    """Where the decay ends, counted from the stage's start: tokens, batches or % of the budget. Default: the end of the stage."""


class LinearSchedule(_Decay):
    """Falls on a straight line from `lr` to `min_lr`."""

    name: Literal['linear']
    """Which curve."""


class CosineSchedule(_Decay):
    """Falls on half a cosine from `lr` to `min_lr`."""

    name: Literal['cosine']
    """Which curve."""


class NeoxClippedCosineSchedule(BaseSchedule):
    """A cosine towards 0 over the whole budget, cut off at `min_lr`: GPT-NeoX before August 2023, Pythia and the paper."""

    name: Literal['neox_clipped_cosine']
    """Which curve."""
    min_lr: Floor = 0.0
    """Learning rate below which the curve does not go; at 0.1 x `lr` it is reached 79.5 % of the budget after the warm-up."""


class WsdSchedule(BaseSchedule):
    """Warm-up, stable, decay: holds `lr`, then decays over the last part of the budget."""

    name: Literal['wsd']
    """Which curve."""
    decay: Duration
    """Length of the decay at the end of the stage: tokens, batches or % of the budget (10 to 20 % is usual)."""
    shape: Literal['one_minus_sqrt', 'linear', 'cosine', 'exponential'] = 'one_minus_sqrt'
    """How it decays."""
    min_lr: Floor = 0.0
    """Learning rate at the end of the stage; must be above 0 for `exponential`."""


class InverseSqrtSchedule(BaseSchedule):
    """Falls as one over the square root of the tokens, for stages whose end is not known."""

    name: Literal['inverse_sqrt']
    """Which curve."""
    timescale: Duration
    """After this long past the warm-up the rate is lr / sqrt(2): tokens, batches or % of the budget."""
    min_lr: Floor = 0.0
    """Learning rate below which the curve does not go."""


class _Infinite(BaseSchedule):
    constant_lr: Annotated[float, Field(gt=0)]
    """Learning rate of the constant phase, between `min_lr` and `lr` (the follow-up used 0.55 x `lr`)."""
    cooldown: Duration
    """Length of the fall from `lr` to `constant_lr` after the warm-up: tokens, batches or % of the budget."""
    constant: Duration | None = None
    """Length of the constant phase, after which the rate anneals to `min_lr` at the stage's end. Default: for ever, no anneal."""
    min_lr: Floor = 0.0
    """Learning rate at the end of the anneal; must be above 0 when `constant` is given, since the anneal is exponential."""


class InfiniteCosineSchedule(_Infinite):
    """Warm-up, cosine cooldown, constant, and an optional exponential anneal (Ibrahim et al. 2024)."""

    name: Literal['infinite_cosine']
    """Which curve."""


class InfiniteInverseSqrtSchedule(_Infinite):
    """Warm-up, inverse square root cooldown, constant, and an optional exponential anneal (Ibrahim et al. 2024)."""

    name: Literal['infinite_inverse_sqrt']
    """Which curve."""
    alpha: Annotated[float, Field(gt=0)] = 10.0
    """How sharply the cooldown bends: 1 / sqrt(1 + alpha x share of the cooldown)."""


class Milestone(Section):
    """One drop of a `multistep` curve."""

    at: Duration
    """When, counted from the stage's start: tokens, batches or % of the budget."""
    factor: Annotated[float, Field(gt=0, le=1)]
    """What the rate is multiplied with from there on."""


class MultistepSchedule(BaseSchedule):
    """Holds `lr`, then drops in steps (DeepSeek: 0.316 at 80 % and again at 90 %)."""

    name: Literal['multistep']
    """Which curve."""
    milestones: Annotated[tuple[Milestone, ...], Field(min_length=1, strict=False)]
    """The drops, in order."""


Schedule = Annotated[
    ConstantSchedule
    | LinearSchedule
    | CosineSchedule
    | NeoxClippedCosineSchedule
    | WsdSchedule
    | InverseSqrtSchedule
    | InfiniteCosineSchedule
    | InfiniteInverseSqrtSchedule
    | MultistepSchedule,
    Field(discriminator='name'),
]
"""Any of the curves, chosen by `name`."""
