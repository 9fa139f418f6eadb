"""Wrong targets: as many as asked for, of the kind asked for, in what is trained on and nowhere else."""
import pickle
from dataclasses import asdict
from itertools import product
import numpy as np
import pandas as pd
import pytest
from rrn.batches import group_by_image, Reader, read_batch
from rrn.common.core import RRNError
from rrn.data.datasets import open_dataset
from rrn.data.noise import has_rivals, KINDS_OF_NOISE, Targets, with_noise
from rrn.data.shapes import write_refer
from rrn.experiments.jobs import open_job, run_job, training_samples
from rrn.evaluate import evaluate
from rrn.experiments.matrix import given_matrix, NOISE_SYSTEMS
from rrn.experiments.noisy import (changes_of, noise_claims, noise_page, noise_scores, noise_sentence, noisy_name,
                                   write_noise)
from rrn.experiments.record import add_metrics, data_fingerprint, run_name
from rrn.model import Config, NOISES, preset
from rrn.text import Vocabulary

TINY = dict(dataset='shapes-unc', weights='random', image_size=48, iterations=2, D_Q=6, run='noisy')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_refer(folder, seed=5, sizes={'train': 60, 'val': 2, 'testA': 1, 'testB': 1}, workers=1)
    return folder


@pytest.fixture(scope='module')
def samples(root):
    return open_dataset('shapes-unc', root).samples('train')


def wrong(samples, noise, seed=0):
    "(sample, what it was) for every sample whose target is another."
    return [(s, old) for s, old in zip(with_noise(samples, noise, seed), samples) if s is not old]


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_every_kind_has_a_function():
    assert set(KINDS_OF_NOISE) == set(NOISES)


@pytest.mark.parametrize('kind', NOISES)
@pytest.mark.parametrize('share', [.05, .1, .24])
def test_shares_are_exact_nested_and_of_their_kind(samples, kind, share):
    found = wrong(samples, f'{kind}:{share}')
    assert len(found) == round(share * len(samples))
    assert {(s.sent_id, s.ref_id) for s, _ in found} <= {(s.sent_id, s.ref_id) for s, _ in wrong(samples, f'{kind}:0.5')}
    assert all((s.image, s.sentence, s.sent_id) == (old.image, old.sentence, old.sent_id) for s, old in found)
    for s, old in found:
        mask, right = s.mask.decode(), old.mask.decode()
        assert mask.shape == right.shape
        if kind == 'shrink':
            assert mask.sum() == (right.sum() + 1) // 2 and not (mask & ~right).any()
        other = next((o for o in samples if o.ref_id == s.ref_id), None)
        if kind == 'flip':
            assert other.image == s.image and other.ref_id != old.ref_id
            assert not (mask & right).any() and (mask == other.mask.decode()).all()
        if kind == 'swap':
            assert other.image != s.image and s.category == other.category


def test_the_wrong_sentences_and_targets_are_spread_evenly(samples):
    "Over 200 seeds every sentence is hit about equally often, and every other target of its picture is chosen."
    hits, chosen = np.zeros(len(samples)), {}
    for seed in range(200):
        for i, (s, old) in enumerate(zip(with_noise(samples, 'flip:0.2', seed), samples)):
            if s is old: continue
            hits[i] += 1
            chosen.setdefault(i, []).append(s.ref_id)
    able = np.array([has_rivals(s, Targets(samples)) for s in samples])
    p = .2 * len(samples) / able.sum()
    assert not hits[~able].any()
    assert abs(hits[able] - 200 * p).max() < 5 * np.sqrt(200 * p * (1 - p))
    targets = Targets(samples)
    for i, refs in chosen.items():
        others = set(targets.of[samples[i].image]) - {samples[i].ref_id}
        counts = [refs.count(r) for r in others]
        expected = len(refs) / len(others)
        assert sum(counts) == len(refs)
        assert max(abs(n - expected) for n in counts) < 5 * np.sqrt(expected)


def test_seeds_and_kinds(samples):
    ids = lambda noise, seed=0: {s.sent_id for s, _ in wrong(samples, noise, seed)}
    assert ids('swap:0.2') == ids('swap:0.2') != ids('swap:0.2', seed=1)
    assert len(ids('flip:0.1,shrink:0.2,swap:0.3')) == sum(round(p * len(samples)) for p in (.1, .2, .3))


@pytest.mark.parametrize('text', ['flop:0.1', 'flip', 'flip:', 'flip:x', 'flip:0', 'flip:-0.1', 'flip:10', 'flip:nan',
                                  'flip:0.1,flip:0.1', 'flip:0.6,swap:0.6', 'flip:1e-1', 'flip:0.1;swap:0.1'])
def test_shares_that_cannot_be(text):
    with pytest.raises(RRNError, match='label_noise'): Config(label_noise=text)


