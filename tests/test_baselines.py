"""rrn.baselines: RMI against arrays its released program computed, LSTM-CNN's loss, and segmentation models with real weights."""
from pathlib import Path
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from rrn.backbone import build_backbone, freeze
from rrn.baselines import (LSTMCNNHead, mobile_deeplab, PooledHead, SegmentationModel, stretch, torchvision_deeplab,
                           upsampling, VGG16FCN, VOC)
from rrn.common.core import RRNError
from rrn.fusion import l2_normalise
from rrn.image import bilinear_tf
from rrn.loss import segmentation_loss
from rrn.model import Head, preset, SYSTEMS
from rrn.data.masks import CocoMask
from rrn.data.refer import IMAGE_FOLDER, read_instances
from rrn.data.weights import from_tf
from test_weights import SHARED, SOURCES, Reference, check_gradients, check_losses, check_output, lstm_steps, networks, nhwc, samples

CASES = samples('rmi_head', 'deeplab/') + samples('rmi_head', 'resnet/')


@pytest.mark.parametrize('folder,name,prefix,sample', CASES)
def test_rmi_stages(folder, name, prefix, sample):
    ref, s = Reference(folder, name, prefix), f's{sample}/'
    head, f, words = from_tf(ref.variables()), ref.features(sample), ref.words(sample)
    with torch.no_grad():
        conv0, (_, states), h = head.project(f['C5']), lstm_steps(head.encoder, words), head.read(f, words)
        size = ref[s + 'mult_state'].shape[1:]
        stages = {'embedded_seq': head.encoder.embedding(words)[0, :, None], 'wlstm_state_steps': states,
                  'atanh': nhwc(stretch(h)), 'mlp_relu': nhwc(stretch(h).relu()),
                  'mult_state': bilinear_tf(stretch(h), size).mean(1)}                       # the program's picture of its state
        if prefix == 'deeplab/': stages |= {'conv0': nhwc(conv0), 'visual_l2': nhwc(l2_normalise(conv0))}
        checked = sum(ref.check(s + key, value) for key, value in stages.items())
        assert checked == len(stages)
        np.testing.assert_allclose(nhwc(h).reshape(-1, h.shape[1]), ref[s + 'alstm_state_final'][:, h.shape[1]:], rtol=0, atol=1e-5)
    check_output(head, ref, sample)
    if prefix == 'deeplab/': check_losses(head, ref, sample, 'feature')


def has_steps(folder, name, prefix, sample): return f's{sample}/h_a_steps' in Reference(folder, name, prefix)


