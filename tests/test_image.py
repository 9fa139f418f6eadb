"""rrn.image against arrays computed by the released program (scikit-image 0.13.1, TensorFlow 1.2.1)."""
from pathlib import Path
import numpy as np
import pytest
import torch
from rrn.common.core import RRNError
from rrn.image import (BGR_MEAN, bilinear_tf, coordinates, fit, image_in, image_released, mask_in, mask_out,
                       net_input_released, place_image, place_mask, RESAMPLINGS, released_prediction_back,
                       resize_and_crop_released, resize_and_pad_released, resize_released, train_mask_released, unplace)

HERE = Path(__file__).parent
SHARED = HERE.parents[1]/'shared'/'reference'/'preprocess.npz'
VECTORS = np.load(HERE/'vectors'/'preprocess.npz')
RESIZE = {'pad': resize_and_pad_released, 'crop': resize_and_crop_released}
REAL = [(480, 640), (640, 480), (427, 640), (640, 427), (426, 640), (612, 612), (333, 500), (375, 500), (500, 375), (360, 480),
        (480, 360), (320, 320), (319, 320), (640, 640), (321, 481), (160, 160), (551, 640), (240, 320)]


@pytest.fixture(scope='module')
def shared():
    if not SHARED.exists(): pytest.skip('../shared/reference is not here: its photograph-derived arrays are not copied')
    return np.load(SHARED)


def unpack(packed, shape): return np.unpackbits(packed)[:np.prod(shape)].reshape(shape).astype(bool)


def cases(arrays, group, leaf):
    "(input, function of the program, its size, expected) for each `group/<i>/<pad|crop>_<H>x<W>/<leaf>`."
    for key in (k for k in arrays.files if k.startswith(group + '/') and k.endswith('/' + leaf)):
        _, i, how, _ = key.split('/')
        name, size = how.split('_')
        yield key, arrays[f'{group}/{i}/in'], RESIZE[name], tuple(map(int, size.split('x'))), arrays[key]


def whole_positions(n_in, n_out):
    "Whether some output position of the axis falls exactly on an input pixel, where the program's rounding errors count."
    return (n_in * (2 * np.arange(n_out) + 1) % (2 * n_out) == n_out % (2 * n_out)).any()


def check_bytes(key, got, want):
    "Bytes agree but for rounding ties of ours that theirs, with errors of 1e-14, decides one way or the other."
    tie = np.abs(got - np.floor(got) - 0.5) < 1e-9
    assert np.array_equal(np.rint(got)[~tie], want[~tie]), key
    assert np.abs(np.rint(got) - want).max() <= 1, key


def check_bilinear(arrays, name):
    x = arrays[f'bilinear/{name}/in']
    if x.ndim == 1: x = unpack(x, (1, 320, 320, 1)).astype(np.float32)
    size = [int(n) for n in name.split('to')[1].split('x')]
    y = bilinear_tf(torch.from_numpy(x).permute(0, 3, 1, 2), (size[0], size[-1])).permute(0, 2, 3, 1).numpy()
    views = {'out': y, 'out_every3': y[:, ::3, ::3], 'out_lastrows': y[:, -9:], 'out_lastcols': y[:, :, -9:]}
    known = {k: v for k, v in views.items() if f'bilinear/{name}/{k}' in arrays}
    assert known
    for k, v in known.items(): np.testing.assert_allclose(v, arrays[f'bilinear/{name}/{k}'], rtol=0, atol=1e-6, err_msg=k)


@pytest.mark.parametrize('group', ['im', 'mask'])
def test_floats(group):
    n = 0
    for key, x, resize, size, want in cases(VECTORS, group, 'float'):
        got = resize(x if group == 'im' else x.astype(bool), *size); n += 1
        assert got.dtype == np.float64 and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12, err_msg=key)
    assert n == {'im': 1, 'mask': 44}[group]


