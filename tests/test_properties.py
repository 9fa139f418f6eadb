"Properties that hold for all inputs, which hypothesis tries to refute: of metrics, resizing, batching and evaluation."
import json
from functools import lru_cache
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from rrn.common.core import seed_everything
from rrn.batches import evaluation_order, group_by_image, read_batch, Reader, TrainingOrder
from rrn.evaluate import evaluate, summary
from rrn.image import (bilinear_tf, fit, image_in, mask_in, mask_out, place_image, place_mask, RESAMPLINGS,
                       resize_released, unplace)
from rrn.loss import segmentation_loss
from rrn.metrics import intersection_union, METRICS, sample_iou, score, SegmentationMetrics, THRESHOLDS
from rrn.model import preset, RRN, SYSTEMS
from rrn.refine import UPDATES
from rrn.data.refer import Sample
from rrn.data.shapes import open_shapes, write_refer
from rrn.text import SPECIALS, Vocabulary

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

quick = settings(deadline=None, derandomize=True, database=None, max_examples=60)
few = settings(quick, max_examples=15)

# ---- metrics ---------------------------------------------------------------------------------------------------------------

counts = st.lists(st.integers(0, 2**40).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union))), min_size=1, max_size=30)


def counted(pairs):
    metrics = SegmentationMetrics()
    for pair in pairs: metrics.add(*pair)
    return metrics


@quick
@given(counts, st.randoms(use_true_random=False), st.lists(st.integers(0, 30), max_size=4))
def test_order_and_splitting_change_no_metric(pairs, rng, cuts):
    shuffled = rng.sample(pairs, len(pairs))
    borders = [0, *sorted(min(c, len(pairs)) for c in cuts), len(pairs)]
    parts = [counted(shuffled[a:b]) for a, b in zip(borders, borders[1:])]
    rng.shuffle(parts)
    merged = SegmentationMetrics()
    for part in parts: merged += SegmentationMetrics.from_state(json.loads(json.dumps(part.state())))
    whole, found = counted(pairs).compute(), merged.compute()
    assert found == pytest.approx(whole, rel=1e-12) and found['sentences'] == len(pairs)


@quick
@given(counts)
def test_metrics_have_bounds(pairs):
    inter, union = zip(*pairs)
    found, iou = counted(pairs).compute(), sample_iou(inter, union)
    assert all(0 <= found[m] <= 100 for m in METRICS)
    precisions = [found[f'prec@{t}'] for t in THRESHOLDS]
    assert precisions == sorted(precisions, reverse=True)
    assert all(score(m, inter, union, strict=True) <= found[m] for m in METRICS)
    seen = iou[np.array(union) > 0]
    if len(seen): assert 100*seen.min() * (1 - 1e-12) <= found['overall_iou'] <= 100*seen.max() * (1 + 1e-12)
    assert 100*iou.min() * (1 - 1e-12) <= found['mean_iou'] <= 100*iou.max() * (1 + 1e-12)


pairs_of_masks = hnp.array_shapes(min_dims=3, max_dims=3, max_side=9).flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2))


@quick
@given(pairs_of_masks)
def test_intersection_and_union_are_symmetric(masks):
    a, b = masks
    inter, union = intersection_union(a, b)
    assert [x.tolist() for x in intersection_union(b, a)] == [inter.tolist(), union.tolist()]
    assert (inter + union == a.sum((1, 2)) + b.sum((1, 2))).all() and (inter <= union).all()
    flipped = intersection_union(a[:, ::-1].copy(), b[:, ::-1].copy())
    assert flipped[0].tolist() == inter.tolist() and flipped[1].tolist() == union.tolist()
    assert np.array_equal(*intersection_union(a, a)) and not intersection_union(a, ~a)[0].any()


# ---- resizing --------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 70)
sizes = st.tuples(sides, sides)


