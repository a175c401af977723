"""Loss and gradients of ours against Hugging Face's in fp32, at full size, on the same batch and weights.

Weights are numbers of bf16, so that all models start from the same. The yardstick of ours in bf16 is Hugging Face in
bf16: each gradient's error at most twice its error, plus the floor of the kernels' tests. The yardstick of our kernels
in fp32 is our plain PyTorch in fp32, likewise. Error: largest difference over largest value. And a second pass of ours
in bf16 has to give the same bits as the first.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace

import torch
from bench_cases import Sizes
from bench_measure import Records, arguments, begin, free, relative_error
from torch import Tensor

from scripts.gpu.models import Trainee, hugging_face, our_model, set_weights, sizes_of, tokens

__all__ = ['main']

SEQUENCES = 2
FLOOR = {torch.bfloat16: 1e-3, torch.float32: 1e-6}
OURS = (
    # name, kernels, dtype, yardstick
    ('torch fp32', 'torch', torch.float32, None),
    ('triton fp32', 'triton', torch.float32, 'torch fp32'),
    ('torch bf16', 'torch', torch.bfloat16, 'hf bf16'),
    ('triton bf16', 'triton', torch.bfloat16, 'hf bf16'),
)


def main() -> int:
    """Compares all of them; returns whether one is off."""
    options = arguments(__doc__).parse_args()
    records, device = begin('parity', options)
    if options.dry:
        from tests.kernels.interpreter import correct

        correct()
    sizes = sizes_of(options.dry)
    with records.attempt('gradients'):
        import transformers  # noqa: F401 - a missing package is said before anything is built

        _compare(records, sizes, device)
    return records.failed


def _compare(records: Records, sizes: Sizes, device: torch.device) -> None:
    sizes = replace(sizes, batch=SEQUENCES)
    ids, labels = tokens(sizes, sizes.batch, device)
    reference = hugging_face(sizes, device, torch.float32)
    set_weights(reference.model)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.copy_(parameter.bfloat16())
    weights = {name: value.clone() for name, value in reference.model.state_dict().items()}
    truth = _gradients(reference, ids, labels)
    errors: dict[str, dict[str, float]] = {}

    def against_truth(name: str, trainee: Trainee) -> dict[str, Tensor]:
        trainee.model.load_state_dict(weights)
        found = _gradients(trainee, ids, labels)
        errors[name] = {key: relative_error(found[key], true) for key, true in truth.items()}
        return found

    reference = None
    with records.attempt('gradients', 'hf bf16'):
        against_truth('hf bf16', hugging_face(sizes, device, torch.bfloat16))
        records.add('gradients', 'hf bf16', **_summary(errors['hf bf16']))
    for name, kernels, dtype, yardstick in OURS:
        with records.attempt('gradients', name):
            records.need(2)
            trainee = our_model(kernels, sizes, device, dtype)
            found = against_truth(name, trainee)
            values = _summary(errors[name])
            if yardstick is not None:
                values |= _judged(errors[name], errors[yardstick], FLOOR[dtype])
            records.add('gradients', name, **values, computed_by=trainee.description)
            if name == 'triton bf16':
                again = _gradients(trainee, ids, labels)
                equal = [torch.equal(found[key], again[key]) for key in found]
                records.add('bit equal', name, ok=all(equal), tensors=len(equal), equal=sum(equal))
                del again
            del trainee, found
        free()


def _gradients(trainee: Trainee, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The loss and the gradient of each parameter, under the names that checkpoints have."""
    loss = trainee.loss(ids, labels)
    loss.backward()
    found = {'loss': loss.detach()}
    for name, parameter in trainee.model.named_parameters():
        assert parameter.grad is not None, name
        found[name.replace('lm_head', 'embed_out')] = parameter.grad
        parameter.grad = None
    return found


def _summary(errors: Mapping[str, float]) -> dict[str, object]:
    gradients = {key: error for key, error in errors.items() if key != 'loss'}
    worst = max(gradients, key=lambda key: gradients[key])
    return {'error_loss': errors['loss'], 'error_grads': gradients[worst], 'worst_grad': worst}


def _judged(ours: Mapping[str, float], yardstick: Mapping[str, float], floor: float) -> dict[str, object]:
    """The largest share of its bound that an error reaches: above 1 it is off."""
    shares = {key: error / (2 * yardstick[key] + floor) for key, error in ours.items()}
    worst = max(shares, key=lambda key: shares[key])
    return {'share_of_bound': shares[worst], 'nearest_bound': worst, 'ok': shares[worst] <= 1}


if __name__ == '__main__':
    sys.exit(main())
