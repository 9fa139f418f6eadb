"""Every preset is a system that trains, saves, restores and evaluates by its name alone; old run records stay readable."""
import json
from dataclasses import asdict, replace
import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rrn.backbone import backbone_to_tf, BACKBONES, build_backbone
from rrn.baselines import VGG16FCN
from rrn.common.core import RRNError
from rrn.batches import group_by_image, read_batch
from rrn.evaluate import evaluate, summary
from rrn.loss import segmentation_loss
from rrn.model import Config, preset, PRESETS, SYSTEMS
from rrn.experiments.jobs import open_job, open_run, run_job
from rrn.train import make_optimiser, update_step
from rrn.experiments.record import Run, start_record

TINY = dict(dataset='shapes-unc', image_size=64, embed_dim=6, D_I=6, D_S=6, D_Q=6, iterations=1, images_per_batch=2, sentences_per_image=2, warmup=0)

SCENES = {'train': 4, 'val': 2, 'testA': 1, 'testB': 1}


def test_every_preset_is_here():
    assert set(PRESETS) == {'paper', 'released', 'dlstm', 'dlstm-ours', 'dlstm-control', 'rmi', 'lstm-cnn', 'fast', 'mini', 'small'}
    assert {preset(name).system for name in PRESETS} == set(SYSTEMS)


@pytest.mark.parametrize('name', PRESETS)
@pytest.mark.processor
def test_trains_saves_restores_and_evaluates(name, scenes, tmp_path, monkeypatch):
    "One step on embedded scenes with a narrow CNN of the preset's kind; its own data choices and loss stay."
    monkeypatch.setitem(BACKBONES, 'vgg16_fcn', lambda weights, stride: VGG16FCN(weights, stride, widths=(8, 7, 6)))
    cnn = {} if preset(name).backbone == 'vgg16_fcn' else dict(backbone='small')
    job = open_job(preset=name, data_root=str(scenes), device='cpu', **TINY, weights='random', vocabulary='', **cnn)
    before = {n: t.clone() for n, t in job.model.state_dict().items()}
    job = replace(job, run=Run(tmp_path/'run'))
    log = run_job(job)
    assert log.loss.notna().any() and np.isfinite(log.loss.dropna()).all()
    changed = {n for n, t in job.model.state_dict().items() if not t.equal(before[n])}
    trained = {n.removeprefix('backbone.').split('.')[0] for n in changed if n.startswith('backbone.')}
    assert trained == ({'fc6', 'fc7', 'fc8'} if name == 'lstm-cnn' else set()) and any(n.startswith('head.') for n in changed)

    model, vocabulary, run = open_run(tmp_path/'run', 'cpu')
    assert run.config() == job.config and type(model.head) is SYSTEMS[preset(name).system]
    assert all(t.equal(job.model.trained_state()[n]) for n, t in model.trained_state().items())
    assert all(t.equal(model.state_dict()[n]) for n, t in job.model.state_dict().items()), 'the random CNN is the same one'
    rows, again = (evaluate(m, job.samples('val'), job.reader()) for m in (job.model, model))
    assert rows.equals(again) and summary(rows)['sentences'] == len(job.samples('val'))


# ---------------------------------------------------------------- the loss-scale control

def balance(c):
    "Gradient of the L2 term beside that of the loss, for a convolution that scores a map of ones."
    masks = torch.ones(1, 4 * c.output_stride, 4 * c.output_stride, dtype=torch.bool)
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    segmentation_loss(logits, masks, c.resolution, c.upsample, c.reduction, c.mapping, c.background_weight).backward()
    return c.weight_decay / logits.grad.abs().sum().item()


def test_the_control_has_the_balance_of_row_1():
    "A sum over 64 times more pixels makes the L2 term 64 times lighter; the control makes it 64 times heavier."
    summed = dict(reduction='sum', decay='l2')
    row1, row2, control = balance(preset('dlstm', **summed)), balance(preset('dlstm-ours', **summed)), balance(preset('dlstm-control'))
    assert row1 / row2 == pytest.approx(64) and control == pytest.approx(row1)
    assert balance(preset('dlstm')) == pytest.approx(balance(preset('dlstm-ours')))        # as written, with a mean, there is no difference


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_background_weight_against_pytorch(reduction):
    torch.manual_seed(0)
    z, y = torch.randn(3, 1, 7, 5), torch.rand(3, 7, 5) < .3
    wanted = F.binary_cross_entropy_with_logits(z[:, 0], y.float(), torch.where(y, 1., 1 / 3), reduction=reduction)
    got = segmentation_loss(z, y, reduction=reduction, background_weight=1 / 3)
    torch.testing.assert_close(got, wanted / (3 if reduction == 'sum' else 1))


