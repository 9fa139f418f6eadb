"""The naive network of nbs/index.ipynb and the library's: the same logits, masks, losses and gradients, at awkward sizes."""
import json
from pathlib import Path
import pytest
import torch
from rrn.common.core import RRNError, seed_everything
from rrn.evaluate import predictions
from rrn.experiments.benchmark import Bench, SIZES
from rrn.image import fit
from rrn.loss import segmentation_loss
from rrn.model import preset, RRN
from rrn.naive import naive_loss, naive_predict, naive_step, NaiveRRN

NOTEBOOK = Path(__file__).resolve().parents[1]/'nbs'/'index.ipynb'
WIDTHS = dict(backbone='small', image_size=72, embed_dim=13, D_I=11, D_S=9, D_Q=10)
VOCABULARY = 50


def two_networks(**options):
    "The library's network and the naive one with the same weights, none of which is at its start value."
    seed_everything(0)
    config = preset('paper', **WIDTHS, **options)
    library, naive = RRN(config, VOCABULARY).train(), NaiveRRN(config, VOCABULARY).train()
    with torch.no_grad():
        for w in library.head.parameters():
            w.add_(.1 * torch.randn_like(w))
    naive.load_state_dict(library.state_dict())
    return library, naive


def sentences(*lengths):
    "Sentences (S, 20) of so many words, padded on the left."
    return torch.randint(1, VOCABULARY, (len(lengths), 20)) * (torch.arange(20) >= 20 - torch.tensor(lengths)[:, None])


def apart(a, b):
    "The largest difference, relative to the largest value."
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()


TWO_PICTURES = [0, 0, 1, 1, 1], (3, 1, 20, 8, 2)
THREE_PICTURES = [0, 1, 1, 1, 1, 2, 2], (3, 1, 20, 8, 2, 15, 4)
ONE_OF_EACH = [0], (1,)
MIXED = [1, 0, 1, 0, 0], (2, 5, 1, 7, 3)              # not picture by picture


@pytest.mark.parametrize('options', [dict(), dict(kernel=3, score_kernel=1), dict(pyramid='C5,C5,C3,C4')], ids=str)
@pytest.mark.parametrize('height, width', [(40, 56), (65, 81)])
@pytest.mark.parametrize('image_of, lengths', [TWO_PICTURES, THREE_PICTURES, ONE_OF_EACH, MIXED])
def test_logits_loss_and_gradients(image_of, lengths, height, width, options):
    library, naive = two_networks(**options)
    image_of, words = torch.tensor(image_of), sentences(*lengths)
    images = torch.randint(0, 256, (int(image_of.max()) + 1, 3, height, width))
    masks = torch.rand(len(words), height, width) < .3
    fast, slow = library(images, words, image_of), naive(images[image_of], words)
    assert apart(fast, slow) < 1e-5
    together, alone = segmentation_loss(fast, masks), naive_loss(slow, masks)
    assert apart(together, alone) < 1e-5
    together.backward()
    alone.backward()
    grads = {n: apart(p.grad, q.grad) for (n, p), (_, q) in zip(library.named_parameters(), naive.named_parameters())
             if p.grad is not None}
    assert max(grads.values()) < 1e-5, max(grads, key=grads.get)
    assert len(grads) == sum(p.requires_grad for p in library.parameters())


def test_hidden_states():
    library, naive = two_networks()
    image_of, words = torch.tensor(TWO_PICTURES[0]), sentences(*TWO_PICTURES[1])
    maps = library.features(torch.randint(0, 256, (2, 3, 65, 81)))
    each = {level: m[image_of] for level, m in maps.items()}
    fast, slow = library.head.states(maps, words, image_of), naive.head.states(each, words)
    assert len(fast) == len(slow) == 4
    for h, wanted in zip(fast, slow):
        assert apart(h, wanted) < 1e-5


def test_masks_at_the_pictures_own_size():
    bench = Bench(preset('paper', **SIZES['small']), torch.device('cpu'), 2, 3, vocabulary_size=30)
    masks, batch = predictions(bench.model, bench.batch), bench.batch
    for i, mask in enumerate(masks):
        picture, where = batch.images[batch.image_of[i]][None], batch.placements[batch.image_of[i]]
        alone = naive_predict(bench.plain, picture, batch.words[i:i + 1], where)
        assert mask.shape == alone.shape == (where.height, where.width)
        assert (mask != alone).mean() < .001


def test_a_step_trains_all_but_the_cnn():
    naive = two_networks()[1]
    before = {n: t.clone() for n, t in naive.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in naive.parameters() if p.requires_grad], 1e-3)
    images, words = torch.randint(0, 256, (1, 3, 40, 56)), sentences(4)
    losses = [naive_step(naive, optimiser, images, words, torch.rand(1, 40, 56) < .3) for _ in range(2)]
    assert losses[1] < losses[0]
    for name, now in naive.state_dict().items():
        assert now.equal(before[name]) == name.startswith('backbone.'), name


@pytest.mark.parametrize('other', [dict(update='rnn'), dict(start='zero'), dict(normalise='gates'), dict(peepholes=True)],
                         ids=str)
def test_it_is_the_papers_model_alone(other):
    with pytest.raises(RRNError, match='preset=paper'):
        NaiveRRN(preset('paper', **WIDTHS, **other), 50)


def test_the_programs_model_is_another():
    with pytest.raises(RRNError, match='preset=paper'):
        NaiveRRN(preset('released'), 50)


def test_the_notebook_is_committed_with_its_outputs():
    "At least ten pictures and nothing from this machine, in a file that a browser opens quickly."
    text = NOTEBOOK.read_text()
    outputs = [o for c in json.loads(text)['cells'] for o in c.get('outputs', [])]
    assert sum('image/png' in o.get('data', {}) for o in outputs) >= 10
    assert not [o for o in outputs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert len(text) < 1_500_000
