"""rrn.batches: pictures that cannot be read, mirrored batches, every sentence once an epoch, and workers that die."""
import os
from collections import Counter
from dataclasses import replace
import numpy as np
import pytest
import torch
from rrn.batches import (Batches, evaluation_order, group_by_image, loader, mirror_image, mirrored, read_batch, Reader,
                         TrainingOrder, workers_alive)
from rrn.common.core import RRNError
from rrn.common.pictures import read_image
from rrn.common.team import Team
from rrn.data.refer import Sample
from rrn.data.shapes import draw_scene, save_jpeg
from rrn.text import Vocabulary


class WholeImage:
    "A mask source: everything is foreground."
    def __init__(self, h, w): self.shape = h, w
    def decode(self): return np.ones(self.shape, bool)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Five pictures, and three files that are none."
    tmp = tmp_path_factory.mktemp('pictures')
    for i in range(5): save_jpeg(tmp/f'{i}.jpg', draw_scene(3, i).image)
    (tmp/'cut.jpg').write_bytes((tmp/'0.jpg').read_bytes()[:900])
    (tmp/'program.jpg').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n')
    return tmp


@pytest.fixture(scope='module')
def samples(folder):
    "Three, one, seven, two and five sentences about five pictures."
    def about(i, sentences):
        h, w = draw_scene(3, i).image.shape[:2]
        return [Sample(folder/f'{i}.jpg', WholeImage(h, w), s, i, 10*i + j, 100*i + j, 'train', '', 0, h, w)
                for j, s in enumerate(sentences)]
    return [s for i, n in enumerate([3, 1, 7, 2, 5]) for s in about(i, [f'left star number {j}' for j in range(n)])]


@pytest.fixture(scope='module')
def groups(samples): return group_by_image(samples)


@pytest.fixture(scope='module')
def reader(samples):
    return Reader(Vocabulary.build([s.sentence for s in samples] + ['right']), image_size=90, max_words=6)


@pytest.fixture
def bad(samples, folder): return [replace(samples[0], image=folder/'cut.jpg')]


@pytest.mark.parametrize('name', ['cut.jpg', 'none.jpg', 'program.jpg'])
def test_what_is_no_picture(folder, name):
    assert read_image(folder/'0.jpg').shape == draw_scene(3, 0).image.shape
    with pytest.raises(RRNError, match=name): read_image(folder/name)


def test_reading_again_gives_the_same(reader, groups):
    batch, again = (read_batch(reader, [g.samples for g in groups[:2]]) for _ in range(2))
    assert again.images.equal(batch.images) and again.masks.equal(batch.masks) and again.words.equal(batch.words)
    where = batch.placements[0]
    assert batch.masks[0].sum() == where.new_height * where.new_width, "a full mask covers the image, not the padding"
    original = read_batch(reader, [groups[0].samples], original=True).masks
    assert [m.shape for m in original] == [draw_scene(3, 0).image.shape[:2]] * 3


def test_a_bad_picture_between_good_ones(reader, groups, bad):
    with pytest.raises(RRNError, match='cut.jpg'): read_batch(reader, [bad, groups[1].samples])
    forgiving = Reader(reader.vocabulary, 90, 6, on_corrupt='skip')
    left = read_batch(forgiving, [bad, groups[1].samples])
    assert len(left.images) == len(left.words) == 1 and left.image_of.tolist() == [0] and 'cut.jpg' in left.skipped[0]
    assert read_batch(forgiving, [bad]).images.shape == (0, 3, 90, 90)


def test_mirrored_batches(reader, groups):
    batch = read_batch(reader, [g.samples for g in groups[:2]])
    sided = Vocabulary.build(['leftmost star', 'rightmost star left of ring', 'right ring'])
    assert mirror_image('leftmost star left of right ring', sided) == 'rightmost star right of left ring'
    assert mirror_image('ring right behind the star', sided) is None
    assert mirror_image('rightish star', Vocabulary.build(['rightish star'])) is None       # no word for the other side
    twice = mirrored(mirrored(batch, sided), sided)
    assert twice.images.equal(batch.images) and twice.masks.equal(batch.masks)
    assert not mirrored(batch, sided).images.equal(batch.images)


def seen(order, epoch):
    n = order.steps_per_epoch
    return Counter(s.sent_id for i in range(n) for part in order[epoch*n + i] for s in part)


@pytest.mark.parametrize('how', [(1, 1), (2, 3), (3, 0)])
def test_every_sentence_once_an_epoch(groups, samples, how):
    order = TrainingOrder(groups, *how, seed=1)
    for epoch in (0, 1): assert seen(order, epoch) == Counter(s.sent_id for s in samples)


def test_the_order_is_a_function_of_seed_and_step(groups):
    order = TrainingOrder(groups, 2, 3, seed=1)
    assert TrainingOrder(groups, 2, 3, seed=1)[7] == TrainingOrder(groups, 2, 3, seed=1)[7] != TrainingOrder(groups, 2, 3, seed=2)[7]
    assert all(len({s.image for s in part}) == 1 and len(part) <= 3 for part in order[0])
    assert all(len(order[i]) == 1 == len(order[i][0]) for order in [TrainingOrder(groups)] for i in range(18))


def test_workers_and_mirrors(reader, groups, bad):
    batches = Batches(reader, TrainingOrder(groups, 2, 3, seed=1))
    alone = [b.words for b in loader(batches, range(3, 9))]
    workers = [b.words for b in loader(batches, range(3, 9), workers=2)]
    assert len(alone) == 6 and all(a.equal(b) for a, b in zip(alone, workers))
    mirror = Batches(reader, TrainingOrder(groups, 2, 3, seed=1), mirror=True)
    flips = [not mirror[i].images.equal(batches[i].images) for i in range(40)]
    assert flips == [not mirror[i].images.equal(batches[i].images) for i in range(40)] and 10 < sum(flips) < 30
    with pytest.raises(RRNError, match='cut.jpg'): list(loader(Batches(reader, [[bad]]), range(1), workers=1))


def test_a_worker_that_dies(reader, groups):
    batches = Batches(reader, TrainingOrder(groups, 2, 3, seed=1))

    class Deadly:
        "Kills the process that loads batch 2."
        def __getitem__(self, step): return os._exit(9) if step == 2 else batches[step]

    with pytest.raises(RRNError, match='decodes images died .* give the same command again'):
        workers_alive(lambda: list(loader(Deadly(), range(5), workers=1)))()


def test_shares_of_a_team_and_long_lists_of_sentences(reader, groups, samples):
    batches = Batches(reader, TrainingOrder(groups, 2, 3, seed=1))
    shares = [Batches(reader, TrainingOrder(groups, 2, 3, seed=1), team=Team(r, 2)) for r in range(2)]
    assert all(torch.cat([s[i].words for s in shares]).equal(batches[i].words) for i in range(5))
    assert [len(s[0].images) for s in shares] == [1, 1]
    assert sum(len(part) for batch in evaluation_order(groups, 2, most=4) for part in batch) == len(samples)
