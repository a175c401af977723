"""Commands on a real run: export, import, verify, report, doctor."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file


def rewarm(*arguments, code=0):
    command = [sys.executable, '-W', 'ignore', '-m', 'rewarm', *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def checkpoint(unbroken):
    return unbroken.folder / 'checkpoints' / 'ba00000012'


def test_export_loads_in_transformers_and_imports_back_bit_equal(checkpoint, tmp_path):
    import transformers

    rewarm('export', checkpoint, tmp_path / 'hf')
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
    ours = load_file(checkpoint / 'model.safetensors')
    torch.testing.assert_close(model.gpt_neox.embed_in.weight, ours['gpt_neox.embed_in.weight'], rtol=0, atol=0)
    rewarm('import', tmp_path / 'hf', tmp_path / 'start')
    back = load_file(tmp_path / 'start' / 'model.safetensors')
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert 'is complete' in rewarm('verify', tmp_path / 'start')


def test_a_run_starts_from_imported_weights(checkpoint, make_run, tmp_path):
    rewarm('export', checkpoint, tmp_path / 'hf')
    rewarm('import', tmp_path / 'hf', tmp_path / 'start')
    first, second = make_run('from-checkpoint'), make_run('from-hf')
    first.finish(f'model.init_from=checkpoint:{tmp_path}/start', 'stages.1.max_duration=4ba', 'eval.interval=100ba')
    second.finish(f'model.init_from=hf:{tmp_path}/hf', 'stages.1.max_duration=4ba', 'eval.interval=100ba')
    assert first.losses() == second.losses()


def test_verify_names_the_damage_and_exits_2(checkpoint, data, tmp_path):
    import shutil

    assert 'is complete' in rewarm('verify', checkpoint)
    assert 'is complete' in rewarm('verify', data / 'old')
    foreign = shutil.copytree(data / 'old', tmp_path / 'foreign')
    for name in ('dataset_card.json', 'rejects.jsonl'):
        (foreign / name).unlink()
    output = rewarm('verify', foreign)
    assert 'another program made it' in output
    assert 'is complete' in output
    shutil.copytree(checkpoint, tmp_path / 'broken')
    os.truncate(tmp_path / 'broken' / 'model.safetensors', 10)
    output = rewarm('verify', tmp_path / 'broken', code=2)
    assert 'model.safetensors has 10 bytes' in output
    assert 'Traceback' not in output


def test_report_and_doctor(unbroken, tmp_path):
    rewarm('report', unbroken.folder, '--out', tmp_path / 'page.html')
    assert (tmp_path / 'page.html').stat().st_size > 100_000
    said = dict(line.split(maxsplit=2)[1:] for line in rewarm('doctor').splitlines() if line.startswith('kernels, '))
    assert said['auto'].startswith('plain PyTorch, since Triton kernels ')
    assert said['torch'] == 'plain PyTorch, as asked for'
