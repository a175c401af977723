"""``rewarm doctor``: what is installed and what would be chosen on this machine."""

from typing import Any

from rewarm import terminal
from rewarm.cli.arguments import AsJson
from rewarm.cli.output import print_json
from rewarm.config.errors import UserError

__all__ = ['doctor']

KERNELS = ('auto', 'triton', 'torch')
ATTENTION = ('cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math')


def doctor(as_json: AsJson = False) -> None:
    """Says what is installed and what would be chosen here. Devices, kernels, attention, and why."""
    found = _examine()
    if as_json:
        print_json(found)
        return
    lines = {name: version or 'not installed' for name, version in found['versions'].items()}
    lines['device'] = ', '.join(found['device'].values())
    lines |= {f'kernels, {name}': words for name, words in found['kernels'].items()}
    lines['fused operations'] = ', '.join(found['fused_operations'])
    lines |= {f'attention, {name}': words for name, words in found['attention'].items()}
    lines['free disk here'] = f'{found["free_disk_bytes"] / 1e9:,.0f} GB'
    for name, words in lines.items():
        print(f'{name:20} {terminal.printable(words)}')


def _examine() -> dict[str, Any]:
    """All that is said, as JSON types; what cannot be had here is told as ``no: ...``."""
    import shutil

    import torch

    from rewarm.config.shapes import MODEL_SHAPES
    from rewarm.model.attention_choice import choose_attention
    from rewarm.model.ops import FUSED_OPS, choose_ops
    from rewarm.model.trial import try_ops
    from rewarm.start import VERSIONS_OF, version_of

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    named = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    attention = choose_attention('auto', device, dtype=dtype)
    size = MODEL_SHAPES['pythia-410m' if device.type == 'cuda' else 'pythia-14m']  # interpreted kernels are slow
    kernels: dict[str, str] = {}
    for name in KERNELS:
        choices: dict[str, str] = dict.fromkeys(FUSED_OPS, name)
        try:
            faults = try_ops(choices, device, attention, shape=size, gelu='tanh', dtype=dtype)
            kernels[name] = choose_ops(choices, device, attention, faults).description
        except UserError as error:
            kernels[name] = f'no: {error}'
    ways = {'auto': attention.description}
    for name in ATTENTION:
        try:
            ways[name] = choose_attention(name, device, dtype=dtype).description
        except UserError as error:
            ways[name] = f'no: {error}'
    return {
        'versions': {name: version_of(name) for name in VERSIONS_OF},
        'device': {'kind': device.type, 'name': named},
        'kernels': kernels,
        'fused_operations': list(FUSED_OPS),
        'attention': ways,
        'free_disk_bytes': shutil.disk_usage('.').free,
    }
