"""rrn.optim against learning rates, the L2 term and a first training step computed by the released program."""
import io
from pathlib import Path
import numpy as np
import pytest
import torch
from rrn.common.core import RRNError
from rrn.optim import AdamTF, l2_penalty, polynomial_lr

VECTORS = np.load(Path(__file__).parent/'vectors'/'optim.npz')
BEFORE = [k.removeprefix('before/') for k in VECTORS.files if k.startswith('before/')]


@pytest.mark.parametrize('system,decay_steps', [('rrn', 800_000), ('rmi', 750_000)])
def test_learning_rates(system, decay_steps):
    steps, values = VECTORS[f'lr/{system}/steps'], VECTORS[f'lr/{system}/values']
    got = [polynomial_lr(int(s), 2.5e-4, 1e-5, decay_steps) for s in steps]
    assert steps.max() > decay_steps and len(steps) == 14
    # the program computes 1 - step / decay in 32 bits, which near the end has few digits left
    np.testing.assert_allclose(got, values, rtol=1e-5)
    early = steps < 0.95 * decay_steps
    np.testing.assert_allclose(np.array(got)[early], values[early], rtol=1e-6)


def test_l2():
    got = l2_penalty([torch.from_numpy(VECTORS['loss/l2/v0']), torch.from_numpy(VECTORS['loss/l2/v1'])], 5e-4)
    np.testing.assert_allclose(got, VECTORS['loss/l2/value_wd0.0005'], rtol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_first_step_of_the_released_training(dtype):
    params = {k: torch.nn.Parameter(torch.from_numpy(VECTORS[f'before/{k}']).to(dtype)) for k in BEFORE}
    groups = [{'params': [p for k, p in params.items() if ('biases' in k) == b], 'grad_scale': 2. if b else 1.} for b in (0, 1)]
    optimiser = AdamTF(groups, lr=polynomial_lr(0, 2.5e-4, 1e-5, 800_000))
    for k, p in params.items(): p.grad = torch.from_numpy(VECTORS[f'grad/{k}']).to(dtype)
    optimiser.step()
    for k, p in params.items():
        np.testing.assert_allclose(p.detach(), VECTORS[f'after/{k}'], rtol=0, atol=2e-7, err_msg=k)
        assert np.abs(VECTORS[f'after/{k}'] - VECTORS[f'before/{k}']).max() > 2e-4                # it did move
        scale = 2 if 'biases' in k else 1
        np.testing.assert_allclose(optimiser.state[p]['m'], 0.1 * scale * p.grad, rtol=1e-5)


def test_gradients_are_left_alone_and_missing_ones_skipped():
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 0.5)
    optimiser = AdamTF([p, q], grad_scale=2.)
    for _ in range(3): optimiser.step()
    assert p.grad.equal(torch.full((3,), 0.5)) and q.equal(torch.ones(3)) and q not in optimiser.state


def test_resume_from_a_file_is_exact():
    g = torch.Generator().manual_seed(0)
    grads = torch.randn(9, 4, 3, generator=g)
    def train(p, optimiser, part):
        for x in part:
            p.grad = x; optimiser.step()
    whole = torch.nn.Parameter(torch.ones(4, 3)); a = AdamTF([{'params': [whole], 'grad_scale': 3.}], lr=0.1)
    train(whole, a, grads[:4])
    file = io.BytesIO(); torch.save({'p': whole.detach(), 'optimiser': a.state_dict()}, file); file.seek(0)
    saved = torch.load(file, weights_only=True)
    train(whole, a, grads[4:])
    again = torch.nn.Parameter(saved['p']); b = AdamTF([again]); b.load_state_dict(saved['optimiser'])
    train(again, b, grads[4:])
    assert torch.equal(whole, again) and b.param_groups[0]['grad_scale'] == 3.


def test_scheduler_of_torch_can_drive_it():
    p = torch.nn.Parameter(torch.zeros(1)); optimiser = AdamTF([p], lr=1.)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: polynomial_lr(s, 1., 0., 3))
    rates = []
    for _ in range(4):
        p.grad = torch.ones(1); rates.append(optimiser.param_groups[0]['lr']); optimiser.step(); schedule.step()
    assert rates == [polynomial_lr(s, 1., 0., 3) for s in range(4)] and rates[-1] == 0


@pytest.mark.parametrize('bad', [dict(lr=-1.), dict(eps=-1e-8), dict(betas=(1., 0.9)), dict(betas=(0.9, -0.1))])
def test_bad_settings(bad):
    with pytest.raises(RRNError): AdamTF([torch.nn.Parameter(torch.zeros(1))], **bad)


def test_rates_of_a_short_schedule():
    assert abs(polynomial_lr(1, 2., 1., 2) - 1 - 0.5**0.9) < 1e-15 and polynomial_lr(1, 2., 1., 2, power=1) == 1.5
    with pytest.raises(RRNError, match='decay_steps'): polynomial_lr(0, 1., 0., 0)


def adam_numpy(w, grads, lr, b1=0.9, b2=0.999, eps=1e-8):
    w, m, v = w.astype(np.float64), 0., 0.
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    return w, m, v


def test_moments_carry_the_scale_of_gradients():
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=7), rng.normal(size=(6, 7))
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimiser = AdamTF([{'params': [p], 'grad_scale': 2.}], lr=0.01)
    for g in grads:
        p.grad = torch.tensor(g, dtype=torch.float32)
        optimiser.step()
    want, m, v = adam_numpy(start, 2 * grads, 0.01)
    assert abs(p.detach().numpy() - want).max() < 1e-6
    assert np.allclose(optimiser.state[p]['m'], m, rtol=1e-5) and np.allclose(optimiser.state[p]['v'], v, rtol=1e-5)
    assert not np.allclose(m, adam_numpy(start, grads, 0.01)[1], rtol=0.4)     # the factor shows in m


def test_closures():
    p = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    def closure():
        p[0].grad = torch.ones(2)
        return 7.
    assert AdamTF(p, lr=0.5).step(closure) == 7. and torch.allclose(p[0], torch.tensor(0.5)) and p[1].equal(torch.ones(2))
    with pytest.raises(RRNError, match='betas'): AdamTF(p, betas=(0.9, 1.))
    assert l2_penalty([], 1.) == 0