@quick
@given(sizes, sizes, st.integers(0, 255), st.sampled_from(RESAMPLINGS))
def test_a_constant_stays_constant(hw, size, value, protocol):
    where = fit(*hw, size)
    placed = image_in(np.full((*hw, 3), value, np.uint8), size, protocol)
    assert placed.shape == (*size, 3) and (placed[where.box] == value).all()
    outside = np.ones(size, bool); outside[where.box] = False
    assert not placed[outside].any()
    inside = torch.full(size, -7.); inside[where.box] = value / 255
    assert unplace(inside, where).shape == hw and torch.allclose(unplace(inside, where), torch.tensor(value / 255))


@quick
@given(sizes, sizes, st.sampled_from(RESAMPLINGS))
def test_a_mask_of_ones_becomes_the_rectangle(hw, size, protocol):
    where = fit(*hw, size)
    rectangle = np.zeros(size, bool); rectangle[where.box] = True
    assert np.array_equal(mask_in(np.ones(hw, bool), size, protocol), rectangle)
    assert not mask_in(np.zeros(hw, bool), size, protocol).any()
    back = mask_out(torch.from_numpy(rectangle).float(), where, 'rrn')
    assert back.shape == hw and back.all()


@quick
@given(hnp.arrays(np.uint8, st.tuples(sides, sides, st.just(3))), st.data())
def test_the_same_size_is_the_same_picture(image, data):
    where = fit(*image.shape[:2], image.shape[:2])
    mask = data.draw(hnp.arrays(bool, image.shape[:2]))
    for protocol in RESAMPLINGS:
        assert np.array_equal(image_in(image, image.shape[:2], protocol), image)
        assert np.array_equal(mask_in(mask, mask.shape, protocol), mask)
        assert np.array_equal(mask_out(torch.from_numpy(mask).float(), where, protocol), mask)
    assert np.array_equal(unplace(torch.from_numpy(mask).float(), where).numpy(), mask)


@quick
@given(hnp.arrays(np.uint8, st.tuples(sides, sides, st.just(3))), sizes)
def test_placing_invents_no_values_and_turns_with_the_picture(image, size):
    where = fit(*image.shape[:2], size)
    placed = place_image(image, where)[where.box]
    assert placed.min() >= image.min() and placed.max() <= image.max()
    upright = fit(*image.shape[1::-1], size[::-1])
    turned = place_image(image.transpose(1, 0, 2).copy(), upright)[upright.box]
    assert np.abs(turned.transpose(1, 0, 2).astype(int) - placed).max() <= 1        # rounded after each axis
    mirrored = place_image(image[:, ::-1].copy(), where)[where.box]
    assert np.abs(mirrored[:, ::-1].astype(int) - placed).max() <= 1


@quick
@given(sizes, sizes, st.data())
def test_there_and_back_keeps_what_is_large(hw, size, data):
    "A half of the picture, cut along the longer side, comes back with at most one of the placed pixels changed at its edge."
    where = fit(*hw, size)
    assume(min(where.new_height, where.new_width) >= 2)
    cut = data.draw(st.integers(1, max(hw) - 1)) if max(hw) > 1 else 1
    mask = np.zeros(hw, bool)
    if hw[0] >= hw[1]: mask[:cut] = True
    else: mask[:, :cut] = True
    back = unplace(torch.from_numpy(place_mask(mask, where)).float(), where).numpy() >= .5
    step = max(hw[0] / where.new_height, hw[1] / where.new_width, 1)
    assert (back ^ mask).sum() <= (step + 1) * min(hw)


