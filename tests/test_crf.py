"""rrn.crf against what the released program's DenseCRF gave, against pydensecrf where it is installed, and against rules that hold for any input."""
import os, signal
from pathlib import Path
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
import rrn.crf
from rrn.common.core import RRNError
from rrn.crf import CRFSettings, have_pydensecrf, how_to_install, make_crf, pydensecrf_crf, torch_crf
from rrn.image import fit, mask_in
from rrn.data.shapes import draw_scene

VECTORS = np.load(Path(__file__).parent/'vectors'/'dcrf.npz')
needs_cpp = pytest.mark.skipif(not have_pydensecrf(), reason='pydensecrf is not installed (uv sync --extra dcrf)')
NAMES = ['torch', pytest.param('pydensecrf', marks=needs_cpp)]


def refine(name, p, image, **kw):
    "Refined probabilities of one sentence, (H, W) array."
    with make_crf(name, **({'workers': 0} if name == 'pydensecrf' else {}), **kw) as crf:
        return crf(torch.from_numpy(p)[None], torch.from_numpy(image))[0].numpy()

def vector(case):
    "(p, image, Q, labels); the picture of 'sat' is not stored, but its Q is that of one flat colour."
    p = VECTORS[f'{case}/sigm']
    if case == 'sat': return p, np.zeros((16, 16, 3), np.uint8), VECTORS['sat/Q'], VECTORS['sat/argmax'] > 0
    labels = np.unpackbits(VECTORS[f'{case}/argmax_packed'])[:p.size].reshape(p.shape) > 0
    return p, VECTORS[f'{case}/image'], VECTORS[f'{case}/Q'], labels


@pytest.mark.parametrize('case', ['c0', 'c1', 'sat'])
@pytest.mark.parametrize('name', NAMES)
def test_released_vectors(name, case):
    p, image, Q, labels = vector(case)
    q = refine(name, p, image)
    assert np.isfinite(q).all() and np.array_equal(q > .5, labels)
    assert np.abs(q - Q).max() < (5e-6 if name == 'pydensecrf' else 5e-4)
    assert ((p > .5) != labels).mean() > .05, 'the CRF had something to do'

@pytest.mark.parametrize('iterations', [1, 2])
@pytest.mark.parametrize('name', NAMES)
def test_first_iterations(name, iterations):
    p, image, *_ = vector('c0')
    np.testing.assert_allclose(refine(name, p, image, iterations=iterations), VECTORS[f'c0/Q_iter{iterations}'], rtol=0, atol=5e-5)

@pytest.mark.parametrize('case', ['c2', 'c3'])
@pytest.mark.parametrize('name', NAMES)
def test_released_vectors_at_320(shared, name, case):
    vectors = np.load(shared/'reference'/'dcrf.npz')
    if f'{case}/sigm' not in vectors: pytest.skip(f'{case} is not in ../shared/reference/dcrf.npz')
    q = refine(name, vectors[f'{case}/sigm'], np.load(shared/'reference'/'preprocess.npz')['photo/proc_im_320'])
    labels = np.unpackbits(vectors[f'{case}/argmax_packed']).reshape(320, 320) > 0
    assert ((q > .5) == labels).mean() >= .9999
    assert np.abs(q[::2, ::2] - vectors[f'{case}/Q_fg_every2']).max() < 2e-3


def scene_at_128(i):
    "Embedded scene as a network sees it, and probabilities as it might give them: (S, 128, 128) float32, (128, 128, 3) uint8."
    scene = draw_scene(11, i)
    h, w, _ = scene.image.shape
    box = fit(h, w, (128, 128)).box
    image = np.zeros((128, 128, 3), np.uint8)
    small = F.interpolate(torch.from_numpy(scene.image).permute(2, 0, 1)[None].float(), image[box].shape[:2], mode='bilinear', antialias=True)
    image[box] = small[0].permute(1, 2, 0).round().byte().numpy()
    masks = torch.stack([torch.from_numpy(mask_in(m, (128, 128))).float() for m in scene.masks])[:, None]
    noise = torch.randn(len(masks), 1, 16, 16, generator=torch.Generator().manual_seed(i)) * torch.tensor([.5, 1, 2])[torch.arange(len(masks)) % 3, None, None, None]
    return F.interpolate(6 * F.avg_pool2d(masks, 8) - 3 + noise, (128, 128), mode='bilinear')[:, 0].sigmoid(), torch.from_numpy(image)

