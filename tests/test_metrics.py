"Metrics against the released program, torchmetrics and pycocotools; intervals against theory; the loss against the program."
import itertools
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torchmetrics.classification import BinaryJaccardIndex
from rrn.common.core import repo_root, RRNError
from rrn.loss import segmentation_loss, upsample_probability
from rrn.metrics import (bootstrap_interval, intersection_union, METRICS, paired_bootstrap, sample_iou, score,
                         SegmentationMetrics)

REFERENCE = repo_root().parent/'shared'/'reference'


def masks(seed=0, n=19, size=(31, 47)):
    "Pairs of masks of very different overlap, among them empty, full, equal and disjoint ones."
    rng = np.random.default_rng(seed)
    pred, target = rng.random((2, n, *size)) < rng.random((2, n, 1, 1))
    pred[0] = target[0] = False
    pred[1], pred[2], target[2] = False, True, True
    target[3] = ~pred[3]
    pred[4:8] = target[4:8] ^ (rng.random((4, *size)) < .05)
    return pred, target


def counted(pred, target):
    new = SegmentationMetrics(); new.update(pred, target)
    return new


def test_counts_of_the_released_program():
    "Twelve pairs through its compute_mask_IU, hard and soft predictions, empty ones included (every non-zero pixel counts)."
    vectors = np.load(Path(__file__).parent/'vectors'/'iou.npz')
    i, u = intersection_union(vectors['pred'] != 0, vectors['mask'])
    assert np.array_equal(np.stack([i, u], 1), vectors['IU'])
    assert (u == 0).any(), 'the pair of empty masks is among them'


def test_overall_iou_is_torchmetrics_jaccard_index():
    pred, target = masks()
    theirs = BinaryJaccardIndex()
    for p, t in zip(pred, target): theirs.update(torch.tensor(p).int(), torch.tensor(t).int())
    assert counted(pred, target).compute()['overall_iou'] == pytest.approx(100*theirs.compute().item(), rel=1e-6)


def test_mean_iou_and_precision_are_pycocotools():
    pred, target = masks()
    encode = lambda m: coco.encode(np.asfortranarray(m.astype(np.uint8)))
    theirs = np.array([coco.iou([encode(p)], [encode(t)], [0])[0, 0] for p, t in zip(pred, target)])
    assert theirs[0] == 0, 'two empty masks count 0 there, too'
    assert sample_iou(*intersection_union(pred, target)) == pytest.approx(theirs)
    got = counted(pred, target).compute()
    assert got['mean_iou'] == pytest.approx(100*theirs.mean())
    for t in (0.5, 0.6, 0.7, 0.8, 0.9): assert got[f'prec@{t}'] == pytest.approx(100*(theirs >= t).mean())


@pytest.mark.parametrize('seed', range(5))
def test_order_and_splitting_do_not_matter(seed):
    pred, target = masks(seed)
    whole = counted(pred, target).compute()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pred))
    cuts = np.sort(rng.integers(0, len(pred) + 1, 3))
    parts = [counted(pred[o], target[o]) for o in np.split(order, cuts)]
    for arrangement in itertools.permutations(parts):
        merged = SegmentationMetrics()
        for part in arrangement: merged.merge(SegmentationMetrics.from_state(json.loads(json.dumps(part.state()))))
        assert merged.compute() == pytest.approx(whole, abs=1e-9)
        assert merged.compute()['overall_iou'] == whole['overall_iou']
    assert sum(map(len, parts)) == len(pred), 'adding leaves the parts as they were'


def test_borders_of_precision():
    "An IoU of exactly a threshold, for several fractions that make it."
    for t in (0.5, 0.6, 0.7, 0.8, 0.9):
        for union in (10, 20, 30, 70, 90, 110, 12340):
            i = [round(t*union)]
            assert score(f'prec@{t}', i, [union]) == 100 and score(f'prec@{t}', i, [union], strict=True) == 0


def test_large_counts_do_not_overflow():
    "Sums of pixels beyond 32 bits."
    new = SegmentationMetrics(); new.add(np.full(1000, 2**40), np.full(1000, 2**41))
    assert new.compute()['overall_iou'] == pytest.approx(50)


def test_masks_on_tensors_and_refused_input():
    pred, target = masks()
    assert np.array_equal(intersection_union(torch.tensor(pred), torch.tensor(target)), intersection_union(pred, target))
    new = SegmentationMetrics()
    for p, t in ((pred.astype(np.uint8), target), (pred, target[:, :-1]), (pred[0], target), (pred[None], target[None])):
        with pytest.raises(RRNError): new.update(p, t)
    for bad in ((None, 3), ([1, 2], [3]), (2.5, 3), (np.nan, 3), ([[1]], [[2]])):
        with pytest.raises(RRNError): new.add(*bad)
    assert len(new) == 0


