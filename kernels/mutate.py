"""Breaks each term of each kernel's gradient, one at a time, and shows that a test fails for it.

    python kernels/mutate.py                     all mutations
    python kernels/mutate.py adamw rotary        those with one of these in their name

A mutation replaces a text in a copy of rewarm_kernels by a wrong one (a flipped sign, a missing term) and runs the few
tests that should see it. It is an error if they pass: then a wrong gradient would, too. It is an error if they fail for
another reason than a comparison, if the text is no longer there, and if the tests fail without any mutation.

To add one: an entry in MUTATIONS, of a text that is in its file once. Choose the smallest tests that see it.
"""

import argparse
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

__all__ = ['MUTATIONS', 'Mutation', 'attempt', 'main']

ROOT = Path(__file__).parents[1]
COPIED = 'pyproject.toml', 'kernels/rewarm_kernels', 'tests/conftest.py', 'tests/proofs.py', 'tests/kernels'


@dataclass(frozen=True)
class Mutation:
    """A wrong formula.

    Args:
        file (str): Of rewarm_kernels.
        right (str): Text that is in it once.
        wrong (str): What replaces it.
        test (str): The smallest that should see it: file of tests/kernels, name and parameters, as pytest names it.
    """

    file: str
    right: str
    wrong: str
    test: str


def _in(file: str, test: str, formulas: dict[str, tuple[str, str]]) -> dict[str, Mutation]:
    name = file.removesuffix('.py')
    return {f'{name}: {what}': Mutation(file, right, wrong, test) for what, (right, wrong) in formulas.items()}