@quick
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), sizes, st.floats(-9, 9), st.integers(0, 99))
def test_bilinear_is_linear_and_keeps_constants(hw, size, factor, seed):
    a, b = torch.randn(2, 1, 1, *hw, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    up = lambda x: bilinear_tf(x, size)
    torch.testing.assert_close(up(a + factor * b), up(a) + factor * up(b), atol=1e-9, rtol=0)
    assert torch.allclose(up(torch.full_like(a, factor)), torch.tensor(factor, dtype=torch.float64))
    assert up(a).min() >= a.min() - 1e-12 and up(a).max() <= a.max() + 1e-12
    x = a[0, 0].numpy()
    assert np.array_equal(resize_released(x, hw), x)


# ---- batching --------------------------------------------------------------------------------------------------------------

NETWORKS = [dict(update=u) for u in UPDATES] + [dict(activation='relu', update='rnn'), dict(pyramid='')] + [dict(system=s, pyramid='', score_kernel=1) for s in SYSTEMS if s != 'rrn']


@lru_cache
def network(i):
    "A small network of every kind, in evaluation mode."
    seed_everything(i)
    return RRN(preset('small', weights='random', image_size=48, embed_dim=8, D_I=8, D_S=8, D_Q=8, **NETWORKS[i]), 12).eval()


@st.composite
def batches(draw):
    "(number of pictures, words (S, T), picture of each sentence)."
    B, S, T = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    words = draw(hnp.arrays(np.int64, (S, T), elements=st.integers(1, 11)))
    for row in words: row[:draw(st.integers(0, T - 1))] = 0                          # padding, on the left
    return B, torch.from_numpy(words), torch.tensor(draw(st.lists(st.integers(0, B - 1), min_size=S, max_size=S)))


def images_of(B): return torch.randint(0, 256, (B, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(B))


def close(a, b): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', range(len(NETWORKS)), ids=lambda i: '-'.join(map(str, NETWORKS[i].values())))
@few
@given(batches(), st.randoms(use_true_random=False), st.integers(1, 5))
@torch.inference_mode()
def test_grouping_order_and_padding_change_no_logits(kind, batch, rng, more):
    model, (B, words, image_of) = network(kind), batch
    images = images_of(B)
    whole = model(images, words, image_of)
    order = rng.sample(range(len(words)), len(words))                                # sentences in another order
    close(model(images, words[order], image_of[order]), whole[order])
    alone = [model(images[image_of[i]][None], words[i:i+1]) for i in range(len(words))]
    close(torch.cat(alone), whole)                                                   # one by one
    place = torch.tensor(rng.sample(range(B), B))                                    # pictures in another order
    renamed = torch.argsort(place)
    close(model(images[place], words, renamed[image_of]), whole)
    if model.config.system != 'lstm-cnn':                                            # which reads padding like words
        close(model(images, torch.nn.functional.pad(words, (more, 0)), image_of), whole)
    cut = rng.randrange(len(words) + 1)                                              # in two parts
    close(torch.cat([model(images, w, i) for w, i in ((words[:cut], image_of[:cut]), (words[cut:], image_of[cut:])) if len(w)]), whole)


@few
@given(batches(), st.randoms(use_true_random=False), st.sampled_from(['mean', 'sum']), st.sampled_from(['image', 'feature']))
def test_the_loss_is_the_mean_over_sentences(batch, rng, reduction, resolution):
    S = len(batch[1])
    logits, masks = torch.randn(S, 1, 6, 6, generator=torch.Generator().manual_seed(S)), torch.rand(S, 48, 48, generator=torch.Generator().manual_seed(S)) < .3
    loss = lambda rows: segmentation_loss(logits[rows], masks[rows], resolution, 'logits', reduction).item()
    order, cut = rng.sample(range(S), S), rng.randrange(1, S) if S > 1 else 0
    assert loss(order) == pytest.approx(loss(list(range(S))), rel=1e-5)
    parts = [order[:cut], order[cut:]] if cut else [order]
    assert sum(len(p) / S * loss(p) for p in parts) == pytest.approx(loss(order), rel=1e-5)


words_of = st.lists(st.sampled_from(['left', 'dog', 'zebra', 'the']), min_size=1, max_size=9)


@quick
@given(words_of, st.integers(0, 9), st.permutations(['left dog', 'the zebra', 'dog', 'left left']))
def test_padding_goes_to_the_left(words, more, said):
    vocabulary = Vocabulary((*SPECIALS, 'dog', 'left', 'the'))
    numbers = vocabulary.encode(' '.join(words), len(words))
    assert vocabulary.encode(' '.join(words), len(words) + more) == [0] * more + numbers
    assert vocabulary.encode(' '.join(words), max(1, len(words) - 1)) == numbers[:max(1, len(words) - 1)]
    assert Vocabulary.build(said) == Vocabulary.build(sorted(said))


# ---- the order of training, and evaluation ---------------------------------------------------------------------------------

def groups_of(numbers): return group_by_image([Sample(i, None, 's', i, i, 100*i + n, 'train', '', 0, 1, 1) for i, count in enumerate(numbers) for n in range(count)])


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**31), st.integers(0, 3))
def test_an_epoch_has_every_sentence_once(numbers, images, sentences, seed, epoch):
    groups = groups_of(numbers)
    order = TrainingOrder(groups, images, sentences, seed)
    steps = [order[epoch * order.steps_per_epoch + i] for i in range(order.steps_per_epoch)]
    seen = [s.sent_id for step in steps for part in step for s in part]
    assert sorted(seen) == sorted(s.sent_id for g in groups for s in g.samples)
    assert all(len(step) <= images and all(len({s.image for s in part}) == 1 and (not sentences or len(part) <= sentences) for part in step) for step in steps)
    last = TrainingOrder(groups, images, sentences, seed)[epoch * order.steps_per_epoch]          # asked for without what came before
    assert last == steps[0]


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, 10))
def test_evaluation_looks_at_every_sentence_once(numbers, images, most):
    groups = groups_of(numbers)
    order = evaluation_order(groups, images, most)
    assert [s for step in order for part in step for s in part] == [s for g in groups for s in g.samples]
    assert all(len(step) <= images and all(len(part) <= most for part in step) for step in order)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "A network, samples and a reader of embedded scenes."
    root = tmp_path_factory.mktemp('scenes')
    write_refer(root, seed=9, sizes={'train': 1, 'val': 6, 'testA': 1, 'testB': 1}, workers=1)
    samples = open_shapes('unc', root).samples('val')
    vocabulary = Vocabulary.build(s.sentence for s in samples)
    seed_everything(0)
    model = RRN(preset('small', weights='random', image_size=48, embed_dim=8, D_I=8, D_S=8, D_Q=8), len(vocabulary)).eval()
    return model, samples, Reader(vocabulary, 48), evaluate(model, samples, Reader(vocabulary, 48), threshold=.5)


