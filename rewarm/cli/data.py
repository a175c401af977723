"""Text to datasets, and datasets and checkpoints looked over: ``rewarm convert`` and ``rewarm verify``."""

import functools
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rewarm import terminal
from rewarm.cli.arguments import AsJson, local_path
from rewarm.cli.output import print_json
from rewarm.config.errors import UserError

__all__ = ['convert', 'verify']


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar='SRC... OUT',
            help='Files and folders (jsonl, .gz, .zst, parquet, txt, datasets saved to disk), local or s3://, '
            'read in this order; last, the folder or s3:// prefix for the dataset.',
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(help='tokenizer.json, its folder, or a Hugging Face id in the local cache.')
    ],
    seq_len: Annotated[int, typer.Option(help='Sequence length in tokens; blocks hold one more and overlap by one.')],
    text_key: Annotated[
        str, typer.Option(help='Key or column of the text; of several, such as text,content, the first that is there.')
    ] = 'text',
    workers: Annotated[
        int | None, typer.Option(help='Processes that tokenize; any number gives the same bytes. Default: one a core.')
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(
            help='Share of documents for OUT/val, chosen by a keyed hash of their text (the rest: OUT/train).'
        ),
    ] = 0.0,
    eod: Annotated[
        str | None, typer.Option(help="Token that ends a document. Default: what the tokenizer's files name.")
    ] = None,
    encoder: Annotated[
        Literal['auto', 'gigatoken', 'tokenizers'],
        typer.Option(help='auto, gigatoken or tokenizers; auto takes the fast one where it is known to be equal.'),
    ] = 'auto',
    compression: Annotated[str | None, typer.Option(help='zstd or zstd:LEVEL. Default: none.')] = None,
    shard_bytes: Annotated[int, typer.Option(help='Largest uncompressed shard, in bytes.')] = 1 << 24,
    max_rejects: Annotated[
        float, typer.Option(help='Share of unreadable records above which nothing is published.')
    ] = 0.001,
    staging: Annotated[
        Path | None,
        typer.Option(metavar='DIR', help='Folder for unfinished work. Default: OUT.staging.', parser=local_path),
    ] = None,
    progress: Annotated[bool, typer.Option(help='Show a bar on stderr.')] = True,
    as_json: AsJson = False,
) -> None:
    """Turns text into shards with a dataset card. Killed and started again, it finishes and ends byte-equal."""
    terminal.never_wait()
    from rewarm.data.convert import convert as run_conversion

    if len(sources) < 2:
        raise UserError('convert needs at least one source and, last, the folder to write: rewarm convert SRC... OUT')
    options: dict[str, Any] = {'workers': workers} if workers is not None else {}
    if as_json:
        options['say'] = functools.partial(print, file=sys.stderr)
    made = run_conversion(
        sources[:-1],
        sources[-1],
        tokenizer=tokenizer,
        seq_len=seq_len,
        text_key=text_key,
        val_fraction=val_fraction,
        eod=eod,
        encoder=encoder,
        compression=compression,
        shard_bytes=shard_bytes,
        max_rejects=max_rejects,
        staging=None if staging is None else str(staging),
        progress=progress,
        **options,
    )
    if as_json:
        cards = {split or 'all': card.model_dump(mode='json') for split, card in made.cards.items()}
        print_json({'out': made.out, 'already_done': made.already_done, 'cards': cards})


def verify(
    path: Annotated[
        str,
        typer.Argument(
            help='A checkpoint, or a run folder for all of its checkpoints; also s3://. Or a dataset on this machine.'
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Checks checkpoints or a dataset. Hashes, counts, whether parts belong together, tokenizer, card."""
    from rewarm.exchange import verify_command

    damaged: list[str] = []
    checked: list[dict[str, Any]] = []
    for found in verify_command(path):
        checked.append({'place': found.place, 'complete': not found.problems, 'problems': found.problems})
        checked[-1]['note'] = found.note
        if found.problems:
            damaged.append(found.text)
        elif not as_json:
            print(terminal.printable(found.text))
    if as_json:
        print_json({'complete': not damaged, 'checked': checked})
    if damaged:
        raise UserError('\n'.join(damaged))
