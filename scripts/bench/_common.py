"""What the benchmarks share: a small run on the standard library's text, a watch on its batches, and the circumstances.

No benchmark itself: `make bench` leaves out files that begin with an underscore.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ['ROOT', 'SIZES', 'Size', 'Watched', 'circumstances', 'rewarm', 'watch', 'write_run', 'write_shards']

ROOT = Path(__file__).parents[2]
LOOK_EVERY = 0.004  # seconds between two looks at metrics.jsonl
RUN_FILE = """
run_name: bench
run_folder: {folder}/run
seed: 17
max_seq_len: {size.seq_len}
global_train_batch_size: {size.batch}
device_train_microbatch_size: {size.microbatch}
data: {{num_workers: {workers}}}
precision: fp32
tokenizer: {folder}/tokenizer.json
model:
  name: custom
  init_from: scratch
  hidden_size: {size.width}
  num_hidden_layers: {size.layers}
  num_attention_heads: {size.heads}
  vocab_size: {size.vocabulary}
stages:
  - name: only
    max_duration: {batches}ba
    train: {{streams: [{{name: text, local: {folder}/text}}]}}
    schedule: {{name: constant, lr: 1.0e-3}}
checkpoints: {{interval: {save_every}ba, keep: 3}}
"""


@dataclass(frozen=True)
class Size:
    """A model and its batches.

    Args:
        width (int): Hidden size.
        layers (int): Transformer blocks.
        heads (int): Attention heads.
        vocabulary (int): Rows of the embedding, and tokens of the tokenizer.
        seq_len (int): Tokens in a sequence.
        batch (int): Sequences in a step.
        microbatch (int): Sequences in one forward and backward pass.
    """

    width: int
    layers: int
    heads: int
    vocabulary: int
    seq_len: int
    batch: int
    microbatch: int


SIZES = {
    'standard': Size(width=192, layers=4, heads=4, vocabulary=2048, seq_len=128, batch=8, microbatch=4),
    'tiny': Size(width=32, layers=2, heads=2, vocabulary=512, seq_len=32, batch=4, microbatch=2),
}
"""`standard`: a step takes more than 100 ms on 2 cores. `tiny`: to see that a benchmark works."""


def rewarm(*arguments: str | Path) -> list[str]:
    """The command line of ``rewarm`` in this environment."""
    return [str(Path(sys.executable).parent / 'rewarm'), *map(str, arguments)]


def write_shards(folder: Path, size: Size, *, batches: int) -> None:
    """Writes ``tokenizer.json`` and ``text/``, shards of the standard library's modules that last for ``batches``.

    Args:
        folder (Path): Where to; exists.
        size (Size): Its vocabulary and its sequence length.
        batches (int): How many batches to have text for.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from rewarm.data.convert import convert

    needed, texts = batches * size.batch * (size.seq_len + 1), []  # characters; a token is one or more
    for path in sorted(Path(sysconfig.get_paths()['stdlib']).glob('*.py')):
        texts.append(path.read_text('utf-8'))
        if sum(map(len, texts)) > 5 * needed + 200_000:
            break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=['<|endoftext|>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'text.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    convert(
        [str(folder / 'text.jsonl')],
        str(folder / 'text'),
        tokenizer=str(folder / 'tokenizer.json'),
        seq_len=size.seq_len,
        workers=1,
        progress=False,
        say=lambda text: None,
    )


def write_run(folder: Path, size: Size, *, batches: int, workers: int, save_every: int) -> Path:
    """Writes a run file of one stage for what :func:`write_shards` wrote into the same folder.

    Args:
        folder (Path): The folder; the run's own is ``run`` in it.
        size (Size): Model and batches.
        batches (int): Length of the run.
        workers (int): Loader processes.
        save_every (int): Batches between checkpoints; there is always one at the end.

    Returns:
        Path: The run file.
    """
    path = folder / 'run.yaml'
    path.write_text(RUN_FILE.format(folder=folder, size=size, batches=batches, workers=workers, save_every=save_every))
    return path


class Watched(NamedTuple):
    """What was seen of a ``rewarm train`` from outside; all in seconds since its process was started.

    Args:
        batches (dict): When the record of each batch appeared, by the batch's number.
        cpu (dict): Processor time that the process, without its children, had used by then.
        ended (float): When the process had ended.
        started_at (float): Unix time of the start.
    """

    batches: dict[int, float]
    cpu: dict[int, float]
    ended: float
    started_at: float


def watch(command: list[str], metrics: Path, environment: dict[str, str]) -> Watched:
    """Runs a command to its end and looks at the run's ``metrics.jsonl`` meanwhile.

    Args:
        command (list[str]): ``rewarm train ...``.
        metrics (Path): The file; records in it from before appear at once.
        environment (dict[str, str]): Environment variables of the command, besides those of this process.

    Returns:
        Watched: When what happened.

    Raises:
        SystemExit: If the command failed, after its output.
    """
    seen: dict[int, float] = {}
    cpu: dict[int, float] = {}
    before: tuple[int, int] | None = None
    with (metrics.parent.parent / 'output.txt').open('w+') as output:
        started_at, started = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
        )
        try:
            while process.poll() is None:
                time.sleep(LOOK_EVERY)
                try:
                    state = metrics.stat()
                except FileNotFoundError:
                    continue
                if (state.st_ino, state.st_size) != before:
                    now, before = time.perf_counter() - started, (state.st_ino, state.st_size)
                    for line in metrics.read_text().split('\n')[:-1]:
                        batch = json.loads(line)['batch']
                        seen.setdefault(batch, now)
                        cpu.setdefault(batch, _cpu_seconds(process.pid))
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        ended = time.perf_counter() - started
        if process.returncode:
            output.seek(0)
            sys.exit(f'{output.read()}\n{" ".join(command)} ended with {process.returncode}')
    return Watched(seen, cpu, ended, started_at)


def _cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, user and system; 0 if it has ended."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def circumstances(*packages: str) -> dict[str, Any]:
    """Where a figure was measured: processor, cores, load, versions, commit.

    Args:
        packages (str): Packages whose versions matter.

    Returns:
        dict[str, Any]: JSON types. The commit ends in ``-dirty`` if files that git knows differ from it.
    """
    command = ['git', 'describe', '--always', '--dirty', '--exclude=*', '--abbrev=7']
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = Path('/proc/cpuinfo').read_text().split('\n') if sys.platform == 'linux' else []
    model = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())
    return {
        'cpu': model,
        'cores': len(os.sched_getaffinity(0)),
        'load': [round(load, 2) for load in os.getloadavg()],
        'python': platform.python_version(),
        'versions': {name: _version(name) for name in packages},
        'commit': commit.stdout.strip() or None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
