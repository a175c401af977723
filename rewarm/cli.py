"""The command line. Each command imports what it needs when it runs, so that ``rewarm plan`` answers at once."""

import atexit
import gc
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from rewarm import signals, terminal
from rewarm.config.errors import RankError, UserError, disk_error
from rewarm.config.secrets import without_secrets

__all__ = ['app', 'main']

app = typer.Typer(
    help='Continual pre-training that survives machines vanishing: convert text, plan a run, train it, report on it.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFile = Annotated[Path, typer.Argument(metavar='RUN.yaml', help='The run file; see yamls/ for complete examples.')]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar='[KEY=VALUE]...', help='Settings to override, such as stages.0.schedule.lr=1e-4.'),
]

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75

LAST_WORDS_SECONDS = 0.5
"""For what was written before a signal in the first seconds to reach the terminal."""

TEE_SECONDS = 0.2
"""A Ctrl-C that reaches this process also ends the `tee` that its output goes to; it is to be seen gone."""

LATE_START_SECONDS = 10
"""By how much a rank may begin after another."""


def main() -> NoReturn:
    """Runs the command line; errors of the user's input are printed without a traceback and leave with code 2."""
    terminal.take_over()
    try:
        app(standalone_mode=True)
    except (UserError, terminal.OutputError) as error:
        sys.exit(_tell(error))
    sys.exit(0)


