"""What the GPU command compares, and how it sorts and counts: on a CPU, at toy sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_cases import CASES, FULL, TINY

from scripts.gpu.breakdown import breakdown, kind_of
from scripts.gpu.models import build, flops_per_token, optimizer_for, our_model, set_weights, tokens, train
from scripts.gpu.step import PEAK_FLOPS, speeds

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
KERNELS = {
    'gemm': [
        'nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT',
        'sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas',
        'void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(cutlass_80::Params)',
        'void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true, false, false>',
    ],
    'attention': [
        'cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3x64x128x128_4x1x1_kernel0_0',
        'void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd_kernel_traits<64>>',
        'fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)',
    ],
    'loss': [
        '_cross_entropy_kernel',
        'void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, true, false>',
        'void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>',
        'triton_red_fused__log_softmax_nll_loss_forward_3',
    ],
    'optimizer': [
        'void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, FusedAdamMathFunctor>',
        'void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float, 1>>',
        '_adamw_kernel',
        '_squared_norm_kernel',
    ],
    'elementwise': [
        '_add_dual_layer_norm_forward_kernel',
        '_add_dual_layer_norm_backward_kernel',
        '_bias_gelu_backward_kernel',
        '_rotate_kernel',
        'triton_poi_fused_add_gelu_native_layer_norm_1',
        'void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>',
        'void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t<float>>>',
        'void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2u>, unsigned int, 4, 64, 64>',
        'void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16, float, 64u>',
        'Memcpy DtoD (Device -> Device)',
        'Memset (Device)',
    ],
}


@pytest.mark.parametrize(('kind', 'names'), KERNELS.items())
def test_kernels_are_sorted(kind, names):
    assert {name: kind_of(name) for name in names} == dict.fromkeys(names, kind)


def test_every_kernel_of_ours_has_a_kind():
    files = (ROOT / 'kernels/rewarm_kernels').glob('*.py')
    ours = {name for file in files for name in re.findall(r'^def (_\w+_kernel)\(', file.read_text(), re.MULTILINE)}
    assert len(ours) >= 8
    assert {name for name in ours if kind_of(name) == 'other'} == set()


def test_gaps_are_times_without_a_kernel_also_where_kernels_overlap():
    spans = [
        ('nvjet', 0.0, 1000.0),
        ('nvjet', 500.0, 1500.0),
        ('_adamw_kernel', 1400.0, 1450.0),
        ('weird', 2500.0, 3000.0),
    ]
    parts, longest = breakdown(spans)
    assert parts['ms_gemm'] == 2.0
    assert parts['ms_optimizer'] == pytest.approx(0.05)
    assert parts['ms_other'] == 0.5
    assert parts['ms_gap'] == 1.0
    assert parts['launches'] == 4
    assert longest[0] == '2.00 nvjet'


def test_flops_of_pythia_410m_by_three_conventions():
    flops = flops_per_token(FULL)
    assert {name: round(value / 1e9, 3) for name, value in flops.items()} == {
        'causal': 2.423,
        'palm': 2.725,
        'foundry': 3.036,
    }
    assert sum(torch.Size(shape).numel() for shape in FULL.parameters) == 405_334_016
    speed = speeds([0.3, 0.25, 0.35], FULL)
    assert speed['tokens_per_second'] == 65_536 / 0.3
    assert speed['mfu_causal'] == pytest.approx(100 * 65_536 / 0.3 * flops['causal'] / PEAK_FLOPS)


def test_tokens_follow_a_chain_and_labels_are_the_next():
    ids, labels = tokens(TINY, 3, CPU)
    assert ids.shape == labels.shape == (3, TINY.tokens)
    assert torch.equal(labels[:, :-1], ids[:, 1:])
    assert labels[:, -1].tolist() == [-100] * 3
    assert torch.equal(ids, tokens(TINY, 3, CPU)[0])
    assert not torch.equal(ids, tokens(TINY, 3, CPU, seed=1)[0])


def test_microbatches_give_the_loss_and_the_weights_of_the_whole_batch():
    ids, labels = tokens(TINY, 4, CPU)
    results = []
    for microbatch in (4, 1):
        trainee = our_model('torch', TINY, CPU, torch.float32)
        set_weights(trainee.model)
        losses = [train(trainee, optimizer_for(trainee.model), ids, labels, microbatch) for _ in range(2)]
        results.append((torch.stack(losses), trainee.model.embed_out.weight.detach()))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)
    assert results[0][0][1] < results[0][0][0]


@pytest.mark.slow
def test_all_models_start_at_the_same_loss():
    ids, labels = tokens(TINY, 2, CPU)
    ways = ('torch', 'triton', 'torch-compiled', 'hf', 'hf-amp', 'hf-compiled-layers')
    losses = {way: build(way, TINY, CPU).loss(ids, labels).item() for way in ways}
    # Uniform over the vocabulary, nearly; parameters are drawn in another order and dtype in Hugging Face's.
    for way, loss in losses.items():
        assert loss == pytest.approx(torch.tensor(float(TINY.vocabulary)).log().item(), abs=0.1), way
    assert losses['torch'] == pytest.approx(losses['triton'], abs=1e-3)


def test_every_case_has_ours_and_the_definition_and_knows_its_work():
    for name, make in CASES.items():
        case = make(FULL, torch.device('meta'))
        assert {'ours', 'torch'} <= case.ways.keys(), name
        assert case.moved or case.flops, name
    hidden = FULL.rows * FULL.width * 2
    assert CASES['add_dual_layer_norm'](FULL, torch.device('meta')).moved == {
        'forward': 6 * hidden,
        'backward': 5 * hidden,
    }


def test_models_need_neither_pydantic_nor_composer():
    absent = ('pydantic', 'composer', 'streaming', 'ruamel', 'transformers', 'torchmetrics')
    text = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import torch
from bench_cases import TINY
from scripts.gpu import curve, facts, parity, resume, step, tests, trainer
from scripts.gpu.models import our_model
our_model('torch', TINY, torch.device('cpu'), torch.float32)
"""
    environment = {'PYTHONPATH': f'{ROOT}:{ROOT / "kernels"}', 'PATH': '/usr/bin', 'HOME': '/nonexistent'}
    done = subprocess.run([sys.executable, '-c', text], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
