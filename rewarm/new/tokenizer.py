"""Whether a tokenizer is the one that datasets were made with."""

from collections.abc import Iterable

from rewarm.config.errors import UserError
from rewarm.config.oddities import is_path
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.new.dataset import Part

__all__ = ['compare_tokenizer']


def compare_tokenizer(tokenizer: str, parts: Iterable[Part]) -> str | None:
    """Compares a tokenizer with what the datasets' cards say of theirs.

    Args:
        tokenizer (str): A Hugging Face id, or the path of a ``tokenizer.json`` or its folder.
        parts (Iterable[Part]): The datasets; of those without a card nothing is known.

    Returns:
        str | None: A note if it could not be looked at: an id that is not on this machine yet.

    Raises:
        UserError: If it is another one, or a path where there is none.
    """
    from rewarm.data.tokens import find_tokenizer

    try:
        ours = tokenizer_hash(find_tokenizer(tokenizer))
    except UserError as error:
        if is_path(tokenizer):
            raise UserError(f'{error}. Name the one that the data was converted with: --tokenizer PATH') from None
        return f'The tokenizer could not be compared with that of the data: {error}'
    for part in parts:
        if part.card is not None and (theirs := part.card.tokenizer_hash) != ours:
            raise UserError(
                f'{part.place} was made with another tokenizer ({theirs[:19]}...) than {tokenizer} ({ours[:19]}...). '
                'Name the one it was made with (--tokenizer), or convert it again with this one'
            )
    return None
