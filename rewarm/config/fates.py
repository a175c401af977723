"""What becomes of a setting that is edited in a run that has begun: one table for what is refused, recorded and documented.

A start compares its settings with those that the newest checkpoint was trained with. Whatever is not refused is written down:
it takes effect, or it means the same as before and has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeGuard, cast

from rewarm.config.schema import RunConfig
from rewarm.config.secrets import redacted
from rewarm.config.shapes import SHAPE_KEYS
from rewarm.config.source import is_list, is_map

__all__ = [
    'FATES',
    'Change',
    'Fate',
    'as_written',
    'changes_between',
    'fate_of',
    'fixed_settings',
    'stage_settings',
]


class Fate(Enum):
    """What becomes of an edit. The texts are those of `docs/resume.md`."""

    TAKES_EFFECT = 'takes effect at the next start'
    WHERE_A_STAGE_BEGINS = 'takes effect where a stage begins; refused within one'
    BEFORE_ITS_STAGE = 'takes effect in a stage that has not begun; refused in one that has'
    IF_THE_PAST_STAYS = 'takes effect as far as every trained batch stays what it was; refused beyond that'
    SAME_SAMPLES = 'takes effect where the same samples are there; refused if they are others'
    SAME_MEANING = 'refused; without effect where it means the same, such as another path to the same weights'
    FIXED = 'refused'


_EFFECT, _FIXED = Fate.TAKES_EFFECT, Fate.FIXED

FATES: dict[str, Fate] = {
    'run_name': _EFFECT,
    'run_folder': _EFFECT,
    'seed': _FIXED,
    'max_seq_len': _FIXED,
    'global_train_batch_size': _FIXED,
    'device_train_microbatch_size': _EFFECT,
    'data.num_workers': _EFFECT,
    'data.shuffle_block_size': _FIXED,
    'precision': _FIXED,
    'tokenizer': Fate.SAME_MEANING,
    'model.name': Fate.SAME_MEANING,
    'model.init_from': Fate.SAME_MEANING,
    'model.gelu': _FIXED,
    'model.kernels.default': _EFFECT,
    'model.kernels.add_dual_layer_norm': _EFFECT,
    'model.kernels.rotary': _EFFECT,
    'model.kernels.bias_gelu': _EFFECT,
    'model.kernels.linear_cross_entropy': _EFFECT,
    'model.compile': _EFFECT,
    'model.attention': _EFFECT,
    **{f'model.{key}': _FIXED for key in SHAPE_KEYS},
    'optimizer.name': Fate.WHERE_A_STAGE_BEGINS,
    'optimizer.betas': Fate.WHERE_A_STAGE_BEGINS,
    'optimizer.eps': Fate.WHERE_A_STAGE_BEGINS,
    'optimizer.weight_decay': Fate.WHERE_A_STAGE_BEGINS,
    'max_grad_norm': Fate.WHERE_A_STAGE_BEGINS,
    'stages.name': Fate.BEFORE_ITS_STAGE,
    'stages.max_duration': Fate.IF_THE_PAST_STAYS,
    'stages.stop_at': Fate.IF_THE_PAST_STAYS,
    'stages.train.streams.name': Fate.BEFORE_ITS_STAGE,
    'stages.train.streams.remote': Fate.SAME_SAMPLES,
    'stages.train.streams.local': Fate.SAME_SAMPLES,
    'stages.train.streams.proportion': Fate.BEFORE_ITS_STAGE,
    'stages.train.streams.shuffle': Fate.BEFORE_ITS_STAGE,
    'stages.schedule': Fate.IF_THE_PAST_STAYS,
    'stages.optimizer_state': Fate.BEFORE_ITS_STAGE,
    'eval.interval': _EFFECT,
    'eval.max_samples': _EFFECT,
    'eval.sets.name': _EFFECT,
    'eval.sets.remote': Fate.SAME_SAMPLES,
    'eval.sets.local': Fate.SAME_SAMPLES,
    'eval.sets.role': _EFFECT,
    'eval.sets.of': _EFFECT,
    'checkpoints.interval': _EFFECT,
    'checkpoints.keep': _EFFECT,
    'preemption.signals': _EFFECT,
    'preemption.notice': _EFFECT,
    'preemption.notice_url': _EFFECT,
    'preemption.hang_timeout': _EFFECT,
    'preemption.grace_period': _EFFECT,
    'spikes.on_nan': _EFFECT,
    'spikes.on_spike': _EFFECT,
    'spikes.sigma_factor': _EFFECT,
    'spikes.min_rise': _EFFECT,
    'loggers': _EFFECT,
}
"""The fate of every setting. Positions in a list are left out; an entry for a group is for all in it."""


@dataclass(frozen=True)
class Change:
    """A setting that differs between two run files.

    Args:
        key (str): Its dotted way, with the names of stages, streams and sets, such as ``stages.anneal.max_duration``.
        setting (str): The same without them, as :data:`FATES` has it.
        was (Any): The old value, JSON types; None if it was not set, or its stage, stream or set was not there.
        now (Any): The new one.
    """

    key: str
    setting: str
    was: Any
    now: Any

    @property
    def fate(self) -> Fate:
        """What becomes of it."""
        return fate_of(self.setting)


def fate_of(setting: str) -> Fate:
    """The fate of a setting, by its own entry or by that of the group it is in.

    Args:
        setting (str): Its dotted way without positions or names in lists.

    Raises:
        KeyError: If nobody has decided.
    """
    way = setting
    while way not in FATES and '.' in way:
        way = way.rpartition('.')[0]
    return FATES.get(way) or FATES[next((key for key in FATES if key.startswith(f'{setting}.')), setting)]


def as_written(config: RunConfig) -> dict[str, Any]:
    """Settings in the words of a run file: JSON types, without secrets."""
    return redacted(config.model_dump(mode='json', exclude_none=True))


def changes_between(old: RunConfig, new: RunConfig) -> list[Change]:
    """Compares two run files, setting by setting, in the words of a file: durations and paths as they are written.

    Args:
        old (RunConfig): The settings before.
        new (RunConfig): The settings now.

    Returns:
        list[Change]: In the order of the run file; secrets of loggers are redacted. A stage or set that only one has is one change.
    """
    before, now = (as_written(config) for config in (old, new))
    return list(_compare('', '', before, now))


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """What may never change within a run, by dotted key; the model's sizes also where its name gives them."""
    keys = [key for key, fate in FATES.items() if fate is Fate.FIXED]
    return {key: _value(config, key) for key in keys}


