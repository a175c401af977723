"""A checkpoint becomes a Hugging Face folder wherever it lies and whatever became of its data, or there are words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewarm.config.errors import UserError
from rewarm.exchange import export_command, import_command
from rewarm.formats.tokenizer import tokenizer_hash
from tests.exchange.conftest import RUN_FILE, make_model, make_run, make_tokenizer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def weights(folder):
    return load_file(Path(folder) / 'model.safetensors')


def equal(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def is_of(folder, batch):
    assert (Path(folder) / 'tokenizer.json').is_file()
    return equal(weights(folder), make_model(batch).state_dict())


@pytest.mark.parametrize(
    ('place', 'batch'),
    [
        ('', 10),
        ('checkpoints', 10),
        ('checkpoints/latest', 10),
        ('checkpoints/ba00000010', 10),
        ('checkpoints/ba00000005', 5),
    ],
)
def test_every_name_of_a_checkpoint_leads_to_it(run, tmp_path, place, batch):
    assert is_of(export_command(str(run / place), tmp_path / 'out'), batch)


def test_a_run_folder_that_was_moved_a_relative_path_a_link_and_a_home_lead_to_it(run, tmp_path, monkeypatch):
    shutil.move(run, tmp_path / 'moved')
    os.symlink(tmp_path / 'moved/checkpoints/ba00000005', tmp_path / 'link')
    monkeypatch.setenv('HOME', str(tmp_path))
    for number, (place, batch) in enumerate((('../moved', 10), (str(tmp_path / 'link'), 5), ('~/moved', 10))):
        assert is_of(export_command(place, tmp_path / str(number)), batch)


def test_the_newest_is_the_newest_complete_one(run, tmp_path):
    os.truncate(run / 'checkpoints/ba00000010/model.safetensors', 9)
    for number, place in enumerate(('', 'checkpoints/latest')):
        assert is_of(export_command(run / place, tmp_path / str(number)), 5)
    with pytest.raises(UserError, match=r'ba00000010 .*model\.safetensors has 9 bytes'):
        export_command(run / 'checkpoints/ba00000010', tmp_path / 'out')


def test_a_copy_of_a_checkpoint_alone_is_enough(run, tmp_path):
    shutil.copytree(run / 'checkpoints/ba00000005', tmp_path / 'copy')
    shutil.rmtree(tmp_path / 'runs')
    (tmp_path / 'tokenizer.json').unlink()
    out = export_command(tmp_path / 'copy', tmp_path / 'out')
    assert is_of(out, 5)
    assert json.loads((out / 'config.json').read_text())['hidden_act'] == 'gelu_pytorch_tanh'


@pytest.mark.parametrize(
    ('place', 'batch'), [('', 10), ('/', 10), ('/checkpoints/latest', 10), ('/checkpoints/ba00000005', 5)]
)
def test_from_a_bucket(bucket, tmp_path, place, batch):
    shutil.rmtree(tmp_path / 'runs')
    out = export_command(bucket + place, tmp_path / 'out')
    assert is_of(out, batch)
    assert f'{4 - batch / 10:.4f}' in (out / 'README.md').read_text()  # the run's records came along


def test_from_a_bucket_all_of_a_run_or_words_with_the_url_as_it_is(bucket, tmp_path):
    export_command(bucket, tmp_path / 'out', step='all')
    assert all(is_of(tmp_path / f'out/ba{batch:08d}', batch) for batch in (5, 10))
    for wrong in ('s3://data/nothing', 's3://data/runs/small/checkpoints/ba00000007'):
        with pytest.raises(UserError, match=f'^{wrong}: no checkpoint there'):
            export_command(wrong, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_all_of_a_run_one_by_one_and_again_only_what_is_missing(run, tmp_path, capfd):
    out = tmp_path / 'out'
    export_command(run, out, step='5')
    assert is_of(out, 5)
    export_command(run, tmp_path / 'all', step='all')
    shutil.rmtree(tmp_path / 'all/ba00000005')
    before = (tmp_path / 'all/ba00000010/model.safetensors').stat().st_mtime_ns
    export_command(run, tmp_path / 'all', step='all')
    assert sorted(path.name for path in (tmp_path / 'all').iterdir()) == ['ba00000005', 'ba00000010']
    assert (tmp_path / 'all/ba00000010/model.safetensors').stat().st_mtime_ns == before
    assert 'ba00000010 is there already and stays as it is' in capfd.readouterr().err
    with pytest.raises(UserError, match='no complete checkpoint for --step 7; there are ba00000005, ba00000010'):
        export_command(run, tmp_path / 'other', step='7')
    with pytest.raises(UserError, match='is no run folder, so --step cannot choose there'):
        export_command(run / 'checkpoints/ba00000005', tmp_path / 'other', step='all')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_other_dtypes_are_stored_and_said(run, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    out = export_command(run, tmp_path / 'out', dtype=dtype)
    stored = {name: tensor.to(getattr(torch, dtype)) for name, tensor in make_model(10).state_dict().items()}
    assert equal(weights(out), stored)
    assert AutoModelForCausalLM.from_pretrained(out, torch_dtype='auto').dtype == getattr(torch, dtype)


def test_import_then_export_is_the_source_again(hf_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import_command(str(hf_folder), tmp_path / 'start')
    out = export_command(tmp_path / 'start', tmp_path / 'out')
    assert equal(weights(hf_folder), weights(out))
    with torch.no_grad():
        first, second = (AutoModelForCausalLM.from_pretrained(each)(IDS).logits for each in (hf_folder, out))
    assert first.equal(second)
    for each in (AutoTokenizer.from_pretrained(folder) for folder in (hf_folder, out)):
        assert each('abz').input_ids == [1, 2, 26]
        assert each.eos_token_id == 0


def test_what_an_earlier_version_wrote_is_exported_beside_its_run_and_alone_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path, old=True)
    shutil.copytree(run / 'checkpoints/ba00000005', tmp_path / 'copy')
    assert is_of(export_command(run, tmp_path / 'out'), 10)
    with pytest.raises(UserError, match=r'holds no tokenizer, .* --tokenizer PATH'):
        export_command(tmp_path / 'copy', tmp_path / 'other')
    assert is_of(export_command(tmp_path / 'copy', tmp_path / 'other', tokenizer=str(tmp_path)), 5)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='--tokenizer PATH'):
        export_command(run, tmp_path / 'third')


def test_weights_that_an_earlier_version_imported_need_a_run_file(hf_folder, tmp_path):
    from rewarm.resume.checkpoint import write
    from rewarm.resume.state import state_without_training

    state = state_without_training('x')
    model = make_model(1)
    write(tmp_path, batch=0, model=model.state_dict(), optimizer={}, state=state).rename(tmp_path / 'start')
    with pytest.raises(UserError, match=r'does not say what model it is of.* --config RUN\.yaml'):
        export_command(tmp_path / 'start', tmp_path / 'out')
    (tmp_path / 'run.yaml').write_text(RUN_FILE)
    export_command(tmp_path / 'start', tmp_path / 'out', config=tmp_path / 'run.yaml', tokenizer=str(hf_folder))
    assert is_of(tmp_path / 'out', 1)


def test_another_tokenizer_is_taken_if_it_is_named_and_told(run, tmp_path, capfd):
    other = make_tokenizer(tmp_path / 'other.json', 'zyxwvutsrqponmlkjihgfedcba')
    out = export_command(run, tmp_path / 'out', tokenizer=str(other))
    assert tokenizer_hash(out / 'tokenizer.json') == tokenizer_hash(other)
    assert 'is another tokenizer' in capfd.readouterr().err


@pytest.mark.parametrize(
    'tokenizer',
    ['', '{}', '[' * 5000, json.dumps({'model': {'vocab': {'a': 1 << 31}}}), '{"model": {"vocab": {"a": 64}}}'],
)
def test_a_damaged_tokenizer_leaves_nothing(run, tmp_path, tokenizer):
    (tmp_path / 'bad.json').write_text(tokenizer)
    before = sorted(each.name for each in tmp_path.iterdir())
    with pytest.raises(UserError, match=r'bad\.json'):
        export_command(run, tmp_path / 'out', tokenizer=str(tmp_path / 'bad.json'))
    assert sorted(each.name for each in tmp_path.iterdir()) == before


def test_what_cannot_be_written_is_told(run, hf_folder, tmp_path):
    (tmp_path / 'file').touch()
    os.symlink(tmp_path / 'nowhere', tmp_path / 'link')
    with pytest.raises(UserError, match=r'file.*cannot be written'):
        import_command(str(hf_folder), tmp_path / 'file' / 'start')
    with pytest.raises(UserError, match=r'file.*cannot be written'):
        export_command(run, tmp_path / 'file' / 'out')
    with pytest.raises(UserError, match='exists already'):
        import_command(str(hf_folder), tmp_path / 'link')
    with pytest.raises(UserError, match='exists already'):
        export_command(run, tmp_path / 'link')


def test_what_a_killed_export_left_is_removed_and_not_that_of_one_that_goes_on(run, tmp_path):
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    for process in (ended.pid, os.getppid()):
        (tmp_path / f'.out.writing-{process}').mkdir()
    export_command(run, tmp_path / 'out')
    assert [path.name for path in tmp_path.glob('.out*')] == [f'.out.writing-{os.getppid()}']


@pytest.mark.parametrize('place', ['nothing', 'empty'])
def test_where_there_is_none_it_is_said(tmp_path, place):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=str(tmp_path / place)):
        export_command(tmp_path / place, tmp_path / 'out')
