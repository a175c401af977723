"""What model a checkpoint is of, as its ``state.json`` says: a run's among its settings, imported weights' under ``model``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from rewarm.config.errors import DamagedFile
from rewarm.formats.checkpoint import STATE_FILE, SavedState
from rewarm.formats.hugging_face import Base, Depth, Share, Width
from rewarm.formats.strict_json import Record, in_words
from rewarm.formats.tokenizer import LARGEST_VOCABULARY

__all__ = ['SavedModel', 'read_saved_model']

_PREFIX = 'model.'


class SavedModel(Record):
    """Sizes and activation, under the names of a run file."""

    gelu: Literal['tanh', 'erf']
    hidden_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Annotated[int, Field(gt=0, le=1 << 12)]
    intermediate_size: Width
    vocab_size: Annotated[int, Field(gt=0, le=LARGEST_VOCABULARY)]
    rotary_pct: Share
    rotary_emb_base: Base
    max_position_embeddings: Annotated[int, Field(gt=0, le=1 << 30)]
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)]
    use_parallel_residual: bool
    tie_word_embeddings: bool

    @property
    def shape(self) -> dict[str, Any]:
        """All but the activation."""
        return self.model_dump(exclude={'gelu'})


def read_saved_model(folder: Path, state: SavedState) -> SavedModel | None:
    """What model a checkpoint is of.

    Args:
        folder (Path): The checkpoint, for the message.
        state (SavedState): Its state.

    Returns:
        SavedModel | None: ``None`` if it does not say: weights that an earlier version has imported.

    Raises:
        DamagedFile: If what it says is no model.
    """
    content, place = state.model, 'model.'
    if content is None:
        settings = state.settings or {}
        content, place = {k.removeprefix(_PREFIX): v for k, v in settings.items() if k.startswith(_PREFIX)}, 'settings.'
    if not content:
        return None
    try:
        return SavedModel.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = place + ('model.' if place == 'settings.' else '') + '.'.join(map(str, first['loc']))
        raise DamagedFile(folder / STATE_FILE, place=where, what=in_words(first)) from None
