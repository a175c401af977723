"""``rewarm doctor``: what is installed and what would be chosen on this machine."""

from rewarm.config.errors import UserError

__all__ = ['doctor']


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
