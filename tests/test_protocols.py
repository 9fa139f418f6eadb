"""Evaluation protocols against the libraries that define the same, and against the released program's way."""
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torchmetrics.classification import BinaryJaccardIndex
from rrn.image import fit, mask_in, mask_out, released_prediction_back
from rrn.metrics import THRESHOLDS
from rrn.experiments.protocols import as_released, resized_mask, on_a_square, ceiling_map, PROTOCOLS, Scores

SIZES = [(90, 127), (48, 31), (64, 64), (200, 75), (33, 240)]


def cases(seed=0, side=64):
    "(p (64, 64) float64, placement, truth) of awkward sizes: blobs with noisy predictions, an empty and a full one."
    rng = np.random.default_rng(seed)
    for k, (h, w) in enumerate(SIZES * 3):
        yy, xx = np.mgrid[:h, :w]
        truth = ((yy / h - rng.uniform(.3, .7))**2 + (xx / w - rng.uniform(.3, .7))**2) < rng.uniform(.01, .15)
        if k == 3: truth = np.zeros((h, w), bool)
        if k == 4: truth = np.ones((h, w), bool)
        placement = fit(h, w, (side, side))
        p = torch.from_numpy(mask_in(truth, (side, side))).double() * .7 + torch.from_numpy(rng.uniform(-.5, .65, (side, side)))
        yield p.clamp(0, 1), placement, truth


@pytest.fixture(scope='module')
def table():
    scores = Scores()
    for case in cases(): scores.add(*case)
    return scores.table()


def encode(m): return coco.encode(np.asfortranarray(m.astype(np.uint8)))


@pytest.mark.parametrize('name', PROTOCOLS)
def test_every_protocol_against_torchmetrics_and_pycocotools(name, table):
    "Overall IoU is torchmetrics' Jaccard index over all pixels; mean IoU and precisions follow from pycocotools' IoU of each pair."
    jaccard, each = BinaryJaccardIndex(), []
    for case in cases():
        pred, target = PROTOCOLS[name].masks(*case)
        jaccard.update(torch.tensor(pred).int(), torch.tensor(target).int())
        each.append(coco.iou([encode(pred)], [encode(target)], [0])[0, 0])
    row, each = table.loc[name], np.array(each)
    assert row.overall_iou == pytest.approx(100 * jaccard.compute().item(), rel=1e-6) and row.mean_iou == pytest.approx(100 * each.mean())
    for t in THRESHOLDS: assert row[f'prec@{t}'] == pytest.approx(100 * ((each > t) if name == 'paper' else (each >= t)).mean()), t
    assert 20 < row.overall_iou < 95


def test_ciou_is_overall_iou(table):
    assert table.loc['ciou', 'overall_iou'] == table.loc['paper', 'overall_iou'] != table.loc['released', 'overall_iou']


def test_precision_at_the_border():
    "An IoU of exactly one half: the text does not count it, the program does."
    truth, p = np.zeros((64, 64), bool), torch.zeros(64, 64, dtype=torch.float64)
    truth[:, :32] = True; p[:, :16] = 1
    scores = Scores(); scores.add(p, fit(64, 64, (64, 64)), truth)
    found = scores.table()['prec@0.5']
    assert found['paper'] == 0 and found['ciou'] == found['released'] == 100


def test_released_is_the_programs():
    "The masks of `released` are those of `mask_out`, which is held against the program's arrays elsewhere; predictions grow."
    grew = 0
    for p, placement, truth in cases():
        pred, target = as_released(p, placement, truth)
        assert target is truth and np.array_equal(pred, mask_out(p - .5, placement, 'released', 1e-10))
        assert np.array_equal(pred, released_prediction_back((p > .5).numpy(), *truth.shape))
        grew += int(pred.sum()) - int(mask_out(p, placement).sum())
    assert grew > 0


@pytest.mark.parametrize('logit,found', [(0., False), (9e-10, False), (1.1e-9, True), (-1e-9, False)])
def test_the_threshold_of_the_program(logit, found):
    p = torch.full((8, 8), logit, dtype=torch.float64).sigmoid()
    assert as_released(p, fit(8, 8, (8, 8)), np.ones((8, 8), bool))[0].all() == found


@pytest.mark.parametrize('hw', SIZES)
def test_the_square_takes_the_nearest_pixel(hw):
    "Pixel i shows the one that its centre, (i + 1/2) n / 480, lies in; where it lies on a border, either side."
    mask = np.random.default_rng(1).random(hw) < .5
    (rows, clear), (columns, clear_too) = [((2 * np.arange(480) + 1) * n // 960, (2 * np.arange(480) + 1) * n % 960 != 0) for n in hw]
    got = resized_mask(mask, (480, 480))
    assert np.array_equal(got[clear][:, clear_too], mask[rows][:, columns][clear][:, clear_too]) and clear.mean() > .9
    assert resized_mask(mask, (31, 480)).shape == (31, 480)


def test_the_square_ignores_the_aspect_ratio():
    "Half of a tall picture is half of the square, and a prediction that is right is right there, too."
    truth = np.zeros((240, 60), bool); truth[:120] = True
    placement = fit(240, 60, (64, 64))
    p = torch.from_numpy(mask_in(truth, (64, 64))).double()
    pred, target = on_a_square(p, placement, truth)
    assert pred.shape == target.shape == (480, 480) and target.mean() == .5 and (pred == target).mean() > .99


@pytest.mark.parametrize('protocol', ['rrn', 'released'])
@pytest.mark.parametrize('mapping', ['half_pixel', 'tf'])
def test_ceilings(protocol, mapping):
    "Below 100, lower for coarser maps, and of the values that probabilities have."
    def ceiling(stride):
        scores = Scores()
        for _, placement, truth in cases():
            p = ceiling_map(truth, (64, 64), stride, protocol, mapping)
            assert p.shape == (64, 64) and p.dtype == torch.float64 and 0 <= p.min() <= p.max() <= 1
            scores.add(p, placement, truth)
        return scores.table().overall_iou
    fine, middle, coarse = ceiling(1), ceiling(8), ceiling(32)
    for name in ('paper', 'warp480', 'ciou'): assert 100 > fine[name] > middle[name] > coarse[name] > 0, name