def test_interval_of_a_share_follows_theory():
    "Precision over independent samples is a binomial share: the interval is about 1.96 standard errors each way."
    rng = np.random.default_rng(0)
    hits = rng.random(2000) < .3
    value, low, high = bootstrap_interval(np.where(hits, 9, 1), np.full(2000, 10), np.arange(2000), 'prec@0.7', draws=2000)
    error = 196*np.sqrt(hits.mean()*(1 - hits.mean())/2000)
    assert value == pytest.approx(100*hits.mean())
    assert (high - value, value - low) == pytest.approx((error, error), rel=0.1)


def test_interval_contains_the_truth_about_as_often_as_it_says():
    "Coverage over 200 simulated test sets of 80 images, for clustered samples."
    covered = {'image': 0, 'sentence': 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(80), 4)
        unions = np.full(320, 1000)
        inter = (1000*np.clip(.5 + rng.uniform(-.3, .3, 80)[images] + rng.uniform(-.1, .1, 320), 0, 1)).astype(int)
        for name, clusters in (('image', images), ('sentence', np.arange(320))):
            _, low, high = bootstrap_interval(inter, unions, clusters, 'overall_iou', draws=200, seed=seed)
            covered[name] += low <= 50 <= high
    assert 178 <= covered['image'] <= 199, covered
    assert covered['sentence'] < 160, 'ignoring the clusters pretends to more than is known'


def test_bootstrap_against_a_naive_one():
    "The sums over clusters are those of literally copying the samples of the images drawn."
    from rrn.common.core import derived_rng
    rng = np.random.default_rng(3)
    images = rng.integers(0, 12, 50)
    unions = rng.integers(1, 99, 50); inter = rng.integers(0, unions + 1)
    known = np.unique(images)
    for metric in METRICS:
        draw, values = derived_rng(5), []
        for _ in range(60):
            rows = np.concatenate([np.flatnonzero(images == known[k]) for k in draw.integers(len(known), size=len(known))])
            values.append(score(metric, inter[rows], unions[rows]))
        naive = np.percentile(values, [10, 90])
        assert bootstrap_interval(inter, unions, images, metric, 60, 5, 80)[1:] == pytest.approx(naive)


def test_one_image_and_all_empty():
    assert bootstrap_interval([3, 4], [5, 6], ['a', 'a']) == pytest.approx((700/11,)*3)
    assert bootstrap_interval([0, 0], [0, 0], [1, 2]) == (0, 0, 0)
    for bad in (([], [], []), ([1], [2], []), ([1], [2, 3], [0, 0])):
        for metric in METRICS:
            with pytest.raises(RRNError): bootstrap_interval(*bad, metric)


def test_pairing_makes_a_difference_of_samples_sharper():
    rng = np.random.default_rng(4)
    unions = rng.integers(100, 1000, 300)
    b = (unions*rng.random(300)*.9).astype(int)
    a = b + (unions*.02).astype(int)
    paired = paired_bootstrap((a, unions), (b, unions), np.arange(300), 'mean_iou')
    alone = bootstrap_interval(a, unions, np.arange(300), 'mean_iou')
    assert 0 < paired.low < paired.value < paired.high and paired.high - paired.low < 0.1*(alone.high - alone.low)
    shuffled = rng.permutation(300)
    worse = paired_bootstrap((a, unions), (b[shuffled], unions[shuffled]), np.arange(300), 'mean_iou')
    assert worse.value == pytest.approx(paired.value) and worse.low < 0, 'the order of the samples matters'


@pytest.mark.skipif(not REFERENCE.exists(), reason='../shared is not here')
def test_loss_of_the_released_programs():
    "Sum of the cross-entropy on upsampled logits (RRN) and on every eighth pixel (D-LSTM), with its gradient."
    head = np.load(REFERENCE/'rrn_head.npz')
    pred = torch.tensor(head['s1/pred']).permute(0, 3, 1, 2)
    target = torch.tensor(head['in/imgB/target_fine'][..., 0])
    loss = segmentation_loss(pred, target, 'image', 'logits', 'sum', 'tf')
    assert loss.item() == pytest.approx(head['s1/cls_loss'].item(), rel=1e-6)
    p = upsample_probability(pred, target.shape[-2:], 'logits', 'tf')
    assert p[0, 0].numpy() == pytest.approx(head['s1/sigm'][0, ..., 0], abs=1e-6)
    up = torch.tensor(head['s1/up']).permute(0, 3, 1, 2).requires_grad_()
    segmentation_loss(up, target, reduction='sum').backward()
    assert up.grad[0, 0].numpy() == pytest.approx(head['s1/grad_up'][0, ..., 0], abs=1e-6)

    baseline = np.load(REFERENCE/'dlstm_head.npz')
    pred = torch.tensor(baseline['deeplab/s1/pred']).permute(0, 3, 1, 2)
    target = torch.tensor(baseline['deeplab/in/imgB/target_fine'][..., 0])
    loss = segmentation_loss(pred, target, 'feature', reduction='sum')
    assert loss.item() == pytest.approx(baseline['deeplab/s1/cls_loss'].item(), rel=1e-6)


