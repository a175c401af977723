"""The process behind aot.py that records launches, compiles them and reads the machine code; it may die of it."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple
from unittest import mock

import rewarm_kernels
import torch
import torch._dynamo  # an operator does it at its first call, which fails while tensors are without memory
import triton
from aot import TARGETS, Row, Variant
from aot_cases import CASES
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

__all__ = ['Launched', 'main', 'measure', 'never_launched', 'on_a_gpu', 'read', 'record']


class Launched(NamedTuple):
    """A launch as it was asked for: ``kernel[grid](*arguments, **options)``."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's, as in the table."""
        return self.kernel.fn.__name__.removeprefix('_').removesuffix('_kernel')

    @property
    def key(self) -> tuple[Any, ...]:
        """All that compiling it can depend on, and more: equal keys are equal kernels."""

        def key(value: Any) -> Any:
            return (value.dtype, value.data_ptr() % 16) if isinstance(value, Tensor) else (type(value), value)

        named = tuple((name, key(value)) for name, value in sorted(self.options.items()))
        return self.kernel, *map(key, self.arguments), named


def _modules() -> Iterator[Any]:
    for module in iter_modules(rewarm_kernels.__path__, 'rewarm_kernels.'):
        yield import_module(module.name)


@contextmanager
def on_a_gpu(target: str) -> Iterator[list[Launched]]:
    """New tensors have no memory and say that they are on a GPU of this kind; launches go to the list."""
    launches: list[Launched] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launched(kernel, arguments, options))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, 'run', run))
        stack.enter_context(mock.patch.object(Tensor, 'is_cuda', True))
        count = TARGETS[target].multiprocessors
        stack.enter_context(mock.patch('rewarm_kernels.launch._multiprocessors', return_value=count))
        # No launch of ours, and not every torch has this form of product for tensors without memory.
        stack.enter_context(mock.patch('rewarm_kernels.matmul._HAS_OUT_DTYPE', False))
        stack.enter_context(torch.device('meta'))
        yield launches


def record(cases: Mapping[str, Callable[[], Any]], target: str) -> dict[Variant, Launched]:
    """Runs the cases and returns what they launch on a target, without repetitions."""
    for module in _modules():
        for operator in vars(module).values():
            if isinstance(operator, torch.library.CustomOpDef):  # pyright: ignore[reportPrivateImportUsage]
                operator.register_fake(operator._init_fn)  # without memory, too, run what launches
    found: dict[Variant, Launched] = {}
    seen = set()
    for case, call in cases.items():
        with on_a_gpu(target) as launches:
            call()
        for launched in launches:
            if launched.key in seen:
                continue
            seen.add(launched.key)
            variant = Variant(target, launched.name, case)
            if variant in found:
                raise ValueError(f'{variant} is launched in two ways in one case: make it two cases')
            found[variant] = launched
    return found


def never_launched(found: Iterable[Variant]) -> list[str]:
    """Kernels of the package that are in none of the variants."""
    kernels = {
        Launched(value, (), {}).name
        for module in _modules()
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith('_kernel')
    }
    return sorted(kernels - {variant.kernel for variant in found})


class _Driver:
    """A Triton driver for a GPU that is not here: all that its launch code asks before it compiles."""

    def __init__(self, target: str) -> None:
        self.capability = int(target.removeprefix('sm_'))

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget('cuda', self.capability, 32)


def measure(variant: Variant, launched: Launched) -> Row:
    """Compiles a variant as a launch would and reads its machine code: a line of the table."""
    kernel, arguments, options = launched
    driver: Any = _Driver(variant.target)
    triton.runtime.driver.set_active(driver)
    compiled = kernel.run(*arguments, grid=(1,), warmup=True, **options)
    given = dict(zip(kernel.arg_names, arguments)) | options
    constants = [parameter.name for parameter in kernel.params if parameter.is_constexpr]
    return {
        'triton': triton.__version__,
        **variant._asdict(),
        'constants': ' '.join(f'{name}={given[name]}' for name in constants if name in given),
        'warps': compiled.metadata.num_warps,
        'shared': compiled.metadata.shared,
        'dots': len(re.findall(r'\btt\.dot', compiled.asm['ttir'])),
        **read(*_disassembled(compiled.asm['cubin'])),
    }


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """What the tools that Triton carries say of a cubin: its use of resources, its instructions."""
    tools = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        commands = (tools / 'cuobjdump', '-res-usage', file.name), (tools / 'nvdisasm', '-c', file.name)
        usage, code = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    return usage, code


def read(usage: str, code: str) -> dict[str, int]:
    """Counts from the disassembler's texts. LOCAL is not among them: it stays 0 while a kernel spills."""
    # "/*0070*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;" -> LDG.E.128
    operations = Counter(re.findall(r'^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)', code, re.MULTILINE))

    def count(pattern: str) -> int:
        return sum(number for operation, number in operations.items() if re.fullmatch(pattern, operation))

    def resource(name: str) -> int:
        found = re.search(rf'\b{name}:(\d+)', usage)
        if not found or not operations:
            raise ValueError(f'the disassembler no longer says what it did: no {name} in {usage!r}')
        return int(found[1])

    return {
        'registers': resource('REG'),
        'stack': resource('STACK'),
        'stl': count(r'STL(\..*)?'),
        'ldl': count(r'LDL(\..*)?'),
        'ldg': count(r'LDG(STS)?(\..*)?'),  # LDGSTS: asynchronously to shared memory
        'ldg128': count(r'LDG(STS)?(\..*)?\.(128|256)(\..*)?'),  # .LTC128B, a hint to the cache, is no width
        'stg': count(r'STG(\..*)?'),
        'stg128': count(r'STG(\..*)?\.(128|256)(\..*)?'),
        'atomics': count(r'(ATOM|RED)[GS]?(\..*)?'),
        'mma': count(r'\w*MMA(\..*)?'),
    }


def main() -> None:
    """Says which variants there are, then compiles each that it is told, a line of JSON at a time."""
    replies, sys.stdout = sys.stdout, sys.stderr
    launches: dict[Variant, Launched] = {}
    for target in TARGETS:
        launches |= record(CASES, target)
    cases, targets = [*CASES], [*TARGETS]
    variants = sorted(launches, key=lambda each: (cases.index(each.case), targets.index(each.target)))
    print(json.dumps({'variants': variants, 'never': never_launched(launches)}), file=replies, flush=True)
    for line in sys.stdin:
        variant = Variant(*json.loads(line))
        try:
            row = measure(variant, launches[variant])
        except Exception as error:
            row = variant._asdict() | {'failed': f'does not compile: {type(error).__name__}: {error}'}
        print(json.dumps(row), file=replies, flush=True)


if __name__ == '__main__':
    main()
