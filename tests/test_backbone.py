"Backbones against the measured maps of real weights, downloads that fail, damaged files, and more networks of timm."
import os
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from rrn import backbone as bb
from rrn.common.core import repo_root, RRNError

SHARED = repo_root().parent/'shared'
WEIGHTS = SHARED/'weights'/'mobilenetv2_100_deeplab_voc.safetensors'
PICTURE = SHARED/'data/coco-mini/images/mscoco/images/train2014/COCO_train2014_000000000247.jpg'
needs_shared = pytest.mark.skipif(not (WEIGHTS.exists() and PICTURE.exists()), reason='../shared is not here')


def sample(size=(65, 98), n=1):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, *size))).float()


@needs_shared
def test_measured_maps_of_the_deeplab_weights(capsys):
    "mean, std, min, max of the five maps for one photograph, as stated beside the weights."
    measured = {'C1': (0.0120, 7.8598, -55.319, 62.289), 'C2': (-0.1317, 8.8594, -58.545, 59.045),
                'C3': (0.0075, 7.8375, -48.866, 39.871), 'C4': (0.3116, 4.8887, -27.767, 24.866),
                'C5': (0.0124, 2.7587, -14.494, 13.051)}
    image = torch.from_numpy(np.array(Image.open(PICTURE).convert('RGB'))).permute(2, 0, 1)[None].float()
    assert image.shape == (1, 3, 254, 384)
    net = bb.freeze(bb.build_backbone('mobilenetv2_100', WEIGHTS))
    assert net.name == 'mobilenetv2_100_deeplab' and 'note:' in capsys.readouterr().out
    with torch.no_grad(): maps = net(image)
    for level, (mean, std, low, high) in measured.items():
        c = maps[level].double()
        found = (c.mean().item(), c.std(correction=0).item(), c.min().item(), c.max().item())
        assert found == pytest.approx((mean, std, low, high), abs=2e-2), level
    plain = bb.TimmBackbone('mobilenetv2_100', WEIGHTS).eval()
    with torch.no_grad(): wrong = plain(image)['C5'].double().std().item()
    assert abs(wrong - 2.7587) > 0.1, 'padding and colours would not matter'


@needs_shared
@pytest.mark.parametrize('keep', [0, 7, 8, 100, 5000, 1_000_000, -1])
def test_truncated_safetensors(tmp_path, keep):
    (tmp_path/'cut.safetensors').write_bytes(WEIGHTS.read_bytes()[:keep])
    with pytest.raises(RRNError, match='cut.safetensors'): bb.load_weights(tmp_path/'cut.safetensors')


@pytest.mark.parametrize('keep', [0, 1, 60, 500, 3000, -1])
def test_truncated_pickle(tmp_path, keep):
    torch.save(bb.SmallResNet().state_dict(), tmp_path/'whole.pth')
    (tmp_path/'cut.pth').write_bytes((tmp_path/'whole.pth').read_bytes()[:keep])
    with pytest.raises(RRNError, match='cut.pth'): bb.load_weights(tmp_path/'cut.pth')


