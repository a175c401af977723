from collections.abc import Callable
from pathlib import Path

import pytest

RUN = """\
run_name: small
run_folder: runs/${run_name}
max_seq_len: 8
global_train_batch_size: 4
device_train_microbatch_size: 2
tokenizer: tokenizer.json
model: {name: pythia-14m, init_from: scratch}
optimizer:
  betas: [0.9, 0.95]
  eps: 1e-8
stages:
  - name: old
    max_duration: 100ba
    train:
      streams:
        - {name: old, local: data/old, proportion: 1.0}
    schedule: {name: cosine, lr: 3e-4, min_lr: 3e-5, warmup: 10ba}
  - name: new
    max_duration: 6400tok
    train:
      streams:
        - {name: new, local: data/new, proportion: 0.95}
        - {name: old, local: data/old, proportion: 0.05}
    schedule:
      name: constant
      lr: 1e-4
      warmup: 1%
    optimizer_state: reset
eval:
  interval: 50ba
  sets:
    - {name: old, local: data/old-val, role: upstream}
checkpoints: {interval: 20ba, keep: 2}
loggers: {tensorboard: {}}
"""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes run.yaml, with replacements, into a folder that becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def write(*replacements: tuple[str, str], text: str = RUN) -> Path:
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new, 1)
        Path('run.yaml').write_text(text)
        return Path('run.yaml')

    return write


@pytest.fixture
def problems_of(write_run) -> Callable[..., tuple[str, ...]]:
    """What is wrong with run.yaml after replacements and overrides."""
    from rewarm.config.errors import ConfigError
    from rewarm.config.load import load

    def problems(*replacements: tuple[str, str], overrides: tuple[str, ...] = (), **kwargs) -> tuple[str, ...]:
        path = write_run(*replacements)
        try:
            load(path, overrides, **kwargs)
        except ConfigError as error:
            return error.problems
        return ()

    return problems
