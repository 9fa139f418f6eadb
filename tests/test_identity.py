"""A run is what it was made of: other data, words, CNN or values never get into it, and what is finished stays as it is."""
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from rrn.common.core import RRNError
from rrn.evaluate import evaluate
from rrn.predict import Predictor
from rrn.experiments.record import (add_metrics, data_fingerprint, published_folder, read_metrics, read_rows, Run,
                                    runs_folder)
from rrn.data.refer import IMAGE_FOLDER
from rrn.data.shapes import write_refer
from rrn.text import Vocabulary
from rrn.experiments.jobs import open_evaluation, open_job, open_run, run_job

SCENES = {'train': 6, 'val': 8, 'testA': 1, 'testB': 1}
TINY = dict(image_size=48, iterations=10, D_Q=6, D_I=6, D_S=6, embed_dim=6, validate_every=10**6, save_every=5, log_every=5, device='cpu')


@pytest.fixture(scope='module')
def others(tmp_path_factory):
    "Scenes of another seed."
    root = tmp_path_factory.mktemp('others')
    write_refer(root, seed=10, sizes=SCENES, workers=1)
    return root


def job_in(tmp_path, root, **settings):
    return open_job(data_root=str(root), folder=str(tmp_path), run='mine', **TINY | settings)


@pytest.fixture
def finished(tmp_path, scenes):
    "A finished run."
    job = job_in(tmp_path, scenes)
    run_job(job)
    return job


def content(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file() and 'lock' not in p.name}


# ---------------------------------------------------------------- names

@pytest.mark.parametrize('name', ['.', '..', '/tmp/x', 'a/b', '../x', 'a\0b', ' '])
@pytest.mark.parametrize('resume', [True, False])
def test_a_run_stays_in_its_folder(tmp_path, scenes, name, resume):
    before = content(tmp_path)
    with pytest.raises(RRNError, match='name of a run'): open_job(data_root=str(scenes), folder=str(tmp_path), run=name, resume=resume, **TINY)
    assert content(tmp_path) == before


def test_only_a_run_is_emptied(tmp_path, scenes):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.tex').write_text('all of it')
    with pytest.raises(RRNError, match='holds something else than a run .*thesis.tex'): run_job(job_in(tmp_path, scenes, resume=False))
    assert (tmp_path/'mine'/'thesis.tex').read_text() == 'all of it'


def test_what_is_trained_is_ignored_by_git():
    assert runs_folder().name == 'runs' and published_folder().parts[-2:] == ('reports', 'runs')
    assert '/runs/' in (runs_folder().parent/'.gitignore').read_text().split()


# ---------------------------------------------------------------- other data, words, CNN

def test_other_data_are_refused_and_nothing_is_written(finished, tmp_path, others):
    before = content(tmp_path)
    with pytest.raises(RRNError, match='other data.*the training data'): job_in(tmp_path, others)
    assert content(tmp_path) == before
    open_run(finished.run.folder)


def test_two_halves_on_two_data_sets_are_not_one_run(tmp_path, scenes, others):
    run_job(job_in(tmp_path, scenes), stop_after=5)
    begun = content(tmp_path)
    with pytest.raises(RRNError, match='other data'): job_in(tmp_path, others)
    assert content(tmp_path) == begun


def test_data_that_change_between_opening_and_training(tmp_path, scenes, others):
    "Both are opened before either trains: the second finds the first's record under the lock."
    first, second = job_in(tmp_path, scenes), job_in(tmp_path, others)
    run_job(first, stop_after=5)
    begun = content(tmp_path)
    with pytest.raises(RRNError, match='other data'): run_job(second)
    assert content(tmp_path) == begun


def test_a_vocabulary_of_equal_size_is_another_one(finished):
    path = finished.run.folder/'vocabulary.json'
    words = list(finished.vocabulary.words)
    words[5], words[6] = words[6], words[5]
    path.write_text(json.dumps(Vocabulary(tuple(words), 'words').to_dict()))
    with pytest.raises(RRNError, match='not the vocabulary that this run was trained with'): open_run(finished.run.folder)


def test_another_cnn_is_refused(tmp_path, scenes):
    "The file of weights changes between training and asking, evaluating or going on."
    from rrn.backbone import build_backbone
    file = tmp_path/'cnn.safetensors'
    def write(): safetensors.torch.save_file(build_backbone('small', 'random').state_dict(), file)
    torch.manual_seed(1); write()
    job = job_in(tmp_path, scenes, weights=str(file))
    run_job(job)
    expected = open_run(job.run.folder)[0]
    write()
    for use in (lambda: open_run(job.run.folder), lambda: Predictor.from_run(job.run.folder), lambda: job_in(tmp_path, scenes, weights=str(file)),
                lambda: open_evaluation(run='mine', folder=str(tmp_path), data_root=str(scenes))):
        with pytest.raises(RRNError, match="another CNN|the CNN's weights"): use()
    assert expected is not None