@needs_cpp
@pytest.mark.parametrize('i', range(4))
def test_same_labels_on_embedded_scenes(i):
    p, image = scene_at_128(i)
    a, b = torch_crf(p, image), torch.from_numpy(pydensecrf_crf(p.numpy(), image.numpy()))
    assert ((a > .5) == (b > .5)).float().mean((1, 2)).min() >= .999
    assert ((a > .5) != (p > .5)).any(), 'the CRF had something to do'

@needs_cpp
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (17, 31), (90, 127)])
@pytest.mark.parametrize('levels', [1, 12, 256])
def test_same_labels_on_noise(size, levels):
    rng = np.random.default_rng(levels)
    image, p = rng.integers(0, levels, (*size, 3), dtype=np.uint8), rng.random((2, *size), np.float32)
    a, b = torch_crf(torch.from_numpy(p), torch.from_numpy(image)).numpy(), pydensecrf_crf(p, image)
    assert ((a > .5) == (b > .5)).mean() >= .999

@needs_cpp
@pytest.mark.parametrize('kw', [dict(smooth_sxy=1., smooth_compat=0.), dict(sxy=60., srgb=10., compat=4.), dict(compat=0.), dict(iterations=1, srgb=1.)])
def test_same_labels_with_other_settings(kw):
    p, image = scene_at_128(5)
    a, b = torch_crf(p, image, CRFSettings(**kw)), torch.from_numpy(pydensecrf_crf(p.numpy(), image.numpy(), CRFSettings(**kw)))
    assert ((a > .5) == (b > .5)).float().mean() >= .999 and (a - b).abs().mean() < 1e-4


def example(seed, S, H, W, hard):
    "Random probabilities, some of them exactly 0 or 1, and a picture of a few colours with noise."
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (3, 3))[rng.integers(0, 3, (H, W))] + rng.integers(0, 9, (H, W, 3))
    p = rng.random((S, H, W))
    if hard: p = np.where(rng.random((S, H, W)) < .3, p.round(), p)
    return torch.from_numpy(p).float(), torch.from_numpy(image.astype(np.uint8))

examples = st.builds(example, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 19), st.integers(1, 23), st.booleans())

@settings(max_examples=25, deadline=None, derandomize=True)
@given(examples)
def test_rules(job):
    p, image = job
    q, order = torch_crf(p, image), torch.arange(len(p)).flip(0)
    assert q.shape == p.shape and ((q >= 0) & (q <= 1)).all(), 'no NaN, and probabilities'
    assert torch.allclose(torch_crf(p[order], image), q[order], atol=1e-6), 'sentences do not depend on their order'
    assert torch.allclose(torch.cat([torch_crf(x[None], image) for x in p]), q, atol=1e-6), 'nor on one another'
    sure = (p == 0) | (p == 1)
    assert torch.equal(q[sure], p[sure]), 'what is certain stays'

@settings(max_examples=25, deadline=None, derandomize=True)
@given(examples)
def test_labels_are_symmetric(job):
    "One step at a time: over many, a pixel on the fence can amplify the last digit."
    p, image = job
    assert torch.allclose(torch_crf(1 - p, image, CRFSettings(iterations=1)), 1 - torch_crf(p, image, CRFSettings(iterations=1)), atol=2e-4)

@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 30), st.tuples(*[st.integers(0, 255)]*3), st.sampled_from([.02, .98]))
def test_one_opinion_about_one_colour_stays(H, W, colour, p):
    q = torch_crf(torch.full((1, H, W), p), torch.tensor(colour, dtype=torch.uint8).expand(H, W, 3))
    assert ((q > .5) == (p > .5)).all() and (abs(q - .5) >= abs(p - .5) - 1e-5).all()

