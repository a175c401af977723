"""A GPT-NeoX checkpoint is imported with AdamW's state, from which a first stage with `optimizer_state: keep` goes on."""

import torch

from rewarm.config.schema import OptimizerConfig
from rewarm.exchange import export_command, import_command
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia
from rewarm.resume.checkpoint import open_checkpoint, problems
from rewarm.resume.state import load_model, load_optimizer, optimizer_tensors
from tests.exchange.conftest import make_tokenizer
from tests.model.test_neox_checkpoint import save, scaler, trained  # noqa: F401 (fixtures)


def test_weights_and_moments_are_restored_as_they_were_trained(tmp_path, trained, scaler):  # noqa: F811
    save(tmp_path / 'neox', trained, scaler, ranks=2)
    assert any('holds no tokenizer.json' in note for note in import_command(str(tmp_path / 'neox'), tmp_path / 'start'))
    assert problems(tmp_path / 'start') == []
    checkpoint, (source, theirs) = open_checkpoint(tmp_path / 'start'), trained
    model = Pythia(source.shape, gelu=source.gelu)
    optimizer = build_optimizer(model, OptimizerConfig(), lr=1e-3)
    load_model(model, checkpoint)
    load_optimizer(model, optimizer, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    ours, expected = optimizer_tensors(model, optimizer), optimizer_tensors(source, theirs)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)
    tokenizer = make_tokenizer(tmp_path / 'tokenizer.json', 'abc')
    export_command(tmp_path / 'start', tmp_path / 'out', tokenizer=str(tokenizer))