@pytest.mark.parametrize('backbone', ['small', 'resnet18'])
def test_a_random_cnn_is_made_again_exactly(tmp_path, scenes, backbone):
    job = job_in(tmp_path, scenes, weights='random', backbone=backbone)
    run_job(job)
    torch.rand(7)                                                     # the state of the generator does not matter
    one, two = (open_run(job.run.folder)[0] for _ in range(2))
    for model in (one, two): assert all(t.equal(model.state_dict()[n]) for n, t in job.model.state_dict().items())


def test_records_of_random_cnns_that_nobody_kept(finished):
    record = finished.run.record()
    record['config']['weights'] = ''
    del record['identity']
    (finished.run.folder/'config.json').write_text(json.dumps(record))
    with pytest.raises(RRNError, match='random weights that nobody kept'): open_run(finished.run.folder)


# ---------------------------------------------------------------- finished runs

def test_the_same_command_again_changes_nothing(finished, tmp_path, scenes, monkeypatch, capsys):
    before = content(tmp_path)
    monkeypatch.setattr('rrn.experiments.record.code_version', lambda: 'tomorrow')
    again = job_in(tmp_path, scenes)
    log = run_job(again)
    assert content(tmp_path) == before and 'finished already' in capsys.readouterr().out
    assert all(t.equal(again.model.trained_state()[n]) for n, t in finished.model.trained_state().items()) and log.step.max() == 10


def test_going_on_keeps_what_is_known_of_the_start(tmp_path, scenes, monkeypatch):
    run_job(job_in(tmp_path, scenes), stop_after=5)
    begun = Run(tmp_path/'mine').record()
    monkeypatch.setattr('rrn.experiments.record.code_version', lambda: 'tomorrow')
    run_job(job_in(tmp_path, scenes))
    record = Run(tmp_path/'mine').record()
    assert record['code'] == begun['code'] and [c['code'] for c in record['continued']] == ['tomorrow']
    assert record['training_seconds'] > 0 and record['sentences'] > 0 and len(record['weights']) == 64


def test_weights_of_another_training_are_refused(finished, tmp_path, scenes):
    state = safetensors.torch.load_file(finished.run.weights)
    safetensors.torch.save_file({n: t + 1 for n, t in state.items()}, finished.run.weights)
    with pytest.raises(RRNError, match='not those that the run.s training ended with'): open_run(finished.run.folder)
    with pytest.raises(RRNError, match='not those that the run.s training ended with'): run_job(job_in(tmp_path, scenes))
    finished.run.weights.unlink()
    with pytest.raises(RRNError, match='is gone'): run_job(job_in(tmp_path, scenes))


def test_weights_and_moments_that_are_no_numbers(tmp_path, scenes):
    job = job_in(tmp_path, scenes)
    run_job(job, stop_after=5)
    from rrn.common.checkpoints import resume_from, save_checkpoint
    from rrn.train import make_optimiser
    optimiser = make_optimiser(job.model)
    with torch.no_grad(): job.model.head.score.bias.fill_(float('nan'))
    shutil.rmtree(job.run.checkpoints)
    save_checkpoint(job.run.checkpoints, 5, job.model, optimiser)
    with pytest.raises(RRNError, match='not finite'): resume_from(job.run.checkpoints, job.model, optimiser)
    with torch.no_grad(): job.model.head.score.bias.zero_()
    job.model.head.score.bias.grad = torch.zeros(1)
    optimiser.step()
    optimiser.state[job.model.head.score.bias]['exp_avg'].fill_(float('inf'))
    save_checkpoint(job.run.checkpoints, 5, job.model, optimiser)
    with pytest.raises(RRNError, match='moment'): resume_from(job.run.checkpoints, job.model, optimiser)


@pytest.mark.parametrize('step', [-3, 11])
def test_steps_that_do_not_exist(tmp_path, scenes, step):
    from rrn.common.checkpoints import resume_from, save_checkpoint
    from rrn.train import make_optimiser
    job = job_in(tmp_path, scenes)
    path = save_checkpoint(job.run.checkpoints, step, job.model, make_optimiser(job.model))
    if step < 0: path.rename(path.with_name('step-00000003'))
    with pytest.raises(RRNError, match='says that it is of step'): resume_from(job.run.checkpoints, job.model, make_optimiser(job.model))


# ---------------------------------------------------------------- results

ROWS = pd.DataFrame(dict(sent_id=[1, 2], image_id=[1, 1], intersection=[3, 0], union=[4, 2]))


def add_many(folder, name):
    for i in range(40): add_metrics(Run(folder), f'{name} {i}', ROWS, 'rrn')