@few
@given(st.data(), st.integers(1, 9))
def test_evaluation_does_not_depend_on_batches(scenes, data, images_per_batch):
    model, samples, reader, expected = scenes
    chosen = data.draw(st.permutations(samples)) if data.draw(st.booleans()) else data.draw(st.lists(st.sampled_from(samples), min_size=1, max_size=9, unique_by=lambda s: s.sent_id))
    rows = evaluate(model, chosen, reader, images_per_batch=images_per_batch)
    wanted = expected[expected.sent_id.isin([s.sent_id for s in chosen])]
    assert rows.sort_values('sent_id').reset_index(drop=True).equals(wanted.sort_values('sent_id').reset_index(drop=True))
    assert summary(rows) == pytest.approx(summary(wanted), rel=1e-12)


@few
@given(st.data())
def test_a_batch_is_the_sum_of_its_groups(scenes, data):
    _, samples, reader, _ = scenes
    groups = data.draw(st.permutations(group_by_image(samples)))[:data.draw(st.integers(1, 4))]
    whole, alone = read_batch(reader, [g.samples for g in groups]), [read_batch(reader, [g.samples]) for g in groups]
    for name in ('images', 'words', 'masks'): assert getattr(whole, name).equal(torch.cat([getattr(b, name) for b in alone]))
    assert whole.samples == [s for g in groups for s in g.samples] and [len(g.samples) for g in groups] == whole.image_of.bincount().tolist()