@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_batch_is_its_parts(seed, image_of):
    rng = np.random.default_rng(seed)
    images, image_of = torch.from_numpy(rng.integers(0, 40, (4, 3, 13, 18), dtype=np.uint8)), torch.tensor(image_of)
    p, crf = torch.from_numpy(rng.random((len(image_of), 1, 13, 18))), make_crf('torch')
    whole = crf.batch(p, images, image_of)
    assert whole.shape == p.shape and whole.dtype == p.dtype == torch.float64
    for s, i in enumerate(image_of): assert torch.allclose(whole[s], crf(p[s], images[i].permute(1, 2, 0)), atol=1e-6)
    halves = torch.cat([crf.batch(p[a:b], images, image_of[a:b]) for a, b in ((0, 2), (2, None))])
    assert torch.allclose(whole, halves, atol=1e-6)


@pytest.mark.parametrize('name', ['none', *NAMES])
def test_no_sentences(name):
    with make_crf(name) as crf:
        assert crf.batch(torch.zeros(0, 1, 8, 9), torch.zeros(2, 3, 8, 9, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 8, 9)
        assert crf(torch.zeros(0, 8, 9), torch.zeros(8, 9, 3, dtype=torch.uint8)).shape == (0, 8, 9)

@pytest.mark.parametrize('name', ['none', *NAMES])
def test_what_it_refuses(name):
    crf, p, image = make_crf(name), torch.full((1, 4, 5), .5), torch.zeros(4, 5, 3, dtype=torch.uint8)
    for bad in (torch.full_like(p, float('nan')), p * 3, -p):
        with pytest.raises(RRNError, match='0..1'): crf(bad, image)
    for bad in ((p, image.float()), (p, image[:3]), (p[0], image), (p.long(), image), (p[:, :0], image[:0])):
        with pytest.raises(RRNError, match='wants probabilities'): crf(*bad)
    for image_of in ([1], [-1], [0, 0]):
        with pytest.raises(RRNError, match='numbers of images'): crf.batch(p[None], image.permute(2, 0, 1)[None], torch.tensor(image_of))

def test_too_fine_for_numbers():
    with pytest.raises(RRNError, match='too small'):
        torch_crf(torch.full((1, 300, 300), .5), torch.randint(0, 256, (300, 300, 3), dtype=torch.uint8), CRFSettings(sxy=.1, srgb=.1))

def test_inference_mode_and_gradients():
    "What one mode leaves in the cache serves in the other, and no graph is kept."
    p, image = example(0, 2, 11, 14, False)
    with torch.inference_mode(): first = make_crf('torch')(p, image)
    second = make_crf('torch')(p.clone().requires_grad_(), image)
    assert torch.equal(first, second) and not second.requires_grad

def test_missing_pydensecrf(monkeypatch):
    monkeypatch.setattr(rrn.crf, 'have_pydensecrf', lambda: False)
    assert make_crf('auto').name == 'torch'
    with pytest.raises(RRNError, match='not installed'): make_crf('pydensecrf')
    assert 'uv sync --extra dcrf' in how_to_install((3, 12)) and "choose 'torch'" in how_to_install((3, 12))
    for python in ((3, 13), (3, 14)):
        assert 'does not build on Python 3.13' in how_to_install(python) and 'Install it' not in how_to_install(python)

@pytest.mark.parametrize('workers', [-1, 1.5, '2'])
@needs_cpp
def test_workers_are_a_number(workers):
    with pytest.raises(RRNError, match='workers'): make_crf('pydensecrf', workers=workers)


def batch():
    p, image = example(3, 3, 12, 15, True)
    return p[:, None], torch.stack([image.permute(2, 0, 1), 255 - image.permute(2, 0, 1)]), torch.tensor([1, 0, 1])

@needs_cpp
def test_pool_is_reused_and_closes():
    with make_crf('pydensecrf', workers=2) as crf:
        a, pool = crf.batch(*batch()), crf.pool
        assert torch.equal(crf.batch(*batch()), a) and crf.pool is pool
        assert torch.equal(make_crf('pydensecrf', workers=0).batch(*batch()), a), 'processes change nothing'
        workers = list(pool._processes.values())
    assert crf.pool is None and workers and not any(w.is_alive() for w in workers)
    assert torch.equal(crf.batch(*batch()), a), 'a closed one starts again'
    crf.close(); crf.close()

@needs_cpp
@pytest.mark.timeout(60)
def test_dead_worker_is_one_clear_error():
    with make_crf('pydensecrf', workers=2) as crf:
        a = crf.batch(*batch())
        for pid in list(crf.pool._processes): os.kill(pid, signal.SIGKILL)
        with pytest.raises(RRNError, match='worker processes died'): crf.batch(*batch())
        assert torch.equal(crf.batch(*batch()), a), 'the next call has new workers'

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_gpu_equals_cpu():
    p, image = scene_at_128(0)
    q, crf = torch_crf(p, image), make_crf('torch')
    on_gpu = crf(p.cuda(), image.cuda())
    assert on_gpu.is_cuda and ((on_gpu.cpu() > .5) == (q > .5)).float().mean() >= .9999
    assert torch.equal(on_gpu, crf(p.cuda(), image)), 'the same on every run'


@pytest.mark.parametrize('wrong', [dict(srgb=0), dict(sxy=-3.), dict(compat=float('nan')), dict(iterations=0),
                                   dict(iterations=2.5), dict(compat='10')])
def test_settings_that_make_no_kernel(wrong):
    with pytest.raises(RRNError, match=f'DenseCRF: {next(iter(wrong))}'): rrn.crf.CRFSettings(**wrong)


def test_majorities():
    def everyone(x): return x.mean(0, keepdim=True).expand(4, -1)
    p = torch.tensor([[.9, .4], [.9, .3], [.4, .1], [0., 1.]])
    q = rrn.crf.mean_field(p, [(10., everyone)], 5)
    assert q[:3].T.round().tolist() == [[1, 1, 1], [0, 0, 0]] and q[3].tolist() == [0, 1]
    assert torch.allclose(1 - q, rrn.crf.mean_field(1 - p, [(10., everyone)], 5), atol=1e-6)


def test_features_of_kernels():
    assert rrn.crf.place_features(2, 3, 2.).tolist() == [[0, 0], [.5, 0], [1, 0], [0, .5], [.5, .5], [1, .5]]
    white = torch.full((2, 3, 3), 255, dtype=torch.uint8)
    assert rrn.crf.colour_features(white, 2., 5.)[5].tolist() == [1, .5, 51, 51, 51]


def test_neighbours_in_both_directions():
    codes = torch.tensor([2, 5, 6, 8, 11])
    assert rrn.crf.neighbours(codes, 3).tolist() == [[5, 0, 5, 1, 3], [1, 3, 5, 4, 5]]
    assert rrn.crf.neighbours(codes, -3).tolist() == [[1, 3, 5, 4, 5], [5, 0, 5, 1, 3]]


def test_names_of_crfs():
    with pytest.raises(RRNError, match="Did you mean 'torch'"): rrn.crf.make_crf('toch')
    with pytest.raises(RRNError, match="Did you mean 'iterations'"): rrn.crf.make_crf('torch', iteration=3)
    with pytest.raises(RRNError, match='srgb'): rrn.crf.make_crf('torch', srgb=0)
    assert rrn.crf.make_crf('auto').name == 'torch' and rrn.crf.make_crf('none').name == 'none'


def test_what_a_batch_refuses():
    p, images, image_of = torch.rand(3, 1, 20, 30), torch.zeros(2, 3, 20, 30, dtype=torch.uint8), torch.tensor([1, 0, 1])
    crf = rrn.crf.make_crf('torch')
    q = crf.batch(p, images, image_of)
    assert torch.equal(rrn.crf.make_crf('none').batch(p, images, image_of), p) and not torch.equal(q, p)
    with pytest.raises(RRNError, match='logits'): crf.batch(p*20 - 10, images, image_of)
    with pytest.raises(RRNError, match='uint8'): crf.batch(p, images / 255, image_of)
    with pytest.raises(RRNError, match='S numbers of images'): crf.batch(p, images, image_of[:2])
