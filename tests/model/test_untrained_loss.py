"""An untrained Pythia-410M on real text: the loss that its initialization must give, known without any weights."""

import json
import lzma
import math
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from rewarm.config.shapes import MODEL_SHAPES
from rewarm.model.pythia import Pythia, init_weights

DATA = Path(os.environ.get('REWARM_DATA', Path(__file__).parents[2] / '../shared/data')).resolve()
NUM_TOKENS = 1024
NUM_DRAWS = 16


def real_tokens():
    tokenizer_path, text_path = DATA / 'neox-20b-tokenizer.json.xz', DATA / 'real-records/lambada.jsonl'
    for path in (tokenizer_path, text_path):
        if not path.is_file():
            pytest.skip(f'{path} is absent (set REWARM_DATA to the folder that has it)')
    tokenizer = Tokenizer.from_str(lzma.open(tokenizer_path, 'rt', encoding='utf-8').read())
    ids = []
    with text_path.open(encoding='utf-8') as lines:
        for line in lines:
            ids += [*tokenizer.encode(json.loads(line)['text']).ids, 0]
            if len(ids) > NUM_TOKENS:
                return torch.tensor(ids[: NUM_TOKENS + 1])
    raise AssertionError('the records are too short')


@pytest.mark.slow
def test_untrained_410m_loss_on_real_text_is_11_03():
    """ln 50304 + 0.2 = 11.026: behind a LayerNorm, small_init gives logits of variance d * 2 / (5 d) = 0.4.

    That is the mean over initializations. One draw scatters by about 0.05 however much text it reads, since untrained
    hidden states share a direction (3/4 of their length) and a frequent token's row of the output matrix then moves the
    mean. So each distinct target counts once (a scatter of sqrt(0.4 / 400) = 0.03), over 16 relabelings of the vocabulary,
    each of them an equally likely output matrix: 0.03 / 4 = 0.008, and the band of 0.02 is 2.5 of those.
    """
    ids = real_tokens()
    shape = MODEL_SHAPES['pythia-410m']
    model = Pythia(shape, gelu='tanh')
    init_weights(model, seed=17)
    is_first = torch.tensor([target not in ids[1 : 1 + i] for i, target in enumerate(ids[1:])])
    with torch.no_grad():
        log_probs = (model.hidden(ids[None, :-1])[0] @ model.embed_out.weight.T).log_softmax(dim=-1)
    plain_loss = -log_probs.gather(1, ids[1:, None]).mean().item()
    log_probs, targets = log_probs[is_first], ids[1:][is_first]
    losses = []
    for draw in range(NUM_DRAWS):
        generator = torch.Generator().manual_seed(draw)
        relabeled = torch.randperm(shape.vocab_size, generator=generator)[targets] if draw else targets
        losses.append(-log_probs.gather(1, relabeled[:, None]).mean().item())
    print(f'{len(targets)} distinct targets: {sum(losses) / NUM_DRAWS:.4f}; this draw on every token: {plain_loss:.4f}')
    assert len(targets) > 400
    assert sum(losses) / NUM_DRAWS == pytest.approx(11.03, abs=0.02)
    assert plain_loss == pytest.approx(math.log(50304) + 0.2, abs=0.15)