MUTATIONS = {
    # dx = rstd * (g - mean(g) - normed * mean(g * normed)) + dtotal,  g = dy_1 * weight_1 + dy_2 * weight_2
    **_in(
        'add_dual_layer_norm.py',
        'test_add_dual_layer_norm.py::test_outputs_and_gradients[shape2-attn mlp dual-dtype0]',
        {
            'dx without mean(g)': ('(g - mean_g - normed', '(g - normed'),
            'projection of dx flipped': ('mean_g - normed *', 'mean_g + normed *'),
            'dx without rstd': ('mean_g_normed) * rstd', 'mean_g_normed)'),
            'dx without the residual': ('dx += tl.load(dtotal_ptr', 'dx += 0.0 * tl.load(dtotal_ptr'),
            'g without weight_1': ('g = dy * weight_1', 'g = dy'),
            'g without the second norm': ('g += dy * weight_2', 'g += 0.0 * dy'),
            'dweight_1 of what is not normalized': ('dweight_1 += dy * normed', 'dweight_1 += dy'),
            'dweight_2 flipped': ('dweight_2 += dy', 'dweight_2 -= dy'),
            'no dbias_1': ('dbias_1 += dy', 'dbias_1 += 0.0 * dy'),
            'no dbias_2': ('dbias_2 += dy', 'dbias_2 += 0.0 * dy'),
            'bias of the branches flipped': ('dbranch_bias += dx', 'dbranch_bias -= dx'),
            'no gradient of the bias of the MLP': ('mlp[0], attn[1], mlp[1]', 'mlp[0], attn[1], None'),
        },
    ),
    # Sums over rows are of what is not rounded yet; norms are of what is.
    **_in(
        'add_dual_layer_norm.py',
        'test_add_dual_layer_norm.py::test_gradients_of_parameters_are_summed_before_that_of_x_is_rounded',
        {
            'bias of the branches of rounded dx': (
                'dbranch_bias += dx',
                'dbranch_bias += dx.to(tl.bfloat16).to(tl.float32)',
            )
        },
    ),
    **_in(
        'add_dual_layer_norm.py',
        'test_add_dual_layer_norm.py::test_the_norms_are_of_the_sum_that_is_returned',
        {'norms of a sum that is not rounded': ('total = rounded.to(tl.float32)', 'total = total')},
    ),
    **_in(
        'bias_gelu.py',
        'test_bias_gelu.py::test_the_gradient_of_the_bias_is_summed_before_that_of_h_is_rounded[none]',
        {'dbias of rounded dh': ('total += dh', 'total += dh.to(tl.bfloat16).to(tl.float32)')},
    ),
    **_in(
        'rotary.py',
        'test_rotary.py::test_the_gradient_of_the_bias_is_summed_before_the_others_are_rounded',
        {'bias of rounded dq': ('q_sum += q', 'q_sum += q.to(tl.bfloat16).to(tl.float32)')},
    ),
    **_in(
        'linear_cross_entropy.py',
        'test_linear_cross_entropy.py::TestBoth::test_the_sum_of_losses_has_more_digits_than_fp32',
        {
            'losses summed in fp32': (
                'losses.sum(dtype=torch.float64), grad_hidden',
                'losses.sum().double(), grad_hidden',
            )
        },
    ),
    # dh = dg (Phi(x) + x phi(x)),  dbias = sum of dh
    **_in(
        'bias_gelu.py',
        'test_bias_gelu.py::test_values_and_both_gradients[shape1-none-dtype0]',
        {
            'slope of erf without x phi(x)': ('cdf + x * pdf', 'cdf'),
            'backward without the bias': ('+ bias[None, :]\n        dg', '+ 0.0 * bias[None, :]\n        dg'),
            'dbias of dg': ('total += dh', 'total += dg'),
        },
    ),
    **_in(
        'bias_gelu.py',
        'test_bias_gelu.py::test_values_and_both_gradients[shape1-tanh-dtype0]',
        {
            'slope of tanh without 1 - cdf': ('cdf * (1.0 - cdf) * (', 'cdf * ('),
            'slope of tanh without its cubic term': (' + 0.2140644488 * square', ''),
        },
    ),
    **_in(
        'bias_gelu.py',
        'test_bias_gelu.py::test_values_and_both_gradients[shape2-none-dtype0]',
        {'dbias of the last step alone': ('total += dh', 'total = dh')},
    ),
    **_in(
        'bias_gelu.py',
        'test_bias_gelu.py::test_recomputed_and_in_place_give_the_same_bits[none]',
        {
            'g again is twice itself': (
                '+ at, g.to(g_ptr.dtype.element_ty), mask=inside)\n\n    tl',
                '+ at, (2.0 * g).to(g_ptr.dtype.element_ty), mask=inside)\n\n    tl',
            )
        },
    ),
    # dg = dout W_out,  dy = dh W_in,  dW_in = dh' y,  dW_out = dout' g
    **_in(
        'mlp.py',
        'test_mlp.py::test_values_and_all_gradients[shape1-40-24-none-dtype0]',
        {
            'dg flipped': ('dg = dout @', 'dg = -dout @'),
            'dy flipped': ('return dh @', 'return -dh @'),
            'dW_in flipped': ('mm_fp32(dh.t(), y)', 'mm_fp32(-dh.t(), y)'),
            'dW_out of h': ('again if g is None else g)', 'h if g is None else g)'),
        },
    ),
    **_in(
        'linear.py',
        'test_linear.py::test_values_and_both_gradients[shape1-5-dtype0]',
        {
            'dx flipped': ('return dy @', 'return -dy @'),
            'dW flipped': ('mm_fp32(dy.t(), x)', 'mm_fp32(-dy.t(), x)'),
        },
    ),
    # dlogits = (1 + 2 z_loss lse) softmax - onehot in rows that count;  dhidden = dlogits W,  dW = dlogits' hidden
    **_in(
        'linear_cross_entropy.py',
        'test_linear_cross_entropy.py::test_loss_and_both_gradients[40-48-401-0.2-0.01-dtype0]',
        {
            'no one-hot': ('tl.where(at == label, 1.0, 0.0)', '0.0'),
            'no slope of the z-loss': ('(1.0 + 2.0 * z_loss * lse) / total', '1.0 / total'),
            'half the slope of the z-loss': ('2.0 * z_loss * lse) / total', 'z_loss * lse) / total'),
            'softmax not divided': ('* lse) / total', '* lse)'),
            'rows that do not count have a gradient': ('tl.where(counts, grad, 0.0)', 'grad'),
            'rows that do not count have a loss': ('tl.where(counts, loss, 0.0)', 'loss'),
            'chunks not added': ('if wants_weight and start:', 'if wants_weight and start < 0:'),
            'not scaled by what comes from above': ('torch.mul(grad, scale,', 'torch.mul(grad, scale * 0 + 1,'),
        },
    ),
    # The definition makes its own gradients, too.
    **_in(
        'linear_cross_entropy.py',
        'test_linear_cross_entropy.py::test_definition_equals_autograd_of_the_formula[700-24-13001-0.2-0.01-dtype0]',
        {
            'definition: no one-hot': ('log_prob.exp() * slope - 1.0', 'log_prob.exp() * slope'),
            'definition: no slope of the z-loss': ('slope = 1.0 + 2.0 * z_loss * lse', 'slope = 1.0 + 0.0 * lse'),
            'definition: chunks not added': (
                '_add_product_(grad_weight, grad_logits.T',
                '_add_product_(grad_weight.zero_(), grad_logits.T',
            ),
        },
    ),
    # out = R(t) x;  dx = R(-t) dout,  dbias = sum of dx
    **_in(
        'rotary.py',
        'test_rotary.py::test_in_place_it_is_the_same_and_touches_nothing_else[case1-dtype0]',
        {
            'in place, low half turned back': ('low * cos - high * sin', 'low * cos + high * sin'),
            'in place, high half turned back': ('high * cos + low * sin', 'high * cos - low * sin'),
        },
    ),
    **_in(
        'rotary.py',
        'test_rotary.py::test_output_and_gradient[case1-dtype0]',
        {
            'backward not turned back': ('not ctx.is_inverse', 'ctx.is_inverse'),
            'way back of the low half flipped': ('tl.where(is_low, sin, -sin)', 'tl.where(is_low, -sin, -sin)'),
            'way back of the high half flipped': ('tl.where(is_low, sin, -sin)', 'tl.where(is_low, sin, sin)'),
            'half as its own partner': ('partner = tl.where(is_low, at + R, at - R)', 'partner = at'),
            'k of the partner of q': ('k * cos + k_partner', 'k * cos + q_partner'),
        },
    ),
    **_in(
        'rotary.py',
        'test_rotary.py::test_packed_gradient_and_gradient_of_the_bias[case0-dtype0]',
        {
            'not turned back when packed': ('is_inverse=True, has_sums=True', 'is_inverse=False, has_sums=True'),
            'bias of q of the last step alone': ('q_sum += q', 'q_sum = q'),
            'no bias of k': ('k_sum += k', 'k_sum += 0.0 * k'),
            'bias of v flipped': ('v_sum += v.to', 'v_sum -= v.to'),
            'biases of k and v exchanged': ('partial + K, tl.sum(k_sum', 'partial + K, tl.sum(v_sum'),
        },
    ),
    # dv = P' dout,  dS = P (dout v' - rowsum(dout out)),  dq = dS k / sqrt(K),  dk = dS' q / sqrt(K)
    **_in(
        'attention.py',
        'test_attention.py::test_backends_against_the_definition[math-shape1-dtype0]',
        {
            'dS without the row sum': ('.sub_((dout_h * out_h).sum(dim=-1, keepdim=True))', ''),
            'dq without its scale': ('k_h * scale)', 'k_h)'),
            'dk not transposed': ('dscores.mT @ q_h', 'dscores @ q_h'),
            'dv not transposed': ('weights.mT @ dout_h', 'weights @ dout_h'),
            'gradients of k and v exchanged': (
                'return *_attention_backward(dout, q, k, v, out, lse, ctx.backend, bounds)',
                'return *(_attention_backward(dout, q, k, v, out, lse, ctx.backend, bounds)[i] for i in (0, 2, 1))',
            ),
        },
    ),
    # dy = dqkv W,  dW = dqkv' y,  db = sum of dqkv;  dqkv rotated back and packed
    **_in(
        'qkv_attention.py',
        'test_qkv_attention.py::test_values_and_all_gradients[0-shape0-dtype0]',
        {
            'dy flipped': ('return (dqkv @', 'return (-dqkv @'),
            'dW flipped': ('mm_fp32(dqkv.t(), y', 'mm_fp32(-dqkv.t(), y'),
            'no db': ('y.flatten(0, 1)), dbias', 'y.flatten(0, 1)), 0.0 * dbias'),
            'dqkv not rotated back': ('dv.transpose(1, 2), cos, sin)', 'dv.transpose(1, 2), cos, -sin)'),
            'gradients of q and k exchanged': (
                'pack_qkv_grad(dq.transpose(1, 2), dk.transpose(1, 2)',
                'pack_qkv_grad(dk.transpose(1, 2), dq.transpose(1, 2)',
            ),
        },
    ),
    **_in(
        'matmul.py',
        'test_linear.py::test_the_gradient_of_the_weight_is_not_rounded_to_bf16',
        {'fp32 product rounded to bf16': ('a.float() @ b.float()', '(a @ b).float()')},
    ),
    # m' = m + (1 - beta1) (g - m),  v' = beta2 v + (1 - beta2) g^2,  p' = decay p - step_size m' / (sqrt(v') / c + eps)
    **_in(
        'adamw.py',
        'test_adamw.py::test_steps_are_those_of_torch[adamw_-sizes1-0.5]',
        {
            'weight decay grows': ('decay=1.0 - lr * weight_decay', 'decay=1.0 + lr * weight_decay'),
            'no weight decay': ('decay * param - step_size', 'param - step_size'),
            'step uphill': ('decay * param - step_size', 'decay * param + step_size'),
            'no correction of the first moment': ('step_size=lr / (1.0 - beta_1**step)', 'step_size=lr'),
            'no correction of the second moment': ('correction_2=math.sqrt(1.0 - beta_2**step)', 'correction_2=1.0'),
            'twice eps': ('/ correction_2 + eps))\n', '/ correction_2 + 2.0 * eps))\n'),
            'eps not corrected last': (
                'tl.sqrt(exp_avg_sq) / correction_2 + eps',
                '(tl.sqrt(exp_avg_sq) + eps) / correction_2',
            ),
            'first moment without its decay': ('weight_1 * (grad - exp_avg)', 'weight_1 * grad'),
            'second moment without its decay': ('exp_avg_sq = beta_2 * exp_avg_sq', 'exp_avg_sq = exp_avg_sq'),
            'second moment of the first power': ('weight_2 * grad * grad', 'weight_2 * tl.abs(grad)'),
        },
    ),
    **_in(
        'adamw.py',
        'test_adamw.py::test_steps_are_those_of_torch[adamw_-sizes0-0.5]',
        {
            'not clipped': ('grad *= tl.where(clip > 1.0, 1.0, clip)', 'grad *= 1.0'),
            'clipping scales up': ('grad *= tl.where(clip > 1.0, 1.0, clip)', 'grad *= clip'),
            'clipping by the squared norm': (
                'tl.sqrt(tl.load(grad_squared_norm_ptr))',
                'tl.load(grad_squared_norm_ptr)',
            ),
        },
    ),
    **_in(
        'adamw.py',
        'test_adamw.py::test_steps_are_those_of_torch[adamw_-sizes1-0.0001]',
        {
            'clipping without its eps': ('clip_eps=CLIP_EPS', 'clip_eps=0.0'),
        },
    ),
    **_in(
        'adamw.py',
        'test_adamw.py::test_squared_norm[squared_norm-200003]',
        {'norm of the last block alone': ('total += x * x', 'total = x * x')},
    ),
}


