"""Every path of a GPU on one that is not there: nothing lies on the wrong device, and results are those of the CPU."""
from dataclasses import replace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from rrn.experiments.benchmark import random_batch
from rrn.common.core import seed_everything
from rrn.crf import make_crf, smoothing
from rrn.evaluate import predictions
from rrn.features import feature_cache, FeatureFiles
from rrn.model import preset, PRESETS, RRN
from rrn.optim import AdamTF
from rrn.predict import Predictor
from rrn.text import Vocabulary
from rrn.train import batch_loss, convolution_weights, Engine, make_optimiser, trained_weights, update_step
from pretend_gpu import GPU, OnGPU, pretend_gpu

TINY = dict(backbone='small', weights='', output_stride=8, finetune='', image_size=48, embed_dim=6, D_I=6, D_S=6, D_Q=6,
            precision='fp32')
NAMES = [n for n in PRESETS if n != 'lstm-cnn']
UPDATES = [dict(update=u, pyramid='C5,C4,C3,C2,C1') for u in ('plain', 'fpn', 'rnn', 'lstm', 'released_lstm')]


def lstm(self, x, state=None):
    "nn.LSTM in plain operations: the real one asks a GPU's driver."
    h, c = (x.new_zeros(len(x), self.hidden_size),) * 2 if state is None else (s[0] for s in state)
    outputs = []
    for t in range(x.shape[1]):
        gates = F.linear(x[:, t], self.weight_ih_l0, self.bias_ih_l0) + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, 1), (h[None], c[None])


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(torch.nn.LSTM, 'forward', lstm)
    monkeypatch.setattr(torch.nn.LSTM, 'flatten_parameters', lambda self: None)
    smoothing.cache_clear()
    yield
    smoothing.cache_clear()


def made(c, images=2, sentences=3):
    "A network and a batch, the same each time."
    seed_everything(0)
    return RRN(c, 30), random_batch(c, 30, images, sentences, torch.device('cpu'))


def config(name='paper', **changes): return preset(name, **TINY | changes)


def both(work, c, **how):
    "What `work(model, batch)` gives on the GPU that is not there, brought to the CPU, and on the CPU."
    want = work(*made(c, **how))
    with pretend_gpu():
        model, batch = made(c, **how)
        model.on(GPU)
        assert all(isinstance(t, OnGPU) for t in [*model.parameters(), *model.buffers()])
        got = work(model, batch.to(GPU))
        got = got.cpu() if isinstance(got, torch.Tensor) else got
    return got, want


OTHERS = [config(system='lstm-cnn', pyramid='', background_weight=1/3), config(start='zero')]


@pytest.mark.parametrize('c', [config(n) for n in NAMES] + [config(**u) for u in UPDATES] + OTHERS,
                         ids=lambda c: f'{c.system}-{c.update}-{c.mapping}-{c.start}-{c.resolution}')
@pytest.mark.parametrize('how', [dict(), dict(images=1)], ids=['2x3', '1x3'])
def test_loss(c, how):
    def loss(model, batch):
        maps = model.features(batch.images)
        return batch_loss(model, maps, batch.words, batch.image_of, batch.masks).detach()
    torch.testing.assert_close(*both(loss, c, **how))


@pytest.mark.parametrize('name', ['paper', 'fast', 'released'])
def test_a_step(name, monkeypatch):
    "The optimiser's part of a step; the backward pass asks a GPU's driver, so that the gradients are made up."
    def make_up(self, **_):
        for i, p in enumerate(trained_weights(made_up)): p.grad = torch.full_like(p.detach(), .1) * (i + 1)
    monkeypatch.setattr(torch.Tensor, 'backward', make_up)
    monkeypatch.setattr(OnGPU, 'backward', make_up, raising=False)
    def stepped(model, batch):
        nonlocal made_up
        made_up, optimiser = model, make_optimiser(model)
        for step in range(2): loss, norm = update_step(model, optimiser, batch, step)
        return torch.cat([p.detach().reshape(-1) for p in trained_weights(model)] + [loss.reshape(1), norm.reshape(1)])
    made_up = None
    torch.testing.assert_close(*both(stepped, config(name)))


@pytest.mark.parametrize('where', ['memory', 'files'])
def test_feature_cache(where, tmp_path):
    def maps(model, batch):
        for name in 'ab': (tmp_path/name).write_text(name)
        batch = replace(batch, keys=[(tmp_path/n, False) for n in 'ab'])
        cache = feature_cache(model, 2, 1 << 30, tmp_path/f'cache{batch.images.is_cuda}' if where == 'files' else '')
        with torch.no_grad(): first, again = cache(batch), cache(batch)
        assert all(f.device == batch.images.device for f in again.values())
        return torch.cat([f.reshape(-1) for some in (first, again) for f in some.values()])
    torch.testing.assert_close(*both(maps, config()))


@pytest.mark.parametrize('name', ['paper', 'released'])
@pytest.mark.parametrize('crf', ['none', 'torch'])
def test_predictions(name, crf):
    "Masks at the pictures' own resolution come to the CPU, as evaluation wants them."
    def found(model, batch):
        with torch.no_grad(), make_crf(crf) as refine:   # `__wrapped__`: inference mode knows no subclasses
            masks = predictions.__wrapped__(model.eval(), batch, crf=refine if crf != 'none' else None)
            return torch.stack([torch.as_tensor(m) for m in masks])
    got, want = both(found, config(name, image_size=32))
    assert got.dtype == torch.bool and (got == want).float().mean() > .999


def test_predictor():
    words = Vocabulary.build(['left star', 'right'])
    picture = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    @torch.no_grad()
    def asked(model, batch):
        predictor = Predictor(model, words)
        Predictor.set_image.__wrapped__(predictor, picture)
        found = Predictor.predict.__wrapped__(predictor, ['left star', 'right'])
        return torch.stack([torch.from_numpy(p.probability) for p in found])
    torch.testing.assert_close(*both(asked, config()))


def test_a_tensor_on_the_wrong_device_is_found():
    "The pretended GPU refuses what a real one refuses."
    with pretend_gpu():
        there, here = torch.ones(3, device=GPU), torch.ones(3)
        mixed = (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there.long()])
        for wrong in (*mixed, lambda: np.asarray(there), there.numpy):
            with pytest.raises((RuntimeError, TypeError)): wrong()
        assert (there + torch.tensor(1.)).tolist() == [2, 2, 2] and there[torch.tensor([0])].device == GPU


@pytest.mark.parametrize('name', ['paper', 'fast', 'released'])        # RMI asks for values, which fake tensors lack
def test_the_paper_s_sizes(name):
    "PyTorch's own fake tensors: the whole network at its real sizes on 'cuda', without its memory."
    c = preset(name, weights='random', vocabulary='', precision='fp32')
    with FakeTensorMode():
        torch._C._ensureCUDADeviceGuardSet()
        with torch.device('cuda:0'):
            model = RRN(c, 10_000)
            images, words = torch.zeros(2, 3, 320, 320, dtype=torch.uint8), torch.ones(3, 20, dtype=torch.int64)
            image_of, masks = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 320, 320, dtype=torch.bool)
        logits = model(images, words, image_of)
        assert logits.shape == (3, 1, 40, 40) and logits.device == GPU