def test_a_pickle_that_runs_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    torch.save({'a': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(RRNError): bb.load_weights(tmp_path/'evil.pth')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('value', [[], {}, {'a': [1.]}, {'state_dict': {}}, {'state_dict': {'a': 1}}, torch.ones(2)])
def test_not_a_state_dict(tmp_path, value):
    torch.save(value, tmp_path/'odd.pth')
    with pytest.raises(RRNError, match='odd.pth'): bb.load_weights(tmp_path/'odd.pth')


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(RRNError, match='missing'): bb.load_weights(tmp_path)


def test_weights_of_another_network(tmp_path):
    torch.save(bb.SmallResNet().state_dict(), tmp_path/'small.pth')
    with pytest.raises(RRNError, match='and .* more'): bb.build_backbone('mobilenetv2_100', tmp_path/'small.pth')
    with pytest.raises(RRNError, match='of another shape'): bb.SmallResNet((16, 24, 48, 80, 112), tmp_path/'small.pth')


def test_a_failed_load_changes_nothing(tmp_path):
    net = bb.SmallResNet()
    before = net.conv1[0].weight.clone()
    state = net.state_dict() | {'conv1.0.weight': torch.ones_like(before), 'more': torch.ones(1)}
    with pytest.raises(RRNError): bb.fit_weights(net, state, 'a file')
    assert net.conv1[0].weight.equal(before)


def test_imagenet_file_of_torchvision_and_old_files_without_counters(tmp_path):
    import torchvision
    torch.manual_seed(0)
    state = {k: v for k, v in torchvision.models.resnet101().state_dict().items() if 'num_batches' not in k}
    safetensors.torch.save_file(state, tmp_path/'imagenet.safetensors')
    net = bb.ResNet101(tmp_path/'imagenet.safetensors')
    assert net.net.layer4[2].conv3.weight.equal(state['layer4.2.conv3.weight'])


@pytest.mark.parametrize('weights', ['imagenet', 'deeplab'])
def test_weights_that_are_missing_say_which_file_goes_where(monkeypatch, tmp_path, weights):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(RRNError, match=rf'https://.*resnet101.*{tmp_path}/checkpoints/.*resnet101.*pth'): bb.ResNet101(weights)


def test_timms_weights_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(RRNError, match=rf'https://.*resnet18.*{tmp_path}/checkpoints/.*resnet18.*safetensors'): bb.build_backbone('resnet18', 'imagenet')


def test_resnet101_is_torchvisions_segmentation_backbone():
    "The keys and the maps of DeepLabV3's own backbone."
    import torchvision
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None).backbone.eval()
    ours = bb.ResNet101().eval()
    bb.fit_weights(ours.net, theirs.state_dict(), 'torchvision')
    x = sample()
    with torch.no_grad(): assert ours(x)['C5'].equal(theirs((x - ours.mean)/ours.std)['out'])


@pytest.mark.parametrize('stride', [8, 16, 32])
@pytest.mark.parametrize('name', ['small', 'resnet101', 'resnet18', 'mobilenetv3_small_100', 'regnety_002', 'cspdarknet53', 'mobilenetv2_100_deeplab'])
def test_promises(name, stride):
    net = bb.freeze(bb.build_backbone(name, output_stride=stride))
    maps = net(sample())
    assert net.name == name and list(maps) == list(net.channels) == list(net.strides) == list(bb.LEVELS)
    for level, c in maps.items():
        s = net.strides[level]
        assert c.shape == (1, net.channels[level], -(-65//s), -(-98//s)) and not c.requires_grad
    assert net.strides['C5'] == stride


@pytest.mark.parametrize('name', ['small', 'resnet18', 'mobilenetv2_100', 'convnext_atto'])
def test_only_the_stage_asked_for_trains(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(bb.freeze(bb.build_backbone(name), ('conv4', 'conv5')))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, 0.1)
    model(sample(n=2))['C5'].square().mean().backward()
    assert all(p.grad is not None for p in trainable)
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not v.equal(before[k])}
    stages = bb.stage_parameters(model[0])
    assert changed and changed <= {f'0.{n}' for c in ('C4', 'C5') for n in stages[c]}
    assert not any('bn' in k or 'running' in k or 'norm' in k for k in changed)


def test_the_number_of_pictures_in_a_batch_does_not_matter():
    net = bb.freeze(bb.SmallResNet())
    x = sample(n=3)
    assert net(x)['C5'][1:2].allclose(net(x[1:2])['C5'], atol=1e-5)


def test_unknown_names():
    for name in ('resnet', 'mobilenet', '', 'small ', '../small'):
        with pytest.raises(RRNError, match='backbone='): bb.build_backbone(name)
    with pytest.raises(RRNError, match='output_stride'): bb.build_backbone('small', output_stride=4)
    for name in ('swin_tiny_patch4_window7_224', 'vgg11', 'densenet121'):
        with pytest.raises(RRNError, match='gives no feature pyramid'): bb.build_backbone(name)


def test_the_networks_we_recommend_give_pyramids():
    for name in bb.TIMM_EXAMPLES:
        with torch.device('meta'): net = bb.build_backbone(name)
        assert net.strides['C5'] == 8, name


def test_pictures_of_another_shape():
    with pytest.raises(RRNError, match=r'\(B, 3, H, W\)'): bb.SmallResNet().normalise(torch.zeros(3, 4, 4))


def test_dilation_of_the_last_stages():
    resnet, small = bb.ResNet101(), bb.SmallResNet()
    assert resnet.net.layer4[2].conv2.dilation == (4, 4) and resnet.net.layer3[5].conv2.dilation == (2, 2)
    assert [small.conv4.conv1.dilation, small.conv5.conv2.dilation] == [(2, 2), (4, 4)]
    assert bb.Block(6, 10, 2)(torch.rand(2, 6, 13, 9)).shape == (2, 10, 7, 5)


def test_the_small_network_is_small():
    from torch.utils.flop_counter import FlopCounterMode
    with torch.no_grad(), FlopCounterMode(display=False) as count: bb.SmallResNet().eval()(torch.rand(1, 3, 96, 96))
    assert count.get_total_flops()/2 < 60e6


def test_networks_of_four_levels_and_settings_that_do_not_exist(tmp_path):
    four = bb.TimmBackbone('convnext_atto', output_stride=16).eval()
    assert list(four.channels) == ['C2', 'C3', 'C4', 'C5'] and bb.stage_parameters(four)['C3'][0].startswith('net.stages_1.')
    full = timm.create_model('convnext_atto')
    torch.save(full.state_dict(), tmp_path/'full.pth')
    four = bb.TimmBackbone('convnext_atto', tmp_path/'full.pth', 16)
    assert four.net.state_dict()['stages_3.blocks.1.gamma'].equal(full.state_dict()['stages.3.blocks.1.gamma'])
    with pytest.raises(RRNError, match='no feature pyramid'): bb.TimmBackbone('vit_tiny_patch16_224')
    with pytest.raises(RRNError, match='mean_std'): bb.TimmBackbone('mobilenetv2_100', mean_std='vgg')


def test_stages_begin_where_they_should():
    assert bb.stage_parameters(bb.ResNet101())['C5'][0] == 'net.layer4.0.conv1.weight'
    assert bb.stage_parameters(bb.TimmBackbone('mobilenetv2_100'))['C4'][0].startswith('net.blocks.3.')


def test_a_frozen_network_stays_in_evaluation_mode():
    model = torch.nn.Sequential(bb.freeze(bb.SmallResNet()))
    model.train()
    assert model.training and not any(m.training for m in model[0].modules())
    assert not model(torch.rand(4, 3, 96, 96)*255)['C5'].requires_grad


def test_what_trains_when_a_stage_is_tuned():
    tuned = bb.freeze(bb.SmallResNet(), ['conv5']).train()
    trains = [n for n, p in tuned.named_parameters() if p.requires_grad]
    assert trains == ['conv5.conv1.weight', 'conv5.conv2.weight', 'conv5.short.0.weight']
    with pytest.raises(RRNError, match='conv3, conv4, conv5'): bb.freeze(bb.SmallResNet(), ['conv2'])


def test_checksum_is_of_the_tensors_alone():
    one, two, other = (bb.build_backbone('small', weights) for weights in ('embedded', '', 'random'))
    assert bb.cnn_checksum(one) == bb.cnn_checksum(one.to(memory_format=torch.channels_last))
    assert bb.cnn_checksum(one) == bb.cnn_checksum(bb.build_backbone('small', 'embedded')) != bb.cnn_checksum(other)
    assert bb.cnn_checksum(two) != bb.cnn_checksum(one), 'without weights a network is random'


def test_names_aliases_and_files(tmp_path):
    safetensors.torch.save_file(bb.SmallResNet().state_dict(), tmp_path/'small.safetensors')
    assert bb.build_backbone('small', tmp_path/'small.safetensors').name == 'small'
    safetensors.torch.save_file(bb.TimmBackbone('mobilenetv2_100').net.state_dict(), tmp_path/'my_deeplab.safetensors')
    deeplab = bb.build_backbone('mobilenetv2_100', tmp_path/'my_deeplab.safetensors').eval()
    assert deeplab.name == 'mobilenetv2_100_deeplab' and deeplab.normalise(torch.full((1, 3, 1, 1), 255.)).eq(1).all()
    with pytest.raises(RRNError, match="Did you mean 'mobilenetv2_100'"): bb.build_backbone('mobilnetv2_100')
    with pytest.raises(RRNError, match='missing'): bb.build_backbone('small', tmp_path/'absent.pth')


def test_a_network_of_ones_own(monkeypatch):
    narrow = lambda weights, output_stride: bb.SmallResNet((4, 5, 6, 7, 8), weights, output_stride)
    monkeypatch.setitem(bb.BACKBONES, 'narrow', narrow)
    assert bb.build_backbone('narrow', output_stride=16).channels['C5'] == 8
    monkeypatch.delitem(bb.BACKBONES, 'narrow')
    with pytest.raises(RRNError, match="'narrow' is not known"): bb.build_backbone('narrow')