def attempt(mutation: Mutation | None, tests: list[str]) -> tuple[int, str]:
    """Runs tests in this process on a copy of the package, mutated or not; a process can do this once.

    Args:
        mutation (Mutation | None): What to break.
        tests (list[str]): Named as in :class:`Mutation`.

    Returns:
        tuple[int, str]: Exit status of pytest, and what it printed.

    Raises:
        ValueError: If the text of the mutation is not in its file once.
    """
    import pytest

    os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'  # a second each, and these tests need none
    os.environ['COLUMNS'] = '1000'  # or pytest cuts off why a test failed
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(output), redirect_stderr(output):
        _copy(Path(folder))
        if mutation is not None:
            path = Path(folder) / 'kernels' / 'rewarm_kernels' / mutation.file
            source = path.read_text()
            if source.count(mutation.right) != 1:
                raise ValueError(f'{path.name} has {source.count(mutation.right)} times {mutation.right!r}, not once')
            path.write_text(source.replace(mutation.right, mutation.wrong))
        os.chdir(folder)
        nodes = [f'tests/kernels/{test}' for test in tests]
        status = int(pytest.main(['-x', '-q', '--no-header', '--tb=line', '-p', 'no:cacheprovider', *nodes]))
        used = str(sys.modules['rewarm_kernels'].__file__)
        os.chdir(ROOT)
    if not used.startswith(folder):
        raise RuntimeError(f'the tests ran on {used}, not on the copy')
    return status, output.getvalue()


