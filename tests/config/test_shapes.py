import pytest

from rewarm.config.shapes import MODEL_SHAPES, count_parameters, flops_per_token


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [  # Pythia's README and model cards
        ('pythia-14m', 14_067_712),
        ('pythia-70m', 70_426_624),
        ('pythia-160m', 162_322_944),
        ('pythia-410m', 405_334_016),
        ('pythia-1b', 1_011_781_632),
        ('pythia-1.4b', 1_414_647_808),
    ],
)
def test_parameters_of_pythia(name, parameters):
    assert count_parameters(MODEL_SHAPES[name]) == parameters


def test_flops_of_a_token_by_hand():
    shape = MODEL_SHAPES['pythia-410m']
    dense = 405_334_016 - 50_304 * 1024
    assert flops_per_token(shape, 2048) == 6 * dense + 12 * 24 * 1024 * 2048
    assert flops_per_token(shape, 2048, 'causal') == 6 * dense + 6 * 24 * 1024 * 2048