@app.command()
def plan(
    run: RunFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help='Number of GPUs, for hours and cost.')] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help='Speed of one GPU, in tokens a second.')] = None,
    price: Annotated[float | None, typer.Option(help='Price of one GPU for an hour.')] = None,
    preemptions_per_day: Annotated[
        float | None, typer.Option(min=0, help='Kills of the whole run in 24 hours.')
    ] = None,
    notice_share: Annotated[
        float | None, typer.Option(min=0, max=1, help='Share of them that come with a notice long enough to save.')
    ] = None,
    save_stall: Annotated[
        float | None, typer.Option(min=0, help='Seconds that training stands still for a save.')
    ] = None,
    save_seconds: Annotated[
        float | None, typer.Option(min=0, help='Seconds of a whole save in the background.')
    ] = None,
    restart_seconds: Annotated[
        float | None, typer.Option(min=0, help='Seconds from a kill to the first batch after it.')
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            metavar='RUN_FOLDER', help='Take speed, preemptions and saves from a run of this model on such machines.'
        ),
    ] = None,
    lr_at: Annotated[
        str | None, typer.Option(help='Rate at these tokens since the run began, such as 1e9tok,stage:5e8tok.')
    ] = None,
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Checks a run file and shows what it would do.

    Stages, steps, rates, checkpoints, disk, memory, hours, money, and how often to save.
    """
    from rewarm.config.goodput import Conditions
    from rewarm.config.show import plan_command

    known = Conditions(
        tokens_per_second=tokens_per_second,
        preemptions_per_day=preemptions_per_day,
        notice_share=notice_share,
        save_stall_seconds=save_stall,
        save_seconds=save_seconds,
        restart_seconds=restart_seconds,
    )
    if measured is not None:
        from rewarm.report.measured import measure

        known = known.or_else(measure(measured))
    plan_command(
        run,
        overrides or [],
        gpus=gpus,
        price=price,
        conditions=known,
        lr_at=lr_at,
        as_json=as_json,
    )


@app.command()
def ranks(
    run: RunFile,
    overrides: Overrides = None,
    *,
    available: Annotated[int, typer.Option(min=1, help='GPUs at hand, on all nodes together.')],
    gpus_per_node: Annotated[int, typer.Option(min=1, help='Use whole nodes of so many GPUs only.')] = 1,
) -> None:
    """Prints the most ranks that can run a run file. If that is fewer than the GPUs at hand, stderr says why."""
    from rewarm.config.ranks import ranks_command

    ranks_command(run, overrides or [], available=available, gpus_per_node=gpus_per_node)


@app.command()
def train(run: RunFile, overrides: Overrides = None) -> None:
    """Trains a run, or goes on with it. For several processes: composer -n 8 scripts/train.py RUN.yaml [KEY=VALUE]..."""
    terminal.never_wait()
    signals.answer_early(_start_again)
    from rewarm.config.load import load

    try:
        config = load(run, overrides or [])
    except UserError:
        if not _is_first_of_node():
            time.sleep(LATE_START_SECONDS)  # a launcher ends all with the first that leaves: the one that tells
        raise
    gc.disable()  # collecting while all of torch and Composer is imported costs 1.2 s and frees nothing
    from rewarm.train import run as run_training

    gc.enable()
    try:
        code = run_training(config)
    except UserError as error:
        code = _tell(error)
    except OSError as error:
        if (words := disk_error(error, config.run_folder)) is None:
            raise
        code = _tell(words)
    _leave(code)


def _start_again() -> NoReturn:
    time.sleep(TEE_SECONDS)
    terminal.drain(LAST_WORDS_SECONDS)
    os._exit(EXIT_PREEMPTED)


def _tell(error: Exception) -> int:
    """Prints what the user has to know, once on each node; returns the exit code."""
    if _is_first_of_node() or isinstance(error, RankError):
        print(terminal.printable(without_secrets(str(error))), file=sys.stderr)
    return EXIT_USER_ERROR


def _is_first_of_node() -> bool:
    return os.environ.get('LOCAL_RANK', '0') == '0'


def _leave(code: int) -> NoReturn:
    """Ends a process that trained with its own code, whatever the launcher does once another rank is gone.

    Python would go on to clear up, and a SIGTERM ends it then: its handlers are gone. So can a thread of gloo's that
    lets go of a tensor late (SIGABRT).
    """
    signals.ignore()
    try:
        atexit._run_exitfuncs()
        terminal.drain()
    finally:
        os._exit(code)


@app.command()
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
    text_key: Annotated[str, typer.Option(help='Key or column of the text.')] = 'text',
    workers: Annotated[
        int | None, typer.Option(help='Processes that tokenize; any number gives the same bytes. Default: one a core.')
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of documents, chosen by their text's hash, for OUT/val (the rest: OUT/train).")
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
    staging: Annotated[str | None, typer.Option(help='Folder for unfinished work. Default: OUT.staging.')] = None,
    progress: Annotated[bool, typer.Option(help='Show a bar on stderr.')] = True,
) -> None:
    """Turns text into shards with a dataset card. Killed and started again, it finishes and ends byte-equal."""
    terminal.never_wait()
    from rewarm.data.convert import convert as run_conversion

    if len(sources) < 2:
        raise UserError('convert needs at least one source and, last, the folder to write: rewarm convert SRC... OUT')
    options: dict[str, Any] = {'workers': workers} if workers is not None else {}
    run_conversion(
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
        staging=staging,
        progress=progress,
        **options,
    )


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar='RUN_FOLDER...', help='Run folders, also s3://; several are compared.')
    ],
    out: Annotated[Path, typer.Option(help='The page to write.')] = Path('report.html'),
) -> None:
    """Writes one self-contained HTML page about a run. Losses, rates, forgetting, recovery, preemptions, what ran."""
    from rewarm.report.page import write_page

    print(write_page(runs, out))


@app.command()
def status(
    run: Annotated[
        str, typer.Argument(metavar='RUN_FOLDER', help='A run folder, also s3://, of a run going on or not.')
    ],
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
) -> None:
    """Says where a run is. Who holds it, its last save, stops and goodput, when it ends, and what a start would do."""
    from rewarm.report.show_status import status_command

    status_command(run, as_json=as_json)


@app.command('export')
def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help='A checkpoint folder, such as runs/NAME/checkpoints/ba00001200.')],
    out: Annotated[Path, typer.Argument(help='The Hugging Face folder to write; must not exist.')],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.json, its folder, or an id in the local cache. Default: the run file's."),
    ] = None,
) -> None:
    """Writes a checkpoint as a folder that transformers loads."""
    from rewarm.exchange import export_command

    print(export_command(checkpoint, out, tokenizer=tokenizer))


@app.command('import')
def import_checkpoint(
    source: Annotated[str, typer.Argument(help='A Hugging Face folder, or an id in the local cache.')],
    checkpoint: Annotated[Path, typer.Argument(help='The checkpoint folder to write; must not exist.')],
) -> None:
    """Makes a checkpoint of Hugging Face weights. For `init_from: checkpoint:FOLDER`; it holds no optimizer state."""
    from rewarm.exchange import import_command

    for note in import_command(source, checkpoint):
        print(terminal.printable(note))
    print(checkpoint)


@app.command()
def verify(path: Annotated[Path, typer.Argument(help='A checkpoint folder or a dataset folder.')]) -> None:
    """Checks a checkpoint or a dataset: hashes, counts, card."""
    if (path / 'manifest.json').exists():
        from rewarm.resume.checkpoint import problems

        found = problems(path)
    else:
        from rewarm.data.verify import foreign_datasets, verify_dataset

        found = verify_dataset(path)
        for folder in foreign_datasets(path):
            print(f'{folder} has no dataset card: another program made it, and its tokenizer could not be checked.')
    if found:
        raise UserError(f'{path} is damaged:\n' + '\n'.join(f'  {line}' for line in found))
    print(f'{path} is whole.')


@app.command()
def schema() -> None:
    """Prints the JSON Schema of run files, for editors. Such as: rewarm schema > run.schema.json."""
    from rewarm.config.show import schema_text

    print(schema_text(), end='')


@app.command()
def doctor() -> None:
    """Says what is installed and what would be chosen here. Devices, kernels, attention, and why."""
    import shutil

    import torch

    from rewarm.config.shapes import MODEL_SHAPES
    from rewarm.model.attention_choice import choose_attention
    from rewarm.model.ops import FUSED_OPS, choose_ops
    from rewarm.model.trial import try_ops
    from rewarm.start import VERSIONS_OF, version_of

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    for name in VERSIONS_OF:
        print(f'{name:20} {version_of(name) or "not installed"}')
    named = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    print(f'{"device":20} {device.type}, {named}')
    attention = choose_attention('auto', device, dtype=dtype)
    size = MODEL_SHAPES['pythia-410m' if device.type == 'cuda' else 'pythia-14m']  # interpreted kernels are slow
    for kernels in ('auto', 'triton', 'torch'):
        choices: dict[str, str] = dict.fromkeys(FUSED_OPS, kernels)
        try:
            faults = try_ops(choices, device, attention, shape=size, gelu='tanh', dtype=dtype)
            chosen = choose_ops(choices, device, attention, faults).description
        except UserError as error:
            chosen = f'no: {error}'
        print(f'{"kernels, " + kernels:20} {chosen}')
    print(f'{"fused operations":20} {", ".join(FUSED_OPS)}')
    print(f'{"attention, auto":20} {attention.description}')
    for name in ('cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math'):
        try:
            print(f'{"attention, " + name:20} {choose_attention(name, device, dtype=dtype).description}')
        except UserError as error:
            print(f'{"attention, " + name:20} no: {error}')
    print(f'{"free disk here":20} {shutil.disk_usage(".").free / 1e9:,.0f} GB')