@pytest.mark.parametrize('folder,name,prefix,sample', [c for c in CASES if has_steps(*c.values)])
def test_rmi_word_by_word(folder, name, prefix, sample):
    "The state after every word is that of a shorter sentence: all twenty prefixes in one batch."
    ref = Reference(folder, name, prefix)
    head, f, words = from_tf(ref.variables()), ref.features(sample), ref.words(sample)
    prefixes = torch.stack([torch.cat([words[0, :n], words.new_zeros(20 - n)]) for n in range(1, 21)])
    with torch.no_grad(): h = head.read(f, prefixes, torch.zeros(20, dtype=torch.int64))
    want = ref[f's{sample}/h_a_steps']
    np.testing.assert_allclose(np.moveaxis(h.numpy(), 1, -1).reshape(20, -1, h.shape[1])[-len(want):], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('folder,name,prefix', networks(('rmi_head', 'deeplab/')))
def test_rmi_gradients(folder, name, prefix):
    ref = Reference(folder, name, prefix)
    check_gradients(from_tf(ref.variables()), ref, 1, 'feature', {'C5': 's1/grad_feat'})


@pytest.mark.parametrize('folder,name,prefix', networks(('rmi_head', 'deeplab/')))
def test_rmi_says_nothing_to_nothing(folder, name, prefix):
    ref = Reference(folder, name, prefix)
    head = from_tf(ref.variables())
    with torch.no_grad(): assert torch.equal(head(ref.features(6), ref.words(6)), head.score.bias.expand(1, 1, 5, 5))
    assert not ref.words(6).any() and (ref['s6/pred'] == ref.variables()['text_objseg/conv2/biases']).all()


@pytest.mark.parametrize('system', SYSTEMS)
def test_systems_share_a_signature(system):
    "Built alike, called alike, sentences of an image share its part, blind heads are blind."
    c = preset('released', embed_dim=5, D_I=6, D_S=7, D_Q=8, image_size=24)
    channels = dict(C3=6, C4=8, C5=10)
    torch.manual_seed(0)
    f = {m: torch.randn(2, n, 3, 5) for m, n in channels.items()}
    words, image_of = torch.tensor([[0, 0, 3], [4, 5, 6], [0, 7, 8], [0, 0, 0]]), torch.tensor([1, 0, 1, 1])
    head = SYSTEMS[system](c, channels, 20, (3, 5))
    assert head.config is c and head(f, words[:2]).shape[:2] == (2, 1) and head(f, words, image_of, size=(17, 23)).shape == (4, 1, 17, 23)
    assert head(f, words, image_of)[:, 0].flatten(1).unique(dim=0).shape[0] == 4
    blind = SYSTEMS[system](preset('released', embed_dim=5, D_I=6, D_S=7, D_Q=8, image_size=24, blind=True), channels, 20, (3, 5))
    assert torch.equal(blind(f, words, image_of), blind(f, words.flip(1) + 1, image_of))
    assert SYSTEMS['rrn'] is Head


# ---------------------------------------------------------------- LSTM-CNN

@pytest.mark.parametrize('foreground,background', [(1, 1), (1, .25), (3, 1)])
@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_weighed_loss(foreground, background, kind):
    if SHARED not in SOURCES: pytest.skip('../shared/reference is not here')
    v = np.load(SHARED/'preprocess.npz')
    key = f'loss/weighed_{foreground:g}_{background:g}_{kind}'
    if key not in v: pytest.skip(f'{key} is not among the vectors')
    z = torch.from_numpy(np.moveaxis(v['loss/scores'], -1, 1).copy()).requires_grad_()
    y = torch.from_numpy(v['loss/labels_soft' if kind == 'soft' else 'loss/labels'][..., 0].astype(np.float32))
    loss = foreground * segmentation_loss(z, y, reduction='sum', background_weight=background / foreground)
    loss.backward()
    np.testing.assert_allclose(loss.detach(), v[key], rtol=1e-5)
    np.testing.assert_allclose(np.moveaxis(z.grad.numpy(), 1, -1), v[f'{key}_grad'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('stride', [2, 8, 16, 32])
def test_deconvolution_starts_bilinear(stride):
    up, x = upsampling(stride), torch.randn(2, 1, 5, 3)
    with torch.no_grad(): y = up(x)
    assert y.shape == (2, 1, 5 * stride, 3 * stride)
    inner = (..., slice(stride // 2, -stride // 2), slice(stride // 2, -stride // 2))
    torch.testing.assert_close(y[inner], torch.nn.functional.interpolate(x, scale_factor=stride, mode='bilinear')[inner], atol=1e-5, rtol=0)


def test_lstm_cnn_reads_padding():
    "The same words with more padding in front are another sentence to this system, as to its program."
    c = preset('released', embed_dim=5, D_S=7, D_Q=8, score_kernel=1)
    torch.manual_seed(0)
    head, f = LSTMCNNHead(c, dict(C5=10), 20), {'C5': torch.randn(1, 10, 2, 3)}
    a, b = (head(f, torch.tensor([w])) for w in ([3, 4], [0, 3, 4]))
    assert a.shape == (1, 1, 64, 96) and not torch.allclose(a, b)


def test_lstm_cnn_learns():
    "Everything of the head trains through the deconvolution."
    torch.manual_seed(0)
    c = preset('released', embed_dim=6, D_S=9, D_Q=8, score_kernel=1, image_size=24)
    head, f = LSTMCNNHead(c, dict(C5=12), 10, (3, 3)), {'C5': torch.randn(2, 12, 3, 3)}
    words, masks = torch.tensor([[0, 3], [4, 5]]), torch.zeros(2, 24, 24)
    masks[0, :8], masks[1, 16:] = 1, 1
    optimiser, losses = torch.optim.Adam(head.parameters(), .03), []
    for _ in range(40):
        loss = segmentation_loss(head(f, words), masks, background_weight=1/3)
        optimiser.zero_grad(); loss.backward(); optimiser.step(); losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_vgg_layers():
    "Sixteen layers of the published shapes; odd sizes round up at every pooling."
    with torch.device('meta'): net = VGG16FCN()
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 16 and net.fc6.weight.shape == (4096, 512, 7, 7) and net.fc8.out_channels == net.channels['C5'] == 1000
    for size, small in (((512, 512), (16, 16)), ((33, 97), (2, 4))):
        with torch.device('meta'): assert net(torch.zeros(1, 3, *size))['C5'].shape == (1, 1000, *small)


def test_vgg_file_of_another_network(tmp_path):
    torch.save({'features.0.weight': torch.ones(64, 3, 3, 3), 'classifier.0.weight': torch.ones(5, 9)}, tmp_path/'vgg.pth')
    with pytest.raises(RRNError, match='fc6.weight'): VGG16FCN(tmp_path/'vgg.pth', widths=(5, 4, 3))
    torch.save({'x': torch.ones(1)}, tmp_path/'x.pth')
    with pytest.raises(RRNError, match='unexpected: x'): VGG16FCN(tmp_path/'x.pth', widths=(5, 4, 3))


# ---------------------------------------------------------------- segmentation

def test_torchvision_deeplab(tmp_path):
    "The same scores as torchvision's own model, from one file."
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=21).eval()
    torch.save(theirs.state_dict(), tmp_path/'deeplabv3.pth')
    ours = torchvision_deeplab(tmp_path/'deeplabv3.pth'); (tmp_path/'deeplabv3.pth').unlink()
    image = torch.randint(256, (1, 3, 49, 66))
    with torch.no_grad(): want = theirs(ours.backbone.normalise(image.float()))['out']; got = ours(image)
    torch.testing.assert_close(got, want, atol=1e-4 * want.abs().max().item(), rtol=0)
    assert not ours.training and ours.masks(image, VOC[int(want[0, :, 7, 9].argmax())])[0, 7, 9]


@pytest.fixture(scope='module')
def mobile(shared):
    weights = shared/'weights'
    return mobile_deeplab(weights/'mobilenetv2_100_deeplab_voc.safetensors', weights/'deeplab_voc_head.safetensors')


def people(folder, most):
    "(picture, mask) of the first pictures with one person of at least a tenth of the picture, and nobody else."
    data = read_instances(folder/'refcoco'/'instances.json')
    of_image = {}
    for a in data.annotations.values():
        if data.categories[a['category_id']] == 'person': of_image.setdefault(a['image_id'], []).append(a)
    for image, (a, *others) in sorted(of_image.items()):
        entry = data.images[image]
        if others or a['iscrowd'] or a['area'] < .1 * entry['height'] * entry['width'] or not most: continue
        most -= 1
        yield (np.array(Image.open(folder/IMAGE_FOLDER/entry['file_name']).convert('RGB')),
               CocoMask(a['segmentation'], entry['height'], entry['width']).decode())


def test_mobile_deeplab_finds_people(mobile, shared):
    "Overall IoU of persons on some photographs; over many more pictures 0.72 to 0.78 was measured for these weights."
    intersection = union = 0
    for picture, mask in people(shared/'data'/'coco-mini', 6):
        got = mobile.masks(torch.from_numpy(picture).permute(2, 0, 1)[None], 'person')[0].numpy()
        assert got.shape == mask.shape and mobile(torch.from_numpy(picture).permute(2, 0, 1)[None]).shape == (1, 21, *mask.shape)
        intersection += (got & mask).sum(); union += (got | mask).sum()
    assert .7 < intersection / union < .97


CHANNELS, TINY = dict(C3=6, C4=8, C5=10), dict(embed_dim=5, D_I=6, D_S=7, D_Q=8)


@pytest.fixture
def asked():
    "Maps of two images and four sentences about them, the last of which says nothing."
    torch.manual_seed(0)
    features = {m: torch.randn(2, c, 3, 5) for m, c in CHANNELS.items()}
    words = torch.tensor([[0, 0, 3, 0], [4, 5, 6, 2], [0, 0, 7, 8], [0, 0, 0, 0]])
    return features, words, torch.tensor([1, 0, 1, 0])


def head_of(system, **values): return SYSTEMS[system](preset('released', **dict(score_kernel=1, **TINY) | values), CHANNELS, 20)


def test_rmi_is_finite_in_half_precision(asked):
    features, words, image_of = asked
    rmi = head_of('rmi')
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        assert rmi({'C5': features['C5'] * 1e4}, words, image_of).isfinite().all()
        assert rmi.read(features, words, image_of).dtype == torch.float32


@pytest.mark.parametrize('system', ['rmi', 'lstm-cnn'])
def test_sentences_need_their_images(asked, system):
    with pytest.raises(RRNError, match='image_of'): head_of(system)(*asked[:2])


def test_vgg_and_its_stages(tmp_path):
    with torch.no_grad(): assert VGG16FCN(widths=(6, 5, 4)).eval()(torch.zeros(1, 3, 33, 65))['C5'].shape == (1, 4, 2, 3)
    tuned = freeze(VGG16FCN(widths=(6, 5, 4)), ['conv5'])
    assert {n.split('.')[0] for n, p in tuned.named_parameters() if p.requires_grad} == {'fc6', 'fc7', 'fc8'}
    with pytest.raises(RRNError, match='set output_stride=32'): build_backbone('vgg16_fcn')
    with torch.device('meta'): assert build_backbone('vgg16_fcn', output_stride=32).channels == dict(C5=1000)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs['D'])
    state = {f'features.{k}': v for k, v in features.state_dict().items()}
    for i, (a, b) in zip((0, 3, 6), ((512 * 49, 6), (6, 5), (5, 4))):
        state |= {f'classifier.{i}.weight': torch.zeros(b, a), f'classifier.{i}.bias': torch.zeros(b)}
    torch.save(state, tmp_path/'vgg.pth')
    VGG16FCN(tmp_path/'vgg.pth', widths=(6, 5, 4))
    with pytest.raises(RRNError, match='fc6.weight'): VGG16FCN(tmp_path/'vgg.pth', widths=(7, 5, 4))


def test_stages_of_lstm_cnn(asked):
    features, words, image_of = asked
    wide = LSTMCNNHead(preset('released', image_size=96, **TINY), CHANNELS, 20, (12, 12))
    assert wide(features, words, image_of).shape == (4, 1, 24, 40)
    high, low = head_of('lstm-cnn'), head_of('lstm-cnn', resolution='feature')
    assert high(features, words, image_of)[3].std() > 0 and not high.encoder(words)[3].eq(0).any()      # padding is read
    assert low(features, words, image_of).shape == (4, 1, 3, 5)
    assert high.load_state_dict(low.state_dict(), strict=False).missing_keys == ['up.weight']
    assert high(features, words, image_of).allclose(upsampling(32)(low(features, words, image_of)), atol=1e-6)


def test_classes_of_a_segmentation_model():
    model, pictures = SegmentationModel(build_backbone('small')).eval(), torch.randint(256, (2, 3, 33, 50))
    assert sum(model.masks(pictures, n).int() for n in VOC).eq(1).all() and len(VOC) == 21
    with pytest.raises(RRNError, match="Did you mean 'person'"): model.masks(pictures, 'persons')


def test_damaged_and_narrow_heads(tmp_path):
    torch.save(PooledHead(), tmp_path/'model.pth')
    torch.save(PooledHead(5).state_dict(), tmp_path/'narrow.pth')
    for bad in ('model.pth', 'narrow.pth'):
        with pytest.raises(RRNError): mobile_deeplab(tmp_path/'none.pth', tmp_path/bad)