def test_bytes():
    shares = {}
    for key, x, resize, size, want in cases(VECTORS, 'im', 'ubyte'):
        check_bytes(key, resize(x, *size) * 255, want)
        shares[key] = (np.rint(resize(x, *size) * 255) != want).mean()
        if resize is resize_and_pad_released:
            assert np.abs(image_released(x, *size).astype(int) - want).max() <= 1
    # ties are common only where pixels average: 80 -> 40 (a quarter of the pixels is one), 40 -> 48 and 20 -> 40 (eighths)
    often = {key.split('/')[1] for key, share in shares.items() if share > 0.01}
    assert often <= {'7', '2', '6'} and max(shares.values()) < 0.12 and np.median(list(shares.values())) < 1e-3


def test_grey():
    for key, x, resize, size, want in cases(VECTORS, 'im', 'gray_ubyte'):
        check_bytes(key, resize(x[..., 0], *size) * 255, want)


def test_masks_grow_as_released():
    exact = 0
    for key, x, resize, size, packed in cases(VECTORS, 'mask', 'gt0'):
        got, want, value = resize(x.astype(bool), *size) > 0, unpack(packed, size), VECTORS[key.replace('gt0', 'float')]
        assert not (got & ~want & (value > 1e-12)).any() and (value[want & ~got] < 1e-12).all(), key   # rounding errors only
        exact += np.array_equal(got, want)
    assert exact >= 30


@pytest.mark.parametrize('name', sorted({k.split('/')[1] for k in VECTORS.files if k.startswith('bilinear')}))
def test_bilinear(name): check_bilinear(VECTORS, name)


def test_bilinear_shared(shared):
    for name in ('320to40', '5to320'): check_bilinear(shared, name)


def test_coordinates():
    keys = [k for k in VECTORS.files if k.startswith('spatial/')]
    assert len(keys) == 5
    for key in keys:
        h, w = map(int, key.split('/')[1].split('_')[-1].split('x'))
        for want in VECTORS[key]: np.testing.assert_allclose(coordinates(h, w).permute(1, 2, 0), want, rtol=0, atol=1e-7)


def test_photo(shared):
    got, want = image_released(shared['photo/in']), shared['photo/proc_im_320']
    assert np.abs(got.astype(int) - want).max() <= 1 and (got != want).mean() < 0.01
    diff = np.abs(net_input_released(shared['photo/in'])[::4, ::4] - shared['photo/net_input_sub4'])
    assert diff.max() < 1.001 and (diff > 1e-4).mean() < 0.01


@pytest.mark.parametrize('i,hw', list(enumerate(REAL)))
def test_real_masks(shared, i, hw):
    bits = lambda name, shape: unpack(shared[f'real/{i}/{name}_packed'], shape)
    mask = bits('in', hw)
    got = [train_mask_released(mask), *(released_prediction_back(bits(f'{p}320', (320, 320)), *hw) for p in ('pred', 'selfpred'))]
    want = [bits('train_mask320', (320, 320)), bits('pred_back', hw), bits('selfpred_back', hw)]
    p = fit(*hw)
    inward = whole_positions(hw[0], p.new_height) or whole_positions(hw[1], p.new_width)
    outward = whole_positions(320, max(hw))
    for g, w, noisy in zip(got, want, (inward, outward, outward)):
        assert not (g & ~w).any()                      # the program's rounding errors only ever add foreground
        assert noisy or np.array_equal(g, w)
    if not outward:
        iou = [f((a, mask)) for a in (got[2], got[1]) for f in (lambda t: (t[0] & t[1]).sum(), lambda t: (t[0] | t[1]).sum())]
        assert iou == shared[f'real/{i}/IU'][:4].tolist()