def test_three_processes_add_forty_results_each(tmp_path):
    workers = [multiprocessing.Process(target=add_many, args=(tmp_path, name)) for name in 'abc']
    for w in workers: w.start()
    for w in workers: w.join()
    assert set(read_metrics(tmp_path/'metrics.json')) == {f'{name} {i}' for name in 'abc' for i in range(40)}


def test_expressions_that_were_skipped_are_counted(finished, tmp_path, scenes, capsys):
    root = tmp_path/'damaged'
    shutil.copytree(scenes, root)
    samples = open_evaluation(run='mine', folder=str(tmp_path), data_root=str(root)).samples('val')
    pictures = sorted({s.image for s in samples})
    for picture in pictures[::2]: picture.write_bytes(picture.read_bytes()[:500])
    job = open_evaluation(run='mine', folder=str(tmp_path), data_root=str(root), on_corrupt='skip')
    rows = evaluate(job.model, job.samples('val'), job.reader())
    add_metrics(job.run, 'shapes-unc val', rows, 'rrn', job.samples('val'))
    lost = sum(s.image in pictures[::2] for s in samples)
    entry = read_metrics(job.run.metrics)['shapes-unc val']
    assert entry['skipped'] == lost > 0 and entry['sentences'] == len(samples) - lost
    assert f'{lost} of {len(samples)} expressions were skipped' in capsys.readouterr().out
    before = content(job.run.folder)
    for picture in pictures: picture.write_bytes(b'no picture')
    nothing = evaluate(job.model, job.samples('val'), job.reader())
    with pytest.raises(RRNError, match='no expression could be read'): add_metrics(job.run, 'shapes-unc val', nothing, 'rrn', job.samples('val'))
    assert content(job.run.folder) == before


def test_two_data_sets_of_one_name_need_two_labels(finished, tmp_path, scenes, others):
    for root, label in ((scenes, ''), (others, 'others')):
        job = open_evaluation(run='mine', folder=str(tmp_path), data_root=str(root), label=label)
        rows = evaluate(job.model, job.samples('val'), job.reader())
        add_metrics(job.run, f'{job.label} val', rows, 'rrn', job.samples('val'))
    found = read_metrics(finished.run.metrics)
    assert set(found) == {'shapes-unc val', 'others val'} and len({m['data'] for m in found.values()}) == 2
    with pytest.raises(RRNError, match='label'): add_metrics(job.run, 'shapes-unc val', rows, 'rrn', job.samples('val'))
    assert read_metrics(finished.run.metrics) == found


def test_a_fingerprint_is_of_the_data_and_not_of_their_place(scenes, others, tmp_path):
    shutil.copytree(scenes, tmp_path/'moved')
    def fingerprint(root):
        job = open_job(data_root=str(root), **TINY)
        return data_fingerprint([s for split in job.dataset.splits for s in job.samples(split)])
    assert fingerprint(scenes) == fingerprint(tmp_path/'moved') != fingerprint(others)
    picture = next((tmp_path/'moved'/IMAGE_FOLDER).glob('*.jpg'))
    picture.write_bytes(picture.read_bytes() + b'more')
    assert fingerprint(scenes) != fingerprint(tmp_path/'moved')


@pytest.mark.parametrize('protocol', ['rrn', 'released'])
def test_what_is_drawn_is_what_is_scored(tmp_path, scenes, protocol):
    job = job_in(tmp_path, scenes, protocol=protocol)
    run_job(job)
    some = job.samples('val')
    rows = evaluate(job.model, some, job.reader()).set_index('sent_id')
    predictor = Predictor.from_run(job.run.folder, device='cpu')
    predictor.threshold = float(np.median([predictor.set_image(s.image).predict(s.sentence).probability.mean() for s in some[:3]]))
    rows = evaluate(job.model, some, job.reader(), threshold=predictor.threshold).set_index('sent_id')
    for s in some:
        mask, target = predictor.set_image(s.image).predict(s.sentence).mask, s.mask.decode()
        assert ((mask & target).sum(), (mask | target).sum()) == tuple(rows.loc[s.sent_id, ['intersection', 'union']])


# ---------------------------------------------------------------- values

@pytest.mark.parametrize('wrong, message', [
    (dict(log_every=0), 'log_every=0 is too small'), (dict(validate_every=0), 'too small'), (dict(save_every=-1), 'too small'), (dict(workers=-2), 'too small'),
    (dict(lr=float('inf')), 'finite'), (dict(seed=2**70), 'too large'), (dict(seed=-1), 'at least 0'), (dict(D_Q=10**6), 'GiB'), (dict(D_Q=10**9), 'GiB'),
    (dict(image_size=2**20), 'GiB'), (dict(D_S=10**6), 'GiB'), (dict(dataset='un\0c'), 'not known'), (dict(data_root='a\0b'), 'no folder'),
], ids=str)
def test_values_that_cannot_be(scenes, wrong, message):
    with pytest.raises(RRNError, match=message): open_job(**dict(data_root=str(scenes)) | TINY | wrong)
