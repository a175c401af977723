"""The model that the user names: its sizes, where its weights are, and what goes with it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rewarm.config.errors import UserError
from rewarm.config.messages import did_you_mean
from rewarm.config.paths import is_url
from rewarm.config.shapes import MODEL_SHAPES, SHAPE_KEYS, ModelShape
from rewarm.config.source import read_source
from rewarm.formats.checkpoint import LATEST_FILE, read_state
from rewarm.formats.checkpoint_place import CHECKPOINTS, find_checkpoint, run_folder_of
from rewarm.formats.hugging_face import CONFIG_NAME, read_neox_config
from rewarm.formats.saved_model import read_saved_model
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILE
from rewarm.new.dataset import expanded

__all__ = ['Model', 'find_model']

PUBLISHER = 'EleutherAI'
"""Of Pythia, on Hugging Face."""

PEAK_RATES = {'pythia-14m': 1e-3, 'pythia-31m': 1e-3, 'pythia-70m': 1e-3, 'pythia-160m': 6e-4, 'pythia-1.4b': 2e-4}
"""Of Pythia's own pre-training; 3.0e-4 for the other sizes."""

USUAL_RATE = 3e-4


@dataclass(frozen=True)
class Model:
    """A model to go on with."""

    name: str
    """A size of ``MODEL_SHAPES``, or ``custom``."""
    init_from: str
    """As a run file says it."""
    shape: ModelShape
    tokenizer: str | None
    """What its text was tokenized with, where that is known."""
    gelu: str = 'tanh'
    precision: Literal['bf16', 'fp32'] = 'bf16'
    peak_rate: float = USUAL_RATE
    """The highest learning rate that it was trained with: what to re-warm to if nobody says another one."""
    missing: str | None = None
    """The command that fetches it, if it is not on this machine."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The keys that ``custom`` needs, without those at their defaults."""
        if self.name != 'custom':
            return {}
        usual = asdict(ModelShape(0, 0, 0, 4 * self.shape.hidden_size))
        return {key: value for key, value in asdict(self.shape).items() if value != usual[key]}


def find_model(text: str) -> Model:
    """Finds what the user names.

    Args:
        text (str): A Pythia size, a Hugging Face folder or id of a GPT-NeoX model, or ``checkpoint:PATH``: a checkpoint of a
            run, or the run's folder, whose newest one is taken.

    Returns:
        Model: With all that its files say.

    Raises:
        UserError: If it is none of these.
    """
    if text in MODEL_SHAPES:
        text = f'{PUBLISHER}/{text}'
    if text.startswith('checkpoint:'):
        return _of_checkpoint(text.removeprefix('checkpoint:'))
    source = text.removeprefix('hf:')
    folder = Path(expanded(source)) if source else Path()
    if source and folder.is_dir():
        return _of_folder(folder, source, source)
    if source and (cached := _in_cache(source)) is not None:
        return _of_folder(cached, source, source.partition('@')[0])
    name, _, _ = source.removeprefix(f'{PUBLISHER}/').partition('@')
    if source.startswith(f'{PUBLISHER}/') and name in MODEL_SHAPES:  # known without its files
        rate, fetch = PEAK_RATES.get(name, USUAL_RATE), _how_to_get(source)
        tokenizer = f'{PUBLISHER}/{name}'
        return Model(name, f'hf:{source}', MODEL_SHAPES[name], tokenizer, peak_rate=rate, missing=fetch)
    known = f'Write a size ({", ".join(MODEL_SHAPES)}), a Hugging Face folder or id, or checkpoint:PATH'
    fetch = f'. An id has to be on this machine first: {_how_to_get(source)}' if source.count('/') == 1 else ''
    raise UserError(f'--model {text!r:.100}: no such model.{did_you_mean(text, MODEL_SHAPES)} {known}{fetch}')


def _of_folder(folder: Path, source: str, tokenizer: str) -> Model:
    config = read_neox_config(folder / CONFIG_NAME)
    given = {key: value for key in SHAPE_KEYS if (value := getattr(config, key)) is not None}
    for rope in filter(None, (config.rope_scaling, config.rope_parameters)):
        for key, value in (('rotary_pct', rope.partial_rotary_factor), ('rotary_emb_base', rope.rope_theta)):
            if value is not None:
                given.setdefault(key, value)
    shape = ModelShape(**given)
    has_tokenizer = (folder / 'tokenizer.json').is_file()
    name = _name_of(shape)
    rate = PEAK_RATES.get(name, USUAL_RATE)
    return Model(name, f'hf:{source}', shape, tokenizer if has_tokenizer else None, peak_rate=rate)


def _of_checkpoint(text: str) -> Model:
    if is_url(text):
        raise UserError(
            f'--model checkpoint:{text}: what model that is can only be looked up on this machine. Copy the checkpoint here, '
            f'or name its base model now and write `init_from: checkpoint:{text}` into the file'
        )
    folder = find_checkpoint(expanded(text))
    named = text.rstrip('/').removesuffix(f'/{LATEST_FILE}')
    if not named.endswith(folder.name):  # the newest one of a run, or of its checkpoints
        named += f'/{folder.name}' if named.endswith(CHECKPOINTS) else f'/{CHECKPOINTS}/{folder.name}'
    try:
        state, _ = read_state(folder)
    except FileNotFoundError:
        raise UserError(
            f'--model checkpoint:{text}: no checkpoint and no run folder with one. Name RUN/checkpoints/ba...'
        ) from None
    saved = read_saved_model(folder, state)
    if saved is None:
        raise UserError(f'--model checkpoint:{text} does not say what model it is of: an earlier version wrote it')
    shape, settings = ModelShape(**saved.shape), _settings_around(folder)
    return Model(
        _name_of(shape),
        f'checkpoint:{named}',
        shape,
        _tokenizer_of(folder, settings),
        saved.gelu,
        'fp32' if settings.get('precision') == 'fp32' else 'bf16',
        peak_rate=max(_rates(settings), default=PEAK_RATES.get(_name_of(shape), USUAL_RATE)),
    )


def _settings_around(checkpoint: Path) -> Mapping[str, Any]:
    """The ``config.yaml`` of the run that a checkpoint lies in; empty if it lies elsewhere."""
    run = run_folder_of(checkpoint)
    return read_source(run / 'config.yaml').data if run and (run / 'config.yaml').is_file() else {}


def _tokenizer_of(checkpoint: Path, settings: Mapping[str, Any]) -> str | None:
    """Its run's, which stays; the checkpoint's own; or what the run's settings name."""
    run = run_folder_of(checkpoint)
    for folder in (*([run / RUN_TOKENIZER] if run else []), checkpoint):
        if (folder / TOKENIZER_FILE).is_file():
            return str(folder) if checkpoint.is_absolute() else os.path.relpath(folder)
    return settings.get('tokenizer')


def _rates(settings: Mapping[str, Any]) -> list[float]:
    """The peak of each stage of a run, as far as they are numbers."""
    stages: list[Any] = settings.get('stages') or []
    return [rate for stage in stages if isinstance(rate := stage['schedule']['lr'], float)]


def _name_of(shape: ModelShape) -> str:
    return next((name for name, known in MODEL_SHAPES.items() if known == shape), 'custom')


def _in_cache(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = repository.partition('@')
    try:
        found = try_to_load_from_cache(name, CONFIG_NAME, revision=revision or None)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _how_to_get(repository: str) -> str | None:
    """The command that fetches a model, unless it is here."""
    if _in_cache(repository) is not None:
        return None
    name, _, revision = repository.partition('@')
    return f'hf download {name}' + f' --revision {revision}' * bool(revision)
