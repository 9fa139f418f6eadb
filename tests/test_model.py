"""The network at the paper's sizes, and what must not depend on how a batch is put together."""
from dataclasses import asdict
import pytest
import torch
from rrn.common.core import RRNError, seed_everything
from rrn.loss import segmentation_loss
from rrn.model import Config, preset, RRN
from rrn.train import make_optimiser, update_step


class PlainBatch:
    "Two sentences about one random picture of the paper's size."
    images = torch.randint(0, 256, (1, 3, 320, 320), dtype=torch.uint8)
    words = torch.tensor([[0] * 17 + [4, 5, 6], [0] * 18 + [7, 8]])
    image_of = torch.zeros(2, dtype=torch.long)
    masks = torch.rand(2, 320, 320) < .2
    samples = [None, None]

    def to(self, device):
        for name in ('images', 'words', 'image_of', 'masks'): setattr(self, name, getattr(self, name).to(device))
        return self


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))])
@pytest.mark.parametrize('name', ['paper', 'released'])
def test_a_step_at_the_papers_sizes(name, device):
    "ResNet-101, 320 x 320, D_I = D_S = 1000, D_Q = 500: forward, backward and update; only the head changes."
    seed_everything(0)
    model = RRN(preset(name, weights='random'), vocabulary_size=100).to(device)
    batch = PlainBatch().to(device)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loss, norm = update_step(model.train(), make_optimiser(model), batch, 0)
    assert torch.isfinite(loss) and norm > 0
    changed = {n for n, t in model.state_dict().items() if not t.equal(before[n])}
    assert changed and all(n.startswith('head.') for n in changed)
    assert model.head(model.features(batch.images), batch.words, batch.image_of).shape == (2, 1, 40, 40)


def test_finetuning_changes_the_stages_asked_for():
    seed_everything(0)
    config = preset('small', weights='random', finetune='conv4,conv5', image_size=64)
    model = RRN(config, 30).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    batch = PlainBatch(); batch.images, batch.masks = batch.images[..., :64, :64], batch.masks[:, :64, :64]
    update_step(model, make_optimiser(model), batch, 50)
    changed = {n.split('.')[1] for n, t in model.state_dict().items() if n.startswith('backbone.') and not t.equal(before[n])}
    assert changed == {'conv4', 'conv5'}
    assert not any('running' in n or 'bn' in n for n in model.state_dict() if not model.state_dict()[n].equal(before[n]))


@pytest.mark.processor
def test_batched_is_one_by_one():
    "Loss and gradients of a batch of three sentences about two images are the means over the sentences alone."
    seed_everything(1)
    model = RRN(preset('small', weights='random', image_size=64), 30)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    words, image_of, masks = torch.randint(1, 30, (3, 20)), torch.tensor([0, 1, 0]), torch.rand(3, 64, 64) < .3
    words[1, :15] = 0
    loss = segmentation_loss(model(images, words, image_of), masks, upsample='logits')
    parameters = [p for p in model.parameters() if p.requires_grad]
    together = torch.autograd.grad(loss, parameters)
    alone = [torch.autograd.grad(segmentation_loss(model(images[image_of[i]][None], words[i:i + 1]), masks[i:i + 1], upsample='logits'), parameters)
             for i in range(3)]
    for whole, *parts in zip(together, *alone):
        torch.testing.assert_close(whole, sum(parts) / 3, atol=1e-5 * float(whole.abs().max()) + 1e-9, rtol=1e-4)


def test_presets_are_values_and_nothing_else():
    assert preset('paper') == Config() and preset('paper', update='rnn', lr=None).lr == 2.5e-4
    for call in (lambda: preset('papre'), lambda: preset('paper', learning_rate=1)):
        with pytest.raises(RRNError, match='Allowed'): call()


def test_the_control_changes_the_weight_decay_alone():
    one, two = preset('dlstm', reduction='sum', decay='l2'), preset('dlstm-ours', reduction='sum', decay='l2')
    control = preset('dlstm-control')
    def balance(c): return c.weight_decay / (c.image_size // (c.output_stride if c.resolution == 'feature' else 1))**2
    assert balance(one) == pytest.approx(64 * balance(two)) and balance(control) == pytest.approx(balance(one))
    assert {k for k, v in asdict(control).items() if v != getattr(two, k)} == {'weight_decay'}


def test_weights_of_background_pixels():
    c = preset('lstm-cnn')
    assert c.background_weight == 1/3 and c.image_size // c.output_stride == 16
    with pytest.raises(RRNError, match='background_weight=-1.0 is too small'): Config(background_weight=-1)


def test_the_papers_cnn_is_frozen_at_stride_8():
    with torch.device('meta'): paper = RRN(preset('paper', weights='random'), vocabulary_size=10_000)
    assert paper.backbone.channels == dict(C1=64, C2=256, C3=512, C4=1024, C5=2048)
    assert not any(p.requires_grad for p in paper.backbone.parameters()) and not paper.train().backbone.training
    with torch.device('meta'): maps = paper.backbone(torch.zeros(1, 3, 320, 320))
    assert all(maps[m].shape[-2:] == (40, 40) for m in ('C3', 'C4', 'C5'))


@pytest.mark.parametrize('wrong, message', [
    (dict(update='lsmt'), "Did you mean 'lstm'"), (dict(lr='fast'), 'should be float'), (dict(kernel=2), 'odd'),
    (dict(iterations=0), 'at least 1'), (dict(pyramid='C5,C9'), 'C9'), (dict(image_size=90), 'multiple'),
    (dict(lr=float('nan')), 'finite'), (dict(lr=float('inf')), 'finite'), (dict(seed=2**70), 'too large'),
    (dict(seed=-1), 'at least 0'), (dict(seed=True), 'should be int'),
    (dict(update='plain', normalise='gates'), "Allowed: , update"), (dict(update='rnn', peepholes=True), 'has no peepholes'),
    (dict(normalise='gates', pyramid=''), 'no effect without refinement'), (dict(update='mine:'), 'no import path'),
    (dict(adam='tensorflow'), "set decay='l2'"), (dict(bias_grad_scale=2.), "needs adam='tensorflow'")])
def test_configurations_that_cannot_be(wrong, message):
    with pytest.raises(RRNError, match=message): Config(**wrong)


def test_values_are_brought_to_their_type():
    assert Config(pyramid=['C5', 'C4']).pyramid == 'C5,C4' and Config(lr=1).lr == 1.
