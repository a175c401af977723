"""A tiny two-stage run on real text: the standard library's own source as old data, its docstrings' topics as new."""

import json
import os
import pydoc_data.topics
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rewarm.data.convert import convert

ROOT = Path(__file__).parents[2]
RUN_FILE = """
run_name: tiny
run_folder: {folder}
seed: 17
max_seq_len: 32
global_train_batch_size: 8
device_train_microbatch_size: 4
data: {{num_workers: 0, shuffle_block_size: 64}}
precision: fp32
tokenizer: {data}/tokenizer.json
model:
  {{name: custom, init_from: scratch, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 512}}
stages:
  - name: first
    max_duration: 6ba
    train: {{streams: [{{name: old, local: {data}/old}}]}}
    schedule: {{name: cosine, lr: 1.0e-2, min_lr: 1.0e-3, warmup: 2ba}}
  - name: second
    max_duration: 6ba
    train:
      streams:
        - {{name: new, local: {data}/new, proportion: 0.75}}
        - {{name: old, local: {data}/old, proportion: 0.25}}
    schedule: {{name: neox_clipped_cosine, lr: 1.0e-2, min_lr: 1.0e-3, warmup: 2ba}}
eval:
  interval: 3ba
  sets:
    - {{name: old, local: {data}/old-val, role: upstream}}
    - {{name: new, local: {data}/new-val, role: downstream}}
checkpoints: {{interval: 2ba, keep: 2}}
"""


@pytest.fixture(scope='session')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of real text and the tokenizer that made them."""
    return make_data(tmp_path_factory.mktemp('data'))


def make_data(folder: Path) -> Path:
    """Converts a little of the standard library."""
    library = Path(sysconfig.get_paths()['stdlib'])
    old = [(library / f'{name}.py').read_text() for name in ('argparse', 'ast', 'heapq', 'textwrap')]
    new = list(pydoc_data.topics.topics.values())[:40]
    # Evaluations of all of it would take most of a test's time; these are some 50 sequences each.
    held_out = {'old-val': [old[3][:6000]], 'new-val': [text[:1500] for text in new[35:]]}
    texts = {'old': old[:3], 'new': new[:35], **held_out}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=['<|endoftext|>'], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(old[:3] + new[:35], trainer)
    tokenizer.save(str(folder / 'tokenizer.json'))
    for name, documents in texts.items():
        source = folder / f'{name}.jsonl'
        source.write_text(''.join(json.dumps({'text': text}) + '\n' for text in documents))
        convert(
            [str(source)],
            str(folder / name),
            tokenizer=str(folder / 'tokenizer.json'),
            seq_len=32,
            workers=1,
            shard_bytes=1 << 14,
            progress=False,
        )
    return folder


class Run:
    """A run file, its folder, and ways to start it as a user would."""

    def __init__(self, path: Path, data: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.folder = path / 'run'
        self.file = path / 'run.yaml'
        self.file.write_text(RUN_FILE.format(folder=self.folder, data=data))

    def command(self, *arguments: str, ranks: int = 1) -> list[str]:
        script = [str(ROOT / 'scripts/train.py'), str(self.file), *arguments]
        if ranks == 1:
            return [sys.executable, '-W', 'ignore', *script]
        return [str(Path(sys.executable).parent / 'composer'), '-n', str(ranks), *script]

    def start(self, *arguments: str, ranks: int = 1) -> subprocess.Popen:
        """Starts it in a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments, ranks=ranks),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )

    def finish(self, *arguments: str, ranks: int = 1, code: int = 0) -> str:
        """Runs it to its end and checks the exit code."""
        process = self.start(*arguments, ranks=ranks)
        try:
            output, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == code, output
        return output

    def lines(self, name: str) -> list[dict]:
        path = self.folder / f'{name}.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / 'checkpoints').glob('ba????????'))

    def losses(self) -> list[tuple]:
        """Everything of the metrics that does not depend on the clock."""
        keys = ('stage', 'batch', 'tokens', 'stage_tokens', 'lr', 'loss', 'grad_norm', 'samples', 'sample_ids_crc32')
        return [tuple(str(record[key]) for key in keys) for record in self.lines('metrics')]

    def evals(self) -> list[tuple]:
        return [tuple(sorted((key, str(value)) for key, value in record.items())) for record in self.lines('evals')]

    def weights(self) -> bytes:
        return (self.folder / 'checkpoints' / self.checkpoints()[-1] / 'model.safetensors').read_bytes()


@pytest.fixture
def make_run(tmp_path: Path, data: Path):
    """Makes a run in a folder of its own."""
    return lambda name='a': Run(tmp_path / name, data)


@pytest.fixture(scope='session')
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """The run that no machine ever broke."""
    run = Run(tmp_path_factory.mktemp('unbroken'), data)
    run.finish()
    return run


@pytest.fixture(scope='session')
def unbroken_of_two(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """The same run on two ranks."""
    run = Run(tmp_path_factory.mktemp('unbroken_of_two'), data)
    run.finish(ranks=2)
    return run
