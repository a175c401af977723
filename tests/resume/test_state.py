"""What is loaded from a checkpoint belongs to the process: the files may go, and the moments stay."""

import shutil

import torch

from rewarm.config.schema import ModelShape, OptimizerConfig
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.resume.checkpoint import open_checkpoint, write
from rewarm.resume.state import load_model, load_optimizer, optimizer_tensors

SHAPE = ModelShape(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)


def new_run(lr: float):
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, seed=3)
    return model, build_optimizer(model, OptimizerConfig(), lr=lr)


def step(model, optimizer):
    model(torch.arange(12).reshape(2, 6)).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def tensors(model, optimizer):
    return {**model.state_dict(), **optimizer_tensors(model, optimizer)}


def saved(root):
    model, optimizer = new_run(1e-3)
    for _ in range(2):
        step(model, optimizer)
    path = write(root, batch=2, model=model.state_dict(), optimizer=optimizer_tensors(model, optimizer), state={})
    return model, optimizer, open_checkpoint(path)


def test_files_written_over_and_removed_after_loading_change_nothing(tmp_path):
    model, optimizer, checkpoint = saved(tmp_path)
    other, its_optimizer = new_run(5e-4)
    load_model(other, checkpoint)
    load_optimizer(other, its_optimizer, checkpoint)
    for path in (checkpoint.model_file, *checkpoint.optimizer_files):
        with path.open('r+b') as file:  # the same inode, as a mapping would see it
            file.write(b'\xff' * path.stat().st_size)
    shutil.rmtree(checkpoint.path)
    expected, found = tensors(model, optimizer), tensors(other, its_optimizer)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in expected.items()}
    assert its_optimizer.param_groups[0]['lr'] == 5e-4  # the run file's
    for group in its_optimizer.param_groups:
        group['lr'] = 1e-3
    step(model, optimizer)
    step(other, its_optimizer)
    for name, tensor in tensors(model, optimizer).items():
        torch.testing.assert_close(tensors(other, its_optimizer)[name], tensor, rtol=0, atol=0)


def test_no_file_of_a_checkpoint_stays_mapped(tmp_path):
    """A mapping would keep its blocks on the disk after retention, and a file server's error would kill the run."""
    _, _, checkpoint = saved(tmp_path)
    model, optimizer = new_run(1e-3)
    load_model(model, checkpoint)
    load_optimizer(model, optimizer, checkpoint)
    with open('/proc/self/maps') as maps:
        assert [line for line in maps if str(checkpoint.path) in line] == []
