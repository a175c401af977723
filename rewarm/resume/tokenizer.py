"""The tokenizer that a run keeps: what its tokens mean, wherever the data and the run file's path have gone."""

from pathlib import Path

from rewarm.config.errors import UserError
from rewarm.formats.files import flush, write_whole
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.formats.tokenizer_folder import RUN_TOKENIZER, TOKENIZER_FILE, TokenizerFiles, read_tokenizer_files
from rewarm.resume.checkpoint import Checkpoint

__all__ = ['keep_tokenizer']


def keep_tokenizer(folder: Path, *, named: str, found: Path | None, saved: Checkpoint | None) -> TokenizerFiles | None:
    """Sees to it that a run folder holds its tokenizer; for the rank that holds the run.

    The one that is there stays if it is the same. Else it is written, from the run file's or from the checkpoint.

    Args:
        folder (Path): The run folder.
        named (str): The tokenizer as the run file names it.
        found (Path | None): Its ``tokenizer.json``; ``None`` if it is not on this machine.
        saved (Checkpoint | None): The checkpoint that the run goes on from.

    Returns:
        TokenizerFiles | None: For checkpoints; ``None`` if the tokenizer is nowhere.

    Raises:
        UserError: If the run file names another tokenizer than the run has begun with, or the folder cannot be made.
        OSError: If the disk is full or not writable.
    """
    own = folder / RUN_TOKENIZER
    began = None if saved is None else saved.saved.tokenizer_hash
    now = None if found is None else tokenizer_hash(found)
    if began is not None and now is not None and began != now:
        raise UserError(
            f'`tokenizer`: {named} is another tokenizer ({_short(now)}) than the one that this run has begun with '
            f'({_short(began)}), of which {own} holds a copy. Write `tokenizer: {own}`, or begin another run for data of '
            'another tokenizer'
        )
    wanted = began or now
    if (kept := _read(own / TOKENIZER_FILE, wanted)) is not None:
        return kept
    source = found if found is not None else saved and saved.path / TOKENIZER_FILE
    tokenizer = source and _read(source, wanted)
    if tokenizer:
        _write(own, tokenizer)
    return tokenizer or None


def _read(path: Path, wanted: str | None) -> TokenizerFiles | None:
    """A tokenizer, if it is there, can be read, and is the wanted one; any will do where nothing says which."""
    if not path.is_file():
        return None
    try:
        if wanted not in (None, tokenizer_hash(path)):
            return None
        return read_tokenizer_files(path)
    except UserError:  # what is damaged is written anew
        return None


def _write(own: Path, tokenizer: TokenizerFiles) -> None:
    if own.is_symlink() or (own.exists() and not own.is_dir()):
        raise UserError(f"{own} is a file or a link, where the run's tokenizer has to be. Move it away")
    own.mkdir(parents=True, exist_ok=True)
    for name in (*(name for name in tokenizer.files if name != TOKENIZER_FILE), TOKENIZER_FILE):  # it says: complete
        write_whole(own / name, tokenizer.files[name])
    flush(own)


def _short(tokenizer: str) -> str:
    return f'{tokenizer[:19]}...'
