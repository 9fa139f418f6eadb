"""rrn.loss: every variant against its definition in float64, gradients against finite differences, and nonsense."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rrn.common.core import RRNError
from rrn.loss import (bilinear, MAPPING, probability_cross_entropy, REDUCTION, RESOLUTION, segmentation_loss, UPSAMPLE,
                      upsample_probability)


@pytest.fixture
def sentences():
    "Logits (3, 1, 4, 7) and masks (3, 32, 56)."
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(0, 3, (3, 1, 4, 7)), dtype=torch.float32), torch.tensor(rng.random((3, 32, 56)) < .3)


def definition(z, y): return -(y*torch.sigmoid(z).log() + (1 - y)*torch.sigmoid(-z).log())


def test_precision_of_probabilities_is_not_that_of_autocast():
    cells = torch.tensor([8., 8, -3, -3]).view(1, 1, 1, 4)
    for order in UPSAMPLE:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert upsample_probability(cells.bfloat16(), (1, 32), order).equal(upsample_probability(cells, (1, 32), order))
    with pytest.raises(RRNError, match="Did you mean 'logits'"): upsample_probability(cells, (1, 32), 'logit')


@pytest.mark.parametrize('mapping', MAPPING)
def test_gradient_of_an_upsampled_probability(mapping):
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(0, 8, (2, 1, 3, 5)), requires_grad=True)
    y = torch.tensor(rng.random((2, 1, 17, 23)) < .4).double()
    p = bilinear(z.sigmoid(), (17, 23), mapping)
    textbook = -(y*p.log() + (1 - y)*(1 - p).log())
    assert probability_cross_entropy(z, y, mapping).allclose(textbook, rtol=1e-6)
    assert torch.autograd.gradcheck(lambda z: probability_cross_entropy(z, y, mapping), z)
    whole = torch.ones(2, 1, 24, 40)
    double, single = (probability_cross_entropy(z.to(t), whole.to(t), mapping) for t in (torch.float64, torch.float32))
    assert single.double().allclose(double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mapping', MAPPING)
def test_every_variant_is_its_definition(sentences, mapping):
    logits, masks = sentences
    z, y = logits.double(), masks[:, None].double()
    by_logits = definition(bilinear(z, (32, 56), mapping), y)
    p = bilinear(z.sigmoid(), (32, 56), mapping)
    by_p = F.binary_cross_entropy(p, y, reduction='none')
    for order, pixels in (('logits', by_logits), ('probability', by_p)):
        loss = {r: segmentation_loss(logits, masks, 'image', order, r, mapping).item() for r in REDUCTION}
        assert loss == pytest.approx({'mean': pixels.mean().item(), 'sum': pixels.sum((1, 2, 3)).mean().item()}, rel=1e-5)


def test_at_the_resolution_of_the_map(sentences):
    logits, masks = sentences
    coarse = definition(logits.double(), masks[:, None].double()[..., ::8, ::8])
    for order in UPSAMPLE:
        assert segmentation_loss(logits, masks, 'feature', order).item() == pytest.approx(coarse.mean().item())


def test_foreground_and_background_are_weighed_apart(sentences):
    logits, masks = sentences
    for resolution in RESOLUTION:
        for order in UPSAMPLE:
            side = {w: segmentation_loss(logits, masks, resolution, order, 'sum', background_weight=w) for w in (0., 1/3, 1., 2.)}
            assert 0 < side[0.] < side[1/3] < side[1.] and side[1.].equal(segmentation_loss(logits, masks, resolution, order, 'sum'))
            for w in (1/3, 2.): torch.testing.assert_close(side[w], side[0.] + w*(side[1.] - side[0.]))
    p, y = bilinear(logits, (32, 56)).sigmoid()[:, 0], masks
    third = -torch.cat([p[y].log(), (1 - p[~y]).log()/3]).sum()/y.numel()
    torch.testing.assert_close(segmentation_loss(logits, masks, upsample='logits', background_weight=1/3), third)


def test_masks_may_be_soft(sentences):
    logits, masks = sentences
    assert segmentation_loss(logits, masks.float()).equal(segmentation_loss(logits, masks))


@pytest.mark.parametrize('order', UPSAMPLE)
def test_infinitely_sure_and_wrong(order):
    z = torch.tensor([1e30, -1e30]).view(2, 1, 1, 1).repeat(1, 1, 2, 3).requires_grad_()
    wrong = torch.zeros(2, 16, 24, dtype=torch.bool)
    wrong[1] = True
    segmentation_loss(z, wrong, upsample=order, reduction='sum').backward()
    assert z.grad.sum((1, 2, 3)).tolist() == pytest.approx([16*24/2, -16*24/2]), order


@pytest.mark.parametrize('bad, message', [
    (dict(masks=torch.zeros(2, 32, 56)), 'at least one sentence'),
    (dict(logits=torch.zeros(0, 1, 4, 7), masks=torch.zeros(0, 32, 56)), 'at least one sentence'),
    (dict(masks=torch.zeros(3, 30, 56), resolution='feature'), 'multiples of the stride'),
    (dict(reduction='none'), 'reduction='), (dict(resolution='pixel'), 'resolution=')])
def test_nonsense(sentences, bad, message):
    logits, masks = sentences
    with pytest.raises(RRNError, match=message): segmentation_loss(**(dict(logits=logits, masks=masks) | bad))
