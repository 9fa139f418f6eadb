"""The released program's ResNet-101: layer outputs computed by the program itself, with weights made by rule."""
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from rrn.backbone import backbone_to_tf, Bottleneck, caffe_name, deeplab_resnet101_tf, DeepLabTF, pad_same
from rrn.common.core import RRNError
from rrn.image import BGR_MEAN
from weight_rule import rule

HERE = Path(__file__).parent
SHARED = HERE.parents[1]/'shared'/'reference'
VECTORS = np.load(HERE/'vectors'/'deeplab_backbone.npz')
LAYERS = dict(bn_conv1='C1', res2c_relu='C2', res3b3_relu='C3', res4b22_relu='C4', res5c_relu='C5')
CUTS = {'even': lambda a: a[:, ::2, ::2, ::2], 'ch16': lambda a: a[..., ::16], 'ch4': lambda a: a[..., ::4],
        'sub': lambda a: a[:, ::5, ::5, ::8] if a.shape[1] <= 80 else a[:, ::16, ::16, ::4]}


def needs(name):
    if not (SHARED/name).exists(): pytest.skip(f'../shared/reference/{name} is not here')
    return SHARED/name


@pytest.fixture(scope='module')
def variables(): return {name: rule(name, w.shape) for name, w in backbone_to_tf(DeepLabTF()).items()}


@pytest.fixture(scope='module')
def net(variables): return deeplab_resnet101_tf(variables)


