"""The released ConvLSTM cell: states and gradients computed by the released program, for every configuration."""
import copy
from pathlib import Path
import numpy as np
import pytest
import torch
from rrn.common.core import RRNError
from rrn.refine import ReleasedConvLSTM, released_cell_from_tf, released_cell_to_tf

VECTORS = np.load(Path(__file__).parent/'vectors'/'convlstm_cell.npz')
RUNS = {k.removesuffix('/h') for k in VECTORS.files if k.endswith('/h')}
CONFIGS = [(f'k{k}_peep{p}_norm{n}', k, bool(p), bool(n)) for k in (1, 3) for p in (0, 1) for n in (0, 1)
           if f'k{k}_peep{p}_norm{n}/zero' in RUNS]


def nchw(a): return torch.from_numpy(np.moveaxis(a, -1, -3).copy())


def variables(config): return {k.removeprefix(f'{config}/var/'): VECTORS[k] for k in VECTORS.files if k.startswith(f'{config}/var/')}


def cell_of(config, k=1, peephole=True, normalize=True): return released_cell_from_tf(variables(config), k, peephole, normalize)


def state(which): return (nchw(VECTORS['h0']), nchw(VECTORS['c0'])) if which == 'init' else None


def test_every_configuration_of_the_file_is_tested():
    assert {f'{c[0]}/{which}' for c in CONFIGS for which in ('zero', 'init')} | {'filters1/zero'} == RUNS and len(CONFIGS) == 6


@pytest.mark.parametrize('which', ['zero', 'init'])
@pytest.mark.parametrize('config,k,peephole,normalize', CONFIGS, ids=lambda v: str(v))
@pytest.mark.processor
def test_states_and_gradients(config, k, peephole, normalize, which):
    run = f'{config}/{which}'
    cell, x = cell_of(config, k, peephole, normalize), nchw(VECTORS['x']).requires_grad_()
    h, c = cell.run(x, state(which))
    np.testing.assert_allclose(h.detach(), nchw(VECTORS[f'{run}/h']), rtol=0, atol=1e-5)
    np.testing.assert_allclose(c.detach(), nchw(VECTORS[f'{run}/c']), rtol=0, atol=1e-5)
    loss = (h * nchw(VECTORS['grad_R'])).sum()
    np.testing.assert_allclose(loss.detach(), VECTORS[f'{run}/L'], rtol=1e-5, atol=1e-4)
    loss.backward()
    grads = copy.deepcopy(cell)
    for g, p in zip(grads.parameters(), cell.parameters()): g.data = p.grad
    got = released_cell_to_tf(grads, 'rnn/') | {'x': np.moveaxis(x.grad.numpy(), -3, -1)}
    want = {key.removeprefix(f'{run}/grad/'): VECTORS[key] for key in VECTORS.files if key.startswith(f'{run}/grad/')}
    assert want.keys() == got.keys()
    for name, w in want.items(): np.testing.assert_allclose(got[name], w, rtol=0, atol=1e-5 * np.abs(w).max(), err_msg=name)


def test_a_single_filter():
    h, c = cell_of('filters1').run(nchw(VECTORS['x'][..., :3]))
    np.testing.assert_allclose(h.detach(), nchw(VECTORS['filters1/zero/h']), rtol=0, atol=1e-5)
    np.testing.assert_allclose(c[:, -1].detach(), nchw(VECTORS['filters1/zero/c_final']), rtol=0, atol=1e-5)


@pytest.mark.parametrize('config,k,peephole,normalize', CONFIGS, ids=lambda v: str(v))
def test_to_tf_is_the_exact_way_back(config, k, peephole, normalize):
    want, got = variables(config), released_cell_to_tf(cell_of(config, k, peephole, normalize), 'rnn/')
    assert want.keys() == got.keys() and all(np.array_equal(w, got[n]) and got[n].dtype == np.float32 for n, w in want.items())


@pytest.mark.parametrize('config,k,peephole,normalize', CONFIGS, ids=lambda v: str(v))
def test_a_checkpoint_of_another_configuration_is_refused(config, k, peephole, normalize):
    for other in ((4 - k, peephole, normalize), (k, not peephole, normalize), (k, peephole, not normalize)):
        with pytest.raises(RRNError, match='do not fit'): released_cell_from_tf(variables(config), *other)


def test_single_precision_is_as_good_as_double():
    cell, x = cell_of('k1_peep1_norm1'), nchw(VECTORS['x'])
    double = copy.deepcopy(cell).double().run(x.double(), tuple(s.double() for s in state('init')))
    for a, b in zip(cell.run(x, state('init')), double): np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-6, atol=2e-6)


def test_a_map_without_variation_stays_finite():
    cell = ReleasedConvLSTM(1, size=(1, 1), in_channels=2)            # one number to normalise: its variance is 0
    h, c = cell.run(torch.randn(3, 4, 2, 1, 1))
    (h.sum() + c.sum()).backward()
    assert h.isfinite().all() and all(p.grad.isfinite().all() for p in cell.parameters())


def test_state_dict_round_trip():
    cell = cell_of('k1_peep1_norm1')
    other = ReleasedConvLSTM(cell.D, cell.size, in_channels=cell.in_channels)
    other.load_state_dict(cell.state_dict())
    assert torch.equal(cell.run(nchw(VECTORS['x']))[0], other.run(nchw(VECTORS['x']))[0])