def test_training_uses_the_background_weight(scenes):
    "The loss of a step is that of the configuration: a background that counts nothing leaves the foreground's part."
    losses = {}
    for weight in (0., 1 / 3, 1.):
        job = open_job(preset='small', data_root=str(scenes), device='cpu', **TINY, weights='random', background_weight=weight)
        batch = read_batch(job.reader(), [g.samples for g in group_by_image(job.samples('train'))[:2]])
        losses[weight] = update_step(job.model, make_optimiser(job.model), batch, 0)[0].item()
    assert 0 < losses[0.] < losses[1.] and losses[1 / 3] == pytest.approx(losses[0.] + (losses[1.] - losses[0.]) / 3)


# ---------------------------------------------------------------- records of earlier versions

def test_records_that_lack_a_newer_field(tmp_path):
    c = preset('small', D_Q=9)
    old = {k: v for k, v in asdict(c).items() if k != 'background_weight'}
    (tmp_path/'config.json').write_text(json.dumps(dict(config=old)))
    assert Run(tmp_path).config() == c
    from rrn.text import Vocabulary
    start_record(Run(tmp_path), c, Vocabulary.build(['left']))                              # and such a run goes on
    (tmp_path/'config.json').write_text(json.dumps(dict(config=old | {'background': 2.})))
    with pytest.raises(RRNError, match='no rrn configuration.*background'): Run(tmp_path).config()
    (tmp_path/'config.json').write_text(json.dumps(dict(config=old | {'D_Q': 'wide'})))
    with pytest.raises(RRNError, match='D_Q'): Run(tmp_path).config()
    for nothing in ({}, dict(config=[1])):
        (tmp_path/'config.json').write_text(json.dumps(nothing))
        with pytest.raises(RRNError, match='no rrn configuration'): Run(tmp_path).config()


# ---------------------------------------------------------------- CNNs by name

def test_the_released_cnn_by_name(tmp_path):
    "From a file with a head's variables and an optimiser's memory beside those of the CNN."
    torch.manual_seed(0)
    net = build_backbone('deeplab_resnet101_tf')
    layers = {}
    for name, value in backbone_to_tf(net).items():
        layer, leaf = name.rsplit('/', 1)
        layers.setdefault(layer, {})[leaf] = value
    layers |= {'fusion': {'biases': np.zeros(3, np.float32)}, 'fc1_voc12_c0': {'weights': np.zeros((1, 1, 2, 3), np.float32)},
               'conv1/weights': {'Adam': np.ones(2, np.float32)}}
    np.save(tmp_path/'cnn.npy', layers, allow_pickle=True)
    again = build_backbone('deeplab_resnet101_tf', tmp_path/'cnn.npy')
    assert all(t.equal(again.state_dict()[n]) for n, t in net.state_dict().items() if 'tracked' not in n)
    assert Config(backbone='deeplab_resnet101_tf', weights=str(tmp_path/'cnn.npy')).output_stride == 8


def test_systems_and_backbones_are_known_before_their_modules_are_imported():
    "A registry imports a module when somebody asks for what it holds; nobody imports one for its side effect."
    program = ("import sys; from rrn.model import SYSTEMS, preset; from rrn.backbone import BACKBONES; "
               "assert {'rmi', 'lstm-cnn'} <= set(SYSTEMS) and {'vgg16_fcn', 'deeplab_resnet101_tf'} <= set(BACKBONES); "
               "assert not {'rrn.baselines', 'rrn.data.weights'} & set(sys.modules); "
               "assert SYSTEMS['rmi'] is sys.modules['rrn.baselines'].RMIHead and 'rrn.data.weights' not in sys.modules")
    forked.run(['-c', program]).check_returncode()