def layers(net, image):
    "NHWC outputs of every layer the vectors name."
    seen, handles = {}, []
    keep = lambda name: lambda module, inputs, output: seen.__setitem__(name, output)
    handles.append(net.conv1.conv.register_forward_hook(keep('conv1')))
    handles.append(net.conv2.register_forward_pre_hook(lambda module, inputs: seen.__setitem__('pool1', inputs[0])))
    for stage in '2345': handles.append(net.get_submodule(f'conv{stage}.a').register_forward_hook(keep(f'res{stage}a_relu')))
    with torch.no_grad(): maps = net(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    for handle in handles: handle.remove()
    seen |= {layer: maps[level] for layer, level in LAYERS.items()}
    return {name: np.moveaxis(x.numpy(), 1, -1) for name, x in seen.items()}


def check(net, arrays, size):
    compared = 0
    for layer, a in layers(net, arrays[f'{size}/image_rgb_uint8']).items():
        assert list(a.shape) == arrays[f'{size}/{layer}/shape'].tolist(), layer
        b = a.astype(np.float64)
        np.testing.assert_allclose([b.mean(), np.abs(b).mean(), b.std(), b.max()], arrays[f'{size}/{layer}/stats'], rtol=1e-5)
        for key in (k for k in CUTS if f'{size}/{layer}/{k}' in arrays):
            want = arrays[f'{size}/{layer}/{key}']; compared += 1
            np.testing.assert_allclose(CUTS[key](a), want, rtol=0, atol=5e-6 * np.abs(want).max(), err_msg=f'{size} {layer}')
    return compared


def test_even_size(net): assert check(net, VECTORS, '64x64') == 10


def test_odd_size(net): assert check(net, VECTORS, '65x65') == 4


def test_full_size(net):
    "320 x 320, the size of the paper: about two seconds."
    assert check(net, np.load(needs('deeplab_backbone.npz')), '320x320') == 11


def test_input(net):
    images = torch.from_numpy(VECTORS['64x64/image_rgb_uint8']).permute(2, 0, 1)[None].float()
    got = np.moveaxis(net.normalise(images).numpy(), 1, -1)[:, ::4, ::4]
    np.testing.assert_allclose(got, VECTORS['64x64/input_sub4'], rtol=0, atol=2e-5)


def test_images_of_a_batch_do_not_mix(net):
    x = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(): together, alone = net(x), net(x[1:2])
    for level in alone: torch.testing.assert_close(together[level][1:2], alone[level], rtol=1e-5, atol=1e-4)


def test_the_variables_are_those_of_the_program(variables):
    meta = json.loads(needs('deeplab_backbone.index.json').read_text())['meta']
    assert {n: list(w.shape) for n, w in variables.items()} == {n: shape for n, shape, _ in meta['variables']} and len(variables) == 520


def test_to_tf_is_the_exact_way_back(net, variables):
    back = backbone_to_tf(net)
    assert back.keys() == variables.keys() and all(np.array_equal(w, variables[n]) for n, w in back.items())


@pytest.mark.parametrize('scheme', ['deeplab', 'resnet'])
def test_the_other_scheme_of_names(net, variables, scheme):
    names = json.loads(needs('rmi_backbone_names.json').read_text())[scheme]
    renamed, factor = {}, np.float32(4)
    has_factor = any(n.endswith('/factor') for n in names['map'])
    for name, target in names['map'].items():
        if name.endswith('/factor'): renamed[name] = np.full(1, factor)
        elif target is None: renamed[name] = np.zeros(names['shapes'][name], np.float32)
        else:
            assert caffe_name(name) == target
            times = factor if has_factor and name.endswith(('mean', 'variance')) else 1
            renamed[name] = variables[target] * times
    assert all(np.array_equal(w, variables[n]) for n, w in backbone_to_tf(deeplab_resnet101_tf(renamed)).items())


@pytest.mark.parametrize('change,message', [
    (lambda v: v.pop('res4b22_branch2b/weights'), 'missing: res4b22_branch2b/weights'),
    (lambda v: v.update({'res6a_branch1/weights': np.zeros(3)}), 'unknown: res6a_branch1/weights'),
    (lambda v: v.update({'bn5c_branch2c/moving_variance': np.full(2048, np.inf)}), 'not finite: bn5c_branch2c/moving_variance'),
    (lambda v: v.update({'res2a_branch2b/weights': v['res2a_branch2b/weights'][0]}), r'res2a_branch2b/weights \[3, 64, 64\] instead of \[3, 3, 64, 64\]')])
def test_what_does_not_fit_is_named(variables, change, message):
    other = dict(variables); change(other)
    with pytest.raises(RRNError, match=message): deeplab_resnet101_tf(other)


def test_everything_wrong_is_told_at_once(variables):
    other = {n: w for n, w in variables.items() if n != 'conv1/weights'} | {'global_step': np.int64(3), 'bn_conv1/beta': np.zeros(3)}
    with pytest.raises(RRNError) as e: deeplab_resnet101_tf(other)
    assert all(name in str(e.value) for name in ('conv1/weights', 'global_step', 'bn_conv1/beta'))


def test_same_padding_and_strided_blocks():
    def zeros(n, kernel):
        row = pad_same(torch.ones(1, 1, n, n), kernel, 2)[0, 0, n // 2]
        return int(row.argmax()), len(row) - n - int(row.argmax())
    assert zeros(64, 7) == (2, 3) and zeros(65, 7) == (3, 3) and zeros(32, 3) == (0, 1) and zeros(33, 3) == (1, 1)
    assert pad_same(torch.ones(1, 1, 7, 8), 1, 2).shape == (1, 1, 7, 8)
    assert Bottleneck(24, 12, stride=2).eval()(torch.randn(2, 24, 9, 14)).shape == (2, 48, 5, 7)
    assert Bottleneck(48, 12, dilation=4)(torch.randn(2, 48, 3, 14)).shape == (2, 48, 3, 14)


def test_shapes_and_colours(net):
    with torch.no_grad(): maps = net(torch.rand(1, 3, 41, 72) * 255)
    assert [m.shape[-2:] for m in maps.values()] == [(21, 36), (11, 18), (6, 9), (6, 9), (6, 9)]
    assert [m.shape[1] for m in maps.values()] == list(net.channels.values()) and not net.training
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 255
    assert torch.allclose(net.normalise(red)[0, :, 0, 0], torch.tensor([0., 0, 255]) - torch.tensor(BGR_MEAN), atol=1e-4)


def test_names_that_stay():
    assert caffe_name('ResNet/group_4_22/block_1/bn/mean') == 'bn4b22_branch2a/moving_mean'
    assert caffe_name('DeepLab/group_5_0/block_add/conv/DW') == 'res5a_branch1/weights'
    for same in ('res2a_branch1/weights', 'DeepLab/group_5_3/block_1/conv/DW', 'text_objseg/fusion/DW'):
        assert caffe_name(same) == same


def test_nothing_fits_and_nan_is_refused(variables):
    with pytest.raises(RRNError, match='and 515 more'): deeplab_resnet101_tf({})
    with pytest.raises(RRNError, match='not finite: bn_conv1/gamma'):
        deeplab_resnet101_tf(variables | {'bn_conv1/gamma': np.full(64, np.nan)})
