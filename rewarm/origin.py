"""Where a run comes from: the checkpoint that its first stage starts at, the model that others made, its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.buckets.bucket import is_bucket
from rewarm.config.errors import UserError
from rewarm.config.schema import RunConfig
from rewarm.data.tokens import find_tokenizer
from rewarm.formats.base import Base
from rewarm.formats.saved_model import read_saved_model
from rewarm.formats.tokenizer_folder import TokenizerFiles
from rewarm.model.base import find_base
from rewarm.model.weights import find_hf_folder
from rewarm.resume.bucket_place import bring_origin, choose_origin, forget_origins, origin_folder
from rewarm.resume.checkpoint import Checkpoint, open_checkpoint
from rewarm.resume.tokenizer import keep_tokenizer
from rewarm.start import on_each_node, on_rank_zero, warn

__all__ = ['Origin', 'find_origin', 'keep_run_tokenizer', 'warn_of_other_tokenizer']


@dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Args:
        checkpoint (Checkpoint | None): Of another run or an import, for a run that has saved nothing yet.
        base (Base | None): The model of others that it goes back to; ``None`` if there is none, or it is not known.
        place (str): The checkpoint's folder or URL.
    """

    checkpoint: Checkpoint | None
    base: Base | None
    place: str = ''

    @property
    def lr(self) -> float | None:
        """The rate that the checkpoint was saved at."""
        return None if self.checkpoint is None else self.checkpoint.saved.lr

    @property
    def state(self) -> dict[str, Any]:
        """What ``state.json`` of the run's checkpoints says of it."""
        return {} if self.base is None else {'base': self.base.to_json()}


def find_origin(config: RunConfig, saved: Checkpoint | None) -> Origin:
    """Finds what a run starts from, and brings it to each node; all ranks call it together.

    Args:
        config (RunConfig): The run file.
        saved (Checkpoint | None): The run's own newest checkpoint: then nothing is brought.

    Raises:
        UserError: On every rank, if there is no such checkpoint, it is damaged, or it is of another model.
    """
    kind, _, named = config.model.init_from.partition(':')
    if saved is not None:
        if kind == 'checkpoint' and is_bucket(named):
            on_each_node(lambda: forget_origins(config.run_folder))
        return Origin(None, saved.saved.base or (_base_of(named) if kind == 'hf' else None))
    if kind != 'checkpoint':
        return Origin(None, _base_of(named) if kind == 'hf' else None)
    chosen = on_rank_zero(lambda: choose_origin(named))
    on_each_node(lambda: bring_origin(chosen, config.run_folder))
    found = open_checkpoint(origin_folder(chosen, config.run_folder))
    _compare_models(config, found, chosen)
    return Origin(found, found.saved.base, chosen)


def keep_run_tokenizer(config: RunConfig, folder: Path, saved: Checkpoint | None) -> TokenizerFiles | None:
    """Puts the run's tokenizer into its folder; data without a card can be trained on where it is not to be had.

    Args:
        config (RunConfig): The run file.
        folder (Path): The run folder on this node.
        saved (Checkpoint | None): The checkpoint that the run goes on from.

    Returns:
        TokenizerFiles | None: As :func:`keep_tokenizer` has it, which also says what is refused.
    """
    found, missing = None, f'tokenizer {config.tokenizer} cannot be read'
    try:
        found = find_tokenizer(config.tokenizer)
    except UserError as error:
        missing = str(error)
    tokenizer = keep_tokenizer(folder, named=config.tokenizer, found=found, saved=saved)
    if tokenizer is None:
        warn(
            f'{missing}. The run folder and its checkpoints are without their tokenizer: `rewarm export` will ask for it'
        )
    elif found is None:
        warn(f'{missing}. The copy that the run holds stands in for it')
    return tokenizer


def warn_of_other_tokenizer(origin: Origin, tokenizer: TokenizerFiles | None) -> None:
    """Warns where the weights have learned the tokens of another tokenizer."""
    before = None if origin.checkpoint is None else origin.checkpoint.saved.tokenizer_hash
    if before is not None and tokenizer is not None and before != tokenizer.hash:
        warn(
            f"`model.init_from`: its tokens are of another tokenizer ({before[:19]}...) than this run's "
            f'({tokenizer.hash[:19]}...); what it has learned of them does not carry over'
        )


def _base_of(named: str) -> Base | None:
    try:
        return find_base(named, find_hf_folder(named))
    except UserError:  # told where the weights are loaded, if they still are to be
        return None


def _compare_models(config: RunConfig, origin: Checkpoint, where: str) -> None:
    model = read_saved_model(origin.path, origin.saved)
    if model is None:
        return
    differences = [
        f'  `{key}`: the run has {ours}, the checkpoint {theirs}'
        for key, theirs in model.shape.items()
        if (ours := getattr(config.model.shape, key)) != theirs
    ]
    if differences:
        raise UserError(f'`model.init_from`: {where} is of another model than the run:\n' + '\n'.join(differences))