@pytest.mark.parametrize('key', ['real/2/train_mask320', 'real/6/train_mask320', 'real/11/train_mask320', 'real/2/pred_back', 'real/11/pred_back'])
def test_real_floats(shared, key):
    i = int(key.split('/')[1])
    if 'train' in key: got = resize_and_pad_released(unpack(shared[f'real/{i}/in_packed'], REAL[i]), 320, 320)
    else: got = resize_and_crop_released(unpack(shared[f'real/{i}/pred320_packed'], (320, 320)), *REAL[i])
    np.testing.assert_allclose(got, shared[key + '_float'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('hw', [(1, 1), (1, 1000), (1000, 1), (3, 997), (320, 1), (127, 90), (2000, 3000)])
@pytest.mark.parametrize('size', [(320, 320), (33, 48), (8, 8)])
@pytest.mark.parametrize('protocol', ['rrn', 'released'])
def test_any_shape_goes_in_and_out(hw, size, protocol):
    mask = np.ones(hw, bool); p = fit(*hw, size)
    placed = mask_in(mask, size, protocol)
    assert placed.shape == size and placed.sum() == p.new_height * p.new_width
    back = mask_out(torch.from_numpy(placed).float()[None], p, protocol)
    assert back.shape == (1, *hw) and back.dtype == bool
    assert back.all() if protocol == 'rrn' else back.any()     # the program's crop can cut into what its padding rounded away


def test_place_is_deterministic_and_unplace_differentiable():
    img = np.random.default_rng(1).integers(0, 256, (127, 90, 3), dtype=np.uint8)
    p = fit(127, 90, (64, 48))
    assert np.array_equal(place_image(img, p), place_image(img, p))
    assert np.array_equal(place_mask(img[..., 0] > 128, p), place_mask(img[..., 0] > 128, p))
    x = torch.randn(2, 64, 48, requires_grad=True)
    unplace(x, p).sum().backward()
    outside = torch.ones(64, 48, dtype=bool); outside[p.box] = False
    assert (x.grad[:, outside] == 0).all() and (x.grad[:, ~outside] > 0).all()


def test_bilinear_tf_keeps_precision_under_autocast():
    x = torch.rand(1, 1, 40, 40)
    with torch.autocast('cpu', dtype=torch.bfloat16): y = bilinear_tf(x, (320, 320))
    assert y.dtype == torch.float32 and torch.equal(y[..., ::8, ::8], x)


ODD_SHAPES = [(480, 640), (127, 90), (1, 1000), (1000, 1), (1, 1), (320, 320), (41, 120)]
STRIPES = np.zeros((90, 127, 3), np.uint8)
STRIPES[:, ::2] = 255
STRIPES[30:60, 40:80, 1:] //= 3
yy, xx = np.mgrid[:127, :190]
DISC = (yy - 60.)**2 + (xx - 100.)**2 < 40**2


@pytest.mark.parametrize('size', [(320, 320), (48, 33), (1, 7)])
@pytest.mark.parametrize('hw', ODD_SHAPES)
def test_a_placement_fills_one_side_and_is_centred(hw, size):
    p = fit(*hw, size)
    assert 1 <= p.new_height <= size[0] and 1 <= p.new_width <= size[1]
    assert p.new_height == size[0] or p.new_width == size[1]
    below, right = size[0] - p.top - p.new_height, size[1] - p.left - p.new_width
    assert 0 <= below - p.top <= 1 and 0 <= right - p.left <= 1


def test_extreme_placements():
    assert fit(1, 1000).new_height == 1 and fit(333, 500).new_height == 213
    with pytest.raises(RRNError, match='every side'): fit(0, 7)


def test_placed_images():
    p = fit(90, 127, (48, 32))
    out = place_image(STRIPES, p)
    assert out[:p.top].max() == 0 and out[p.top + p.new_height:].max() == 0 and out[p.box].min() > 0
    same = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    assert np.array_equal(place_image(same, fit(40, 64, (40, 64))), same)
    assert np.array_equal(resize_released(same, (40, 64)), same * (1 / 255))
    assert np.array_equal(place_image(STRIPES[:, ::-1], fit(90, 127)), place_image(STRIPES[:, ::-1].copy(), fit(90, 127)))
    with pytest.raises(RRNError, match='uint8'): place_image(STRIPES / 255, fit(90, 127))
    with pytest.raises(RRNError, match=r'\(90, 127, 3\)'): place_image(STRIPES[..., 0], fit(90, 127))


@pytest.mark.parametrize('hw', [(1, 1000), (1000, 1), (1, 1), (2, 3)])
def test_white_stays_white(hw):
    white, p = np.full((*hw, 3), 255, np.uint8), fit(*hw)
    assert (place_image(white, p) == 255).sum() == 3 * p.new_height * p.new_width


def test_placed_masks():
    tiny = np.zeros((480, 640), bool)
    tiny[100, 100] = True
    assert not place_mask(tiny, fit(480, 640, (40, 40))).any()
    assert place_mask(np.ones((1, 1000), bool), fit(1, 1000)).sum() == 320
    assert np.array_equal(place_mask(DISC, fit(127, 190, (127, 190))), DISC)
    with pytest.raises(RRNError, match='bool'): place_mask(DISC.astype(np.uint8), fit(127, 190))


@pytest.mark.parametrize('hw', [(1, 1000), (1000, 1), (1, 1), (127, 90), (640, 480)])
def test_unplaced_maps_hold_nothing_of_the_padding(hw):
    p, x = fit(*hw), torch.full((2, 3, 320, 320), 7.)
    x[(..., *p.box)] = 0.25
    assert unplace(x, p).shape == (2, 3, *hw) and torch.allclose(unplace(x, p), torch.tensor(0.25))


def test_maps_of_no_sentence_and_of_another_placement():
    assert unplace(torch.zeros(0, 320, 320), fit(5, 9)).shape == (0, 5, 9)
    with pytest.raises(RRNError, match='placement is for'): unplace(torch.zeros(40, 40), fit(5, 9))


def test_released_resampling():
    assert np.allclose(resize_released(np.array([[0., 1., 1., 1.]]), (1, 8)), [[0, .25, .75, 1, 1, 1, 1, .75]])
    assert np.all(resize_released(np.ones((3, 5)), (7, 2)) == 1)
    ones = np.ones((30, 41))
    assert resize_and_pad_released(ones, 20, 20).sum() == 15 * 20 and resize_and_crop_released(ones, 19, 7).shape == (19, 7)
    assert np.array_equal(resize_and_crop_released(resize_and_pad_released(DISC, 190, 190), 127, 190), DISC)


def test_released_masks_grow_on_both_ways():
    ours, grown = place_mask(DISC, fit(127, 190, (95, 95))), train_mask_released(DISC, 95, 95)
    assert (ours & ~grown).sum() == 0 and grown.sum() > 1.03 * ours.sum()
    back = released_prediction_back(grown, 127, 190)
    assert (DISC & ~back).sum() == 0 and back.sum() > 1.1 * DISC.sum()
    assert np.array_equal(released_prediction_back(np.stack([grown, ~grown]), 127, 190)[0], back)
    assert released_prediction_back(np.zeros((0, 95, 95)), 127, 190).shape == (0, 127, 190)


def test_released_input():
    x = net_input_released(STRIPES, 48, 64)
    assert x.shape == (48, 64, 3) and x.dtype == np.float32 and np.allclose(x[0, 0], -np.array(BGR_MEAN))
    assert np.allclose(x[24, 32] + BGR_MEAN, image_released(STRIPES, 48, 64)[24, 32, ::-1], atol=1e-4)
    assert np.array_equal(image_released(STRIPES[..., 0], 48, 64)[..., 2], image_released(STRIPES, 48, 64)[..., 0])


def test_protocols_by_name():
    p = fit(127, 190, (64, 64))
    prob = torch.from_numpy(place_mask(DISC, p)).float() * 0.9
    for protocol in RESAMPLINGS:
        m, b = mask_in(DISC, (64, 64), protocol), mask_out(prob, p, protocol)
        assert m.dtype == b.dtype == bool and b.shape == DISC.shape
    assert not np.array_equal(image_in(STRIPES, (48, 64), 'rrn'), image_in(STRIPES, (48, 64), 'released'))
    with pytest.raises(RRNError, match="'released'"): image_in(STRIPES, protocol='relaesed')


def test_bilinear_tf_and_its_gradient():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.equal(bilinear_tf(x, (5, 7)), x)
    assert torch.allclose(bilinear_tf(torch.ones(1, 1, 3, 1), (1, 13)), torch.ones(1, 1, 1, 13))
    assert torch.autograd.gradcheck(lambda x: bilinear_tf(x, (11, 4)), x)


def test_coordinates_of_small_maps():
    c = coordinates(3, 4)
    assert c.shape == (8, 3, 4) and torch.allclose(c[:, 0, 1], torch.tensor([-.5, -1, 0, -1/3, -.25, -2/3, .25, 1/3]))
    assert torch.equal(coordinates(1, 1).flatten(), torch.tensor([-1., -1, 1, 1, 0, 0, 1, 1]))