def test_what_can_be_counted():
    a, b = np.zeros((2, 3, 5), bool), np.zeros((2, 3, 5), bool)
    a[0, 0], b[0, :, 0] = True, True
    assert [v.tolist() for v in intersection_union(a, b)] == [[1, 0], [7, 0]]
    assert [v.tolist() for v in intersection_union(torch.tensor(a[0]), b[0])] == [[1], [7]]
    for bad in (a.astype(float), a[:, :2]):
        with pytest.raises(RRNError, match='must be bool and of one shape'): intersection_union(bad, b)
    seen = SegmentationMetrics()
    seen.update(a, b)
    seen.add(90, 100)
    for i, u in ((5, 4), (-1, 4), (1., 4.), ([1, 2], [3])):
        with pytest.raises(RRNError): seen.add(i, u)
    assert len(seen) == 3


def test_scores_of_three_samples():
    I, U = [3, 90, 0], [5, 100, 20]
    assert sample_iou([3, 0, 0], [5, 4, 0]).tolist() == [.6, 0, 0]
    assert score('overall_iou', I, U) == pytest.approx(100*93/125) and score('mean_iou', I, U) == pytest.approx(50)
    assert score('prec@0.6', I, U) == pytest.approx(200/3) and score('prec@0.6', I, U, strict=True) == pytest.approx(100/3)
    assert score('prec@0.9', I, U) == pytest.approx(100/3) and score('prec@0.9', I, U, strict=True) == 0
    with pytest.raises(RRNError, match="Did you mean 'prec@0.5'"): score('prec@0.55', I, U)


def test_counters_merge_and_survive_as_json():
    rng = np.random.default_rng(1)
    pred, target = rng.random((2, 23, 17, 9)) < .5
    pred[:12] |= target[:12]
    whole, parts = counted(pred, target), [SegmentationMetrics() for _ in range(3)]
    for i in rng.permutation(23): parts[i % 3].update(pred[i], target[i])
    merged = parts[2] + parts[0] + parts[1]
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-10) and len(parts[0]) == 8
    assert merged.compute()['overall_iou'] == whole.compute()['overall_iou'] > 0
    again = SegmentationMetrics.from_state(json.loads(json.dumps(whole.state())))
    assert again.compute() == whole.compute() and np.array_equal(again.unions, whole.unions)
    assert len(SegmentationMetrics.from_state(SegmentationMetrics().state())) == 0
    with pytest.raises(RRNError, match='No sample'): SegmentationMetrics().compute()


@pytest.fixture
def sixty_images():
    "Intersections, unions and images of some three hundred sentences."
    rng = np.random.default_rng(2)
    images = np.repeat(np.arange(60), rng.integers(1, 10, 60))
    U = rng.integers(400, 4000, len(images))
    easy = rng.beta(1.2, 1, 60)[images]
    return (U*np.clip(easy + rng.normal(0, .05, len(images)), 0, 1)).astype(int), U, images


@pytest.mark.parametrize('metric', METRICS)
def test_copies_add_no_knowledge(sixty_images, metric):
    once = bootstrap_interval(*sixty_images, metric)
    assert bootstrap_interval(*(np.repeat(x, 3) for x in sixty_images), metric) == pytest.approx(once)


def test_intervals_of_several_runs(sixty_images):
    I, U, images = sixty_images
    by_image = bootstrap_interval(I, U, images)
    assert by_image.low < by_image.value < by_image.high and by_image == bootstrap_interval(I, U, images)
    again = bootstrap_interval(np.stack([I, I, I]), np.stack([U, U, U]), images)
    assert again == pytest.approx(by_image), 'three runs that are the same are worth one'
    halves = bootstrap_interval(np.stack([I, I*0]), np.stack([U, U]), images)
    assert halves.value == pytest.approx(by_image.value/2)
    names = [f'picture {i:03}.jpg' for i in images]
    assert bootstrap_interval(I, U, names) == by_image, 'any label may name a cluster'


def test_paired_differences(sixty_images):
    I, U, images = sixty_images
    better = np.minimum(U, I + (0.03*U).astype(int))
    gain = paired_bootstrap((better, U), (I, U), images)
    assert paired_bootstrap((I, U), (I, U), images) == (0, 0, 0)
    back = paired_bootstrap((I, U), (better, U), images)
    assert back == pytest.approx((-gain.value, -gain.high, -gain.low))
    mixed = paired_bootstrap((np.stack([better, I]), np.stack([U, U])), (I, U), images)
    assert mixed.value == pytest.approx(gain.value/2) and 0 < mixed.low < gain.low
    for bad in (dict(a=(I[1:], U[1:])), dict(clusters=images[1:]), dict(level=100), dict(metric='iou')):
        with pytest.raises(RRNError): paired_bootstrap(**(dict(a=(I, U), b=(I, U), clusters=images) | bad))