def stage_settings(config: RunConfig) -> dict[str, Any]:
    """What may change where a stage begins, by dotted key."""
    return {key: _value(config, key) for key, fate in FATES.items() if fate is Fate.WHERE_A_STAGE_BEGINS}


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.rpartition('.')
    if section == 'model' and name in SHAPE_KEYS:
        return getattr(config.model.shape, name)
    value = cast(Any, config)
    for part in key.split('.'):
        value = getattr(value, part)
    return list(cast('tuple[Any, ...]', value)) if isinstance(value, tuple) else value


def _compare(key: str, setting: str, was: Any, now: Any) -> Iterator[Change]:
    if is_map(was) and is_map(now):
        for name in dict.fromkeys([*was, *now]):
            yield from _compare(
                f'{key}.{name}'.strip('.'), f'{setting}.{name}'.strip('.'), was.get(name), now.get(name)
            )
    elif _are_named(was) and _are_named(now) and (was or now):
        old, new = ({item['name']: item for item in items} for items in (was, now))
        for name in dict.fromkeys([*old, *new]):
            yield from _compare(f'{key}.{name}', setting, old.get(name), new.get(name))
    elif was != now:
        yield Change(key, setting, was, now)


def _are_named(items: Any) -> TypeGuard[list[dict[str, Any]]]:
    return is_list(items) and all(is_map(item) and 'name' in item for item in items)
