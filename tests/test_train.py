"""rrn.train: schedules, a run that is stopped and goes on, remembered maps, damaged checkpoints, losses that are no numbers."""
from dataclasses import replace
import pytest
import torch
from rrn.batches import group_by_image, Reader, TrainingOrder
from rrn.common.checkpoints import checkpoints, load_trained, resume_from
from rrn.common.core import RRNError, seed_everything
from rrn.data.datasets import open_dataset
from rrn.experiments.record import Run
from rrn.model import preset, RRN
from rrn.text import Vocabulary
from rrn.train import check_finite, learning_rate, make_optimiser, Plan, train

SCENES = {'train': 6, 'val': 3, 'testA': 2, 'testB': 2}
TINY = preset('small', weights='random', embed_dim=6, D_I=6, D_S=6, D_Q=6, image_size=48, iterations=12, seed=3, warmup=0)


def test_schedules():
    c = preset('paper', iterations=100)
    assert learning_rate(0, c) == 2.5e-4 and learning_rate(50, c) == pytest.approx(2.5e-4 * .5**.9) and learning_rate(100, c) == 0
    assert learning_rate(0, preset('paper', warmup=10)) == pytest.approx(2.5e-5)
    assert learning_rate(800_000, preset('released')) == pytest.approx(1e-5)


@pytest.fixture(scope='module')
def samples(scenes): return open_dataset('shapes-unc', scenes).samples('train')


@pytest.fixture(scope='module')
def groups(samples): return group_by_image(samples)


@pytest.fixture(scope='module')
def vocabulary(samples): return Vocabulary.build(s.sentence for s in samples)


@pytest.fixture(scope='module')
def tiny_run(groups, vocabulary, tmp_path_factory):
    "Function that trains the tiny network in a folder of its own: the folder, weights and log."
    tmp = tmp_path_factory.mktemp('runs')

    def run(name, **plan):
        seed_everything(TINY.seed)
        model, order = RRN(TINY, len(vocabulary)), TrainingOrder(groups, 2, 3, TINY.seed)
        plan = {k: str(tmp/v) if k == 'feature_cache' else v for k, v in plan.items()}
        log = train(model, order, Reader(vocabulary, 48), Run(tmp/name), Plan(log_every=4, save_every=5, **plan))
        return tmp/name, {n: t.clone() for n, t in model.trained_state().items()}, log
    return run


@pytest.fixture(scope='module')
def unbroken(tiny_run): return tiny_run('unbroken')


@pytest.fixture(scope='module')
def resumed(tiny_run):
    tiny_run('broken', stop_after=5)
    return tiny_run('broken')


def test_a_stopped_run_ends_like_an_unbroken_one(unbroken, resumed):
    (_, one, log), (folder, two, relog) = unbroken, resumed
    assert all(one[n].equal(two[n]) for n in one)
    assert [p.name for p in checkpoints(folder/'checkpoints')] == ['step-00000010', 'step-00000012']
    assert log.step.tolist() == relog.step.tolist() == [4, 5, 8, 10, 12]


def test_remembered_maps_change_nothing(unbroken, tiny_run, groups):
    _, weights, _ = unbroken
    _, anew, _ = tiny_run('anew', remember=0)
    folder, on_disk, _ = tiny_run('on-disk', feature_cache='maps')
    _, found, _ = tiny_run('on-disk again', feature_cache='maps')
    for n in weights: torch.testing.assert_close(weights[n], anew[n], atol=1e-5, rtol=1e-3)
    assert all(weights[n].equal(on_disk[n]) and weights[n].equal(found[n]) for n in weights)
    assert len(list((folder.parent/'maps').rglob('*.maps'))) == len(groups)


def test_damaged_checkpoints(resumed, vocabulary):
    folder = resumed[0]/'checkpoints'
    newest = checkpoints(folder)[-1]
    (newest/'weights.safetensors').write_bytes((newest/'weights.safetensors').read_bytes()[:-9])
    model = RRN(TINY, len(vocabulary))
    optimiser = make_optimiser(model)
    assert resume_from(folder, model, optimiser) == 10
    for path in checkpoints(folder): (path/'state.pt').write_bytes(b'PK')
    with pytest.raises(RRNError, match='resume=False'): resume_from(folder, model, optimiser)


def test_a_loss_that_is_no_number(groups):
    with pytest.raises(RRNError, match='step 1 .*COCO_train2014'):
        check_finite([.3, float('nan')], [0, 1], TrainingOrder(groups, 2, 3, 3))


def test_weights_of_another_network_and_of_none(unbroken, vocabulary, tmp_path):
    trained = unbroken[0]/'checkpoints'/'step-00000012'/'weights.safetensors'
    other, same = (RRN(replace(TINY, D_Q=d), len(vocabulary)) for d in (7, 6))
    for file, network in ((trained, other), (tmp_path/'none.safetensors', same)):
        with pytest.raises(RRNError, match='another network|cannot be read'): load_trained(network, file)