def _copy(folder: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, target)


def _verdict_as_it_is(status: int, output: str) -> tuple[bool, str]:
    """Whether the tests pass without a mutation."""
    return status == 0, 'its tests pass' if status == 0 else f'its tests fail without a mutation:\n{output}'


def _verdict(status: int, output: str) -> tuple[bool, str]:
    """Whether a test saw the mutation, and how."""
    if status == 0:
        return False, 'SURVIVES: its test passes'
    failure = re.search(r'^FAILED .+?::(.+?) - (\w+(:| ).*)$', output, re.MULTILINE)
    if status != 1 or not failure:
        return False, f'its test does not run:\n{output}'
    test, reason, _ = failure.groups()
    if not reason.startswith(('AssertionError', 'assert ', 'Failed: DID NOT RAISE')):
        return False, f'{test} dies of something else: {reason}'
    return True, f'seen by {test}: {reason}'


def main(arguments: list[str] | None = None) -> int:
    """Applies the mutations; returns the exit status: 1 if one survives or cannot be judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='part of the name of a mutation; default: all')
    parser.add_argument(
        '--jobs', type=int, default=len(os.sched_getaffinity(0)), help='processes (default: a core each)'
    )
    options = parser.parse_args(arguments)
    chosen = {
        name: mutation
        for name, mutation in MUTATIONS.items()
        if not options.names or any(part in name for part in options.names)
    }
    if not chosen:
        raise SystemExit(f'no mutation has one of these in its name: {", ".join(options.names)}')

    os.environ |= {'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''}
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    context = multiprocessing.get_context('forkserver')  # a fresh process each, without four seconds of imports
    context.set_forkserver_preload(['torch', 'torch._dynamo', 'triton', 'pytest'])
    failures = 0
    with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        tasks = {pool.submit(attempt, mutation, [mutation.test]): name for name, mutation in chosen.items()}
        for file in sorted({mutation.test.split('::')[0] for mutation in chosen.values()}):
            tests = sorted({mutation.test for mutation in chosen.values() if mutation.test.startswith(file)})
            tasks[pool.submit(attempt, None, tests)] = f'{file} as it is'
        for number, task in enumerate(as_completed(tasks), 1):
            name = tasks[task]
            try:
                good, text = (_verdict if name in chosen else _verdict_as_it_is)(*task.result())
            except Exception as error:
                good, text = False, f'{type(error).__name__}: {error}'
            failures += not good
            print(f'[{number:2} of {len(tasks)}] {"" if good else "FAILS: "}{name}: {text}', flush=True)
    print(f'{len(chosen)} mutations: {"all seen" if not failures else f"{failures} failures"}.')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
