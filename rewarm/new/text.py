"""The run file as text: every key that one may want to change, in the order of the examples, and what it is for."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from rewarm.config.cost import BYTES_PER_PARAMETER
from rewarm.config.paths import is_url
from rewarm.config.shapes import count_parameters
from rewarm.new.choices import Choices
from rewarm.new.dataset import Part
from rewarm.new.model import Model
from rewarm.new.request import Request

__all__ = ['quoted', 'run_file', 'times']

_PLAIN = re.compile(r'(?:[A-Za-z/~$]|\.{1,2}/)[A-Za-z0-9._/~$+@=:-]*', re.ASCII)
_WORDS = {'null', 'true', 'false', 'yes', 'no', 'on', 'off', 'y', 'n', '~', '.inf', '.nan'}
_COLUMN = 42

SCHEDULES = {
    'constant': 'warmup: 1%',
    'linear': 'min_lr: {floor}, warmup: 1%',
    'cosine': 'min_lr: {floor}, warmup: 1%',
    'neox_clipped_cosine': 'min_lr: {floor}, warmup: 1%',
    'wsd': 'min_lr: {floor}, warmup: 1%, decay: 20%',
}


def run_file(request: Request, model: Model, choices: Choices, tokenizer: str) -> str:
    """Writes a run file.

    Args:
        request (Request): What was asked for.
        model (Model): The model.
        choices (Choices): The numbers.
        tokenizer (str): A Hugging Face id, or the path of a ``tokenizer.json`` or its folder.

    Returns:
        str: YAML.
    """
    blocks = (
        _head(request),
        _training(request, model, choices, tokenizer),
        _model(model),
        _stages(request, model, choices),
    )
    rest = (_eval(choices), _machines(model))
    return '\n'.join(line for block in (*blocks, *rest) for line in block) + '\n'


def quoted(text: str) -> str:
    """A text as a value of YAML, in quotes where it could be read as something else."""
    if not text.isprintable():
        return json.dumps(text)
    plain = text.replace('${run_name}', '')
    if _PLAIN.fullmatch(plain) and not plain.endswith(':') and plain.lower() not in _WORDS:
        return text
    return "'" + text.replace("'", "''") + "'"


def times(passes: float) -> str:
    """How often data is read, in words."""
    return 'once' if 0.995 < passes < 1.005 else f'{passes:.3g} times'


def _head(request: Request) -> Iterator[str]:
    command = f'composer -n {request.gpus} -m rewarm train {request.name}.yaml'
    yield f'# Look first:  rewarm plan {request.name}.yaml --gpus {request.gpus} --tokens-per-second 100e3 --price 2.5'
    yield f'# Run:         {command}      (again after an interruption: the same)'
    yield '# All keys: rewarm schema. Paths are relative to the folder in which it is started.'


def _training(request: Request, model: Model, choices: Choices, tokenizer: str) -> Iterator[str]:
    batch, micro, seq_len = choices.global_batch_size, choices.microbatch_size, choices.seq_len
    yield _line(f'run_name: {quoted(request.name)}', 'another name is another run, which begins at its beginning')
    yield _line(
        f'run_folder: {quoted(request.run_folder)}',
        'or s3://my-bucket/runs/${run_name}: it must outlive the machine',
    )
    yield _line('seed: 17', 'order of samples')
    yield _line(f'max_seq_len: {seq_len}', 'tokens; what the data was converted with')
    yield _line(
        f'global_train_batch_size: {batch}', f'sequences; {batch:,} x {seq_len:,} = {batch * seq_len:,} tokens a step'
    )
    memory = f'about {_size(choices.memory_bytes)} of a GPU by arithmetic; smaller if memory runs out'
    yield _line(f'device_train_microbatch_size: {micro}', f'sequences at once; {memory}: no result changes')
    yield 'data:'
    yield _line('  num_workers: 4', 'loader processes for each GPU')
    yield _line('  shuffle_block_size: 65536', 'samples shuffled together, of each stream')
    yield _line(f'precision: {model.precision}', 'bf16 on GPUs from Ampere on; fp32 on a CPU')
    yield _line(f'tokenizer: {quoted(tokenizer)}', 'what the data was converted with')


def _model(model: Model) -> Iterator[str]:
    yield 'model:'
    yield _line(f'  name: {model.name}', f'{count_parameters(model.shape):,} parameters')
    yield _line(f'  init_from: {quoted(model.init_from)}', 'or hf:<id or folder>, checkpoint:<folder>, scratch')
    yield _line(f'  gelu: {model.gelu}', 'Pythia was trained with tanh')
    yield _line('  kernels: auto', 'torch: plain PyTorch, if a fused kernel is in doubt')
    yield '  attention: auto'
    for key, value in model.sizes.items():
        yield f'  {key}: {str(value).lower() if isinstance(value, bool) else value}'
    yield 'optimizer:'
    yield '  name: adamw'
    yield _line('  betas: [0.9, 0.95]', "Pythia's and the paper's")
    yield '  eps: 1.0e-8'
    yield _line('  weight_decay: 0.1', 'x learning rate')
    yield 'max_grad_norm: 1.0'


def _stages(request: Request, model: Model, choices: Choices) -> Iterator[str]:
    usual = Decimal(repr(model.peak_rate))
    rate = usual if request.lr is None else Decimal(repr(request.lr))
    name = request.data[0].name if len(request.data) == 1 else request.name
    yield '# A stage begins once: its rate rises once, whatever happens to the machines. More data later: append a stage here.'
    yield 'stages:'
    yield f'  - name: {quoted(name)}'
    tokens = f'{choices.batches * choices.tokens_per_batch:,} tokens'
    yield _line(
        f'    max_duration: {choices.duration}',
        f'{tokens}; the new data is read {times(choices.passes)}. ba: batches, tok: tokens',
    )
    yield '    train:'
    yield _line(
        '      streams:', 'shares of the samples, which sum to 1; old data here is replay, which holds forgetting down'
    )
    for stream in choices.streams:
        yield f'        - {{name: {quoted(stream.name)}, {_place(stream.name, stream.part)}, proportion: {_decimal(stream.share)}}}'
    yield '    schedule:'
    yield _line(f'      name: {request.curve}', 'rewarm schema names the others')
    yield _line(
        f'      lr: {_rate(rate)}', f"the peak; {_rate(usual)} is pre-training's. Higher learns more and forgets more"
    )
    for item in SCHEDULES[request.curve].format(floor=_rate(rate / 10)).split(', '):
        yield f'      {item}'
    kept = (
        'keep it if the checkpoint is of the same data'
        if model.init_from.startswith('checkpoint:')
        else 'these weights come without moments'
    )
    yield _line('    optimizer_state: reset', f"AdamW's moments; {kept}")


def _eval(choices: Choices) -> Iterator[str]:
    yield 'eval:'
    yield _line(f'  interval: {choices.eval_interval}ba', 'and before the first batch and after the last')
    if not choices.evals:
        yield _line(
            '  sets: []',
            'none: neither forgetting nor learning is measured. rewarm convert --val-fraction 0.01 makes one',
        )
        return
    yield _line('  sets:', 'upstream is old data, on which forgetting is measured; downstream is new')
    for name, part, role in choices.evals:
        yield f'    - {{name: {quoted(name)}, {_place(f"{name}-val", part)}, role: {role}}}'


def _machines(model: Model) -> Iterator[str]:
    size = _size(BYTES_PER_PARAMETER * count_parameters(model.shape))
    yield 'checkpoints:'
    yield _line('  interval: 10min', 'at most this much is lost without notice')
    yield _line('  keep: 3', f"x {size}; a stage's last one is kept besides")
    yield 'preemption:'
    yield _line(
        '  signals: [SIGTERM, SIGINT, SIGUSR1, SIGHUP]', "SIGUSR1: Slurm's --signal; SIGHUP: the terminal is closed"
    )
    yield _line('  notice: auto', 'of a cloud that takes its machine back')
    yield _line('  grace_period: 25sec', 'the composer launcher kills its ranks after 30 s')
    yield 'loggers: {tensorboard: {}}'


def _place(name: str, part: Part) -> str:
    if is_url(part.place):
        return f'remote: {quoted(part.place)}, local: data/{name}'
    return f'local: {quoted(part.place)}'


def _decimal(share: Fraction) -> str:
    """A share exactly: as a decimal if it is one of a few digits, else as a fraction."""
    text = f'{float(share):.6g}'
    return (
        text
        if Fraction(text) == share and share != 1
        else '1.0'
        if share == 1
        else f'{share.numerator}/{share.denominator}'
    )


def _size(count: int) -> str:
    return f'{count / 1e9:.2g} GB' if count >= 1e9 else f'{count / 1e6:.2g} MB'


def _rate(rate: Decimal) -> str:
    """A rate with all its digits, such as ``3.0e-4``, which YAML 1.1 reads as a number too."""
    digits, exponent = f'{rate.normalize():e}'.split('e')
    return f'{digits if "." in digits else digits + ".0"}e{int(exponent)}'


def _line(code: str, comment: str) -> str:
    """A line with its comment in a column of its own."""
    return f'{code + "  ":{_COLUMN}}# {comment}'
