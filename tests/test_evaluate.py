"""rrn.evaluate: controls, breakdowns and telling rows of an untrained network on a handful of embedded scenes."""
import pytest
from rrn.batches import Reader
from rrn.common.core import RRNError, seed_everything
from rrn.data.shapes import open_shapes
from rrn.evaluate import BINS, breakdown, evaluate, ROW, sentences_given, summary, telling_rows
from rrn.model import preset, RRN
from rrn.text import Vocabulary

SCENES = {'train': 4, 'val': 5, 'testA': 1, 'testB': 1}


@pytest.fixture(scope='module')
def samples(scenes): return open_shapes('unc', scenes).samples('val')


@pytest.fixture(scope='module')
def model_and_reader(samples):
    seed_everything(0)
    config = preset('small', weights='random', dataset='shapes-unc')
    vocabulary = Vocabulary.build(s.sentence for s in samples)
    return RRN(config, len(vocabulary)).eval(), Reader(vocabulary, config.image_size)


@pytest.fixture(scope='module')
def rows(model_and_reader, samples):
    model, reader = model_and_reader
    return evaluate(model, samples, reader, threshold=.45)


def test_rows_are_the_samples(rows, samples):
    assert rows.sent_id.tolist() == [s.sent_id for s in samples] and list(rows) == ROW
    assert summary(rows)['sentences'] == len(samples)
    assert summary(rows)['overall_iou'] == pytest.approx(100 * rows.intersection.sum() / rows.union.sum())


def test_how_images_are_batched_changes_nothing(model_and_reader, rows, samples):
    model, reader = model_and_reader
    other = evaluate(model, samples, reader, threshold=.45, images_per_batch=2)
    assert other.intersection.equals(rows.intersection) and other.union.equals(rows.union)
    everything = evaluate(model, samples, reader, threshold=0.)
    areas = [s.mask.decode() for s in samples]
    assert everything.intersection.tolist() == [m.sum() for m in areas]
    assert everything.union.tolist() == [m.size for m in areas]


def test_sentences_that_are_shown(samples):
    shown = sentences_given(samples, 'shuffled')
    assert sorted(shown.values()) == sorted(s.sentence for s in samples) and shown != sentences_given(samples, 'own')
    assert set(sentences_given(samples, 'none').values()) == {''}
    with pytest.raises(RRNError, match='Allowed'): sentences_given(samples, 'other')


def test_breakdowns_and_telling_rows(rows):
    assert all(breakdown(rows, by).expressions.sum() == len(rows) for by in BINS)
    picked = telling_rows(rows, 1)
    assert picked.case.tolist() == ['worst', 'typical', 'best'] and picked.iou.is_monotonic_increasing
    assert picked.iou.iloc[0] == rows.iou.min() and picked.iou.iloc[2] == rows.iou.max()