def test_old_runs_keep_their_names():
    assert run_name(Config()) == 'unc-lstm543-tanh-s0-1542ff'
    assert run_name(preset('small', label_noise='flip:0.1')) not in (run_name(preset('small')), run_name(preset('small', label_noise='flip:0.2')))
    assert 'flip0.1-swap0.24' in run_name(preset('small', label_noise='flip:0.1,swap:0.24'))


def test_fingerprints_tell_noise_apart(samples):
    found = {data_fingerprint(with_noise(samples, noise, seed))
             for noise in ('', 'flip:0.1', 'flip:0.2', 'shrink:0.1', 'swap:0.1') for seed in (0, 1)}
    assert len(found) == 9                                            # without noise, seeds are the same data
    again = with_noise(samples, 'swap:0.1,shrink:0.1', 0)
    assert data_fingerprint(again) == data_fingerprint(pickle.loads(pickle.dumps(again)))


def test_masks_that_a_reader_remembers_are_those_of_the_sample(samples):
    noisy = with_noise(samples, 'flip:0.3,shrink:0.3,swap:0.3', 0)
    reader = Reader(Vocabulary.build(s.sentence for s in samples), 64)
    for some in (samples, noisy):
        for group in group_by_image(some)[:20]:
            fresh = read_batch(Reader(reader.vocabulary, 64, remember=0), [group.samples])
            assert read_batch(reader, [group.samples]).masks.equal(fresh.masks)


def test_a_run_trains_on_noise_and_is_validated_without(root, tmp_path):
    jobs = {noise: open_job(data_root=str(root), folder=str(tmp_path/(noise[:4] or 'none')), label_noise=noise, **TINY)
            for noise in ('', 'flip:0.24')}
    clean, noisy = jobs[''], jobs['flip:0.24']
    assert clean.identity['data'] != noisy.identity['data'] and clean.identity['vocabulary'] == noisy.identity['vocabulary']
    trained = training_samples(noisy.config, noisy.dataset)
    assert sum(a is not b for a, b in zip(trained, noisy.samples('train'))) == round(.24 * len(trained))
    assert data_fingerprint(noisy.samples('val')) == data_fingerprint(clean.samples('val'))
    run_job(noisy)
    assert noisy.run.record()['config']['label_noise'] == 'flip:0.24'
    with pytest.raises(RRNError, match="label_noise 'flip:0.24' -> 'flip:0.1'"):
        open_job(data_root=str(root), folder=str(tmp_path/'flip'), label_noise='flip:0.1', **TINY)


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
    "A tiny matrix with runs without noise and with 24 % flipped, of two seeds."
    matrix = given_matrix('noise', image_size=48, D_Q=6, iterations=2, data_root=str(root), folder=str(tmp_path_factory.mktemp('runs')))
    for seed, kind in product((0, 1), ('none', 'flip')):
        for system in NOISE_SYSTEMS:
            cell = matrix.cell(noisy_name(system, kind, .24), 'shapes-unc', seed)
            settings = {k: v for k, v in asdict(cell.config).items() if k != 'weights'}
            job = open_job(**settings, preset='small', run=cell.run, data_root=str(root), folder=matrix.folder)
            run_job(job)
            add_metrics(job.run, 'shapes-unc val', evaluate(job.model, job.samples('val'), job.reader()), 'rrn', job.samples('val'))
    return matrix


def test_the_page_has_what_is_on_record(trained):
    scores, claims, page = noise_scores(trained), noise_claims(trained), noise_page(trained)
    assert set(zip(scores.kind, scores.share)) == {('none', 0.), ('flip', .24)} and set(scores.seeds) == {2} and len(scores) == 8
    assert set(zip(claims.kind, claims.share)) == {('none', 0.), ('flip', .24)} and len(claims) == 8
    assert '| flip | 24 % | [LSTM above plain](' in page and 'No run is on record' not in page


def test_a_change_of_verdict_is_named_with_its_share():
    verdicts = {('none', 0.): 'confirmed', ('flip', .05): 'confirmed', ('flip', .24): 'undecided', ('flip', .1): 'contradicted', ('swap', .1): 'confirmed'}
    table = pd.DataFrame([dict(kind=k, share=s, claim='A above B', verdict=v) for (k, s), v in verdicts.items()])
    assert changes_of(table) == ['A above B, flip: confirmed without noise, confirmed at 5 %, contradicted at 10 %, undecided at 24 %',
                                 'A above B, swap: confirmed without noise, confirmed at 10 %']
    assert changes_of(table[table.kind != 'none']) == []
    assert noise_sentence(table) == ('With 24 % of the training targets wrong, the verdict is another one in 1 of 1 '
                                     'comparisons: A above B (flip: undecided).')
    assert noise_sentence(table[table.kind != 'none']) == noise_sentence(table[:0]) == ''


def test_without_records_there_is_a_page_that_says_so(tmp_path):
    write_noise(given_matrix('noise', folder=str(tmp_path/'none')), tmp_path)
    assert 'No run is on record' in (tmp_path/'noise.md').read_text() and (tmp_path/'noise.csv').read_text().startswith('kind,share')
