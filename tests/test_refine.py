"""Update functions: what is registered, built and refused, and cells at awkward sizes."""
from functools import partial
import numpy as np
import pytest
import torch
from torch import nn
from rrn.common.core import RRNError
from rrn.model import Config, Head, preset
from rrn.experiments.record import run_name
from rrn.refine import (UPDATES, ConvLSTM, LSTMStep, Refinement, ReleasedConvLSTM, Update, find_update, make_update,
                        options_of, released_cell_from_tf, released_cell_to_tf, update_function)

NORMALISED = [dict(update='plain', normalise='update'), dict(update='rnn', normalise='update'),
              dict(normalise='gates'), dict(normalise='gates,cell'), dict(peepholes=True), dict(forget_bias=1.),
              dict(normalise='gates,cell', peepholes=True, forget_bias=1.)]
TINY = dict(embed_dim=5, D_I=6, D_S=7, D_Q=8)
CHANNELS = dict(C1=4, C2=4, C3=6, C4=8, C5=10)


# ---------------------------------------------------------------- one constructor, one registry

@pytest.mark.parametrize('update', UPDATES)
def test_all_are_built_alike(update):
    cell = make_update(update, 6, (5, 7), 3, 'relu')
    h, state = cell.step(torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7))
    assert h.shape == (2, 6, 5, 7) and cell.step(torch.randn(2, 6, 5, 7), h, state)[0].isfinite().all()


@pytest.mark.parametrize('update', UPDATES)
@pytest.mark.parametrize('wrong', [dict(forget_bais=1.), dict(kernl=3), dict(normalised='gates')])
def test_misspelt_options_are_errors(update, wrong):
    said = f'has no {next(iter(wrong))}'
    with pytest.raises(RRNError, match=said): make_update(update, 6, (5, 7), **wrong)
    with pytest.raises(RRNError, match=said): Refinement(CHANNELS, 6, update=update, size=(5, 7), **wrong)


def test_wrong_values_of_the_refinement():
    for how, message in [(dict(update='lsmt'), "Did you mean 'lstm'"), (dict(activation='gelu'), 'activation'),
                         (dict(normalise='gate'), 'gates')]:
        with pytest.raises(RRNError, match=message): Refinement(CHANNELS, 8, **how)
    for update in ('lstm', 'rnn', 'fpn', 'released_lstm'):
        with pytest.raises(RRNError, match="'relu'"): make_update(update, 6, (5, 7), activation='relo')


def test_pyramids_that_are_not_there():
    with pytest.raises(RRNError, match='C1'): Refinement({'C5': 7}, 8, 'C1')
    q = torch.randn(2, 8, 3, 5)
    for start in ('q', 'zero'):
        none = Refinement(CHANNELS, 8, '', start=start)
        assert none(q, {}) is q and not list(none.parameters())


@pytest.mark.parametrize('how, message', [
    (dict(update='plain', normalise='gates'), 'Allowed: , update'),
    (dict(update='lstm', normalise='update'), 'gates,cell'),
    (dict(update='fpn', normalise='update'), 'has no normalise'),
    (dict(update='released_lstm', normalise='gates'), 'has no normalise'),
    (dict(update='rnn', peepholes=True), 'has no peepholes'),
    (dict(update='plain', forget_bias=1.), 'has no forget_bias'),
    (dict(normalise='cell'), 'Allowed'), (dict(peepholes=1), 'should be bool'),
    (dict(forget_bias=float('nan')), 'finite'),
    (dict(normalise='gates', pyramid=''), 'no effect without refinement'),
    (dict(system='rmi', peepholes=True), 'no effect'),
    (dict(update='a b:C'), 'no import path'), (dict(update=':C'), 'no import path')], ids=str)
def test_combinations_that_make_no_sense(how, message):
    with pytest.raises(RRNError, match=message): Config(**how)


def test_a_name_belongs_to_one_class():
    with pytest.raises(RRNError, match="'lstm' is rrn.*ConvLSTM already"):
        @update_function('lstm')
        class Mine(Update): pass
    with pytest.raises(RRNError, match='cannot name'): update_function('my:own')(ConvLSTM)
    assert UPDATES['lstm'] is ConvLSTM and update_function('lstm')(ConvLSTM) is ConvLSTM    # a cell run again


def test_options_are_those_that_the_constructor_names():
    class Swallows(Update):
        def __init__(self, D, *common, mine=1, **_): super().__init__(D, *common)
    assert options_of(Swallows) == ['mine'] and not options_of(UPDATES['fpn'])
    assert options_of(UPDATES['plain']) == ['normalise']


# ---------------------------------------------------------------- import paths

@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    "An empty working directory, which Python forgets afterwards."
    import sys
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
    yield tmp_path
    ours = [n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, '__file__', ''))]
    for name in ours: del sys.modules[name]


def test_a_class_is_found_in_the_working_directory(somewhere):
    (somewhere/'mine_a.py').write_text('from rrn.refine import RNN\nclass Other(RNN):\n    shared = False\n')
    assert find_update('mine_a:Other').__mro__[1] is UPDATES['rnn']
    new = lambda **how: Head(preset('paper', update='mine_a:Other', **TINY | how), CHANNELS, 20, (5, 7))
    head = new(normalise='update')
    assert len(head.refine.updates) == 3 and 'refine.updates.2.N.weight' in head.state_dict()
    with pytest.raises(RRNError, match='has no peepholes'): new(peepholes=True)


@pytest.mark.parametrize('source, path, message', [
    (None, 'mine_b:GRU', 'importing mine_b failed .ModuleNotFoundError.*looked for in '),
    ('x = (', 'mine_c:GRU', 'SyntaxError'), ('import numqy', 'mine_d:GRU', "No module named 'numqy'"),
    ('y = z', 'mine_e:GRU', 'NameError.*mine_e.py, line 1'), ('GRU = 3', 'mine_g:GRU', 'no class GRU'),
    ('', 'mine_f:GRU', 'has no class GRU that is an rrn.refine.Update'),
    ('class GRU: pass', 'mine_h:GRU', 'is an rrn.refine.Update'),
    (None, 'os:system', 'no class system'), (None, '.x:Y', 'importing .x failed')])
def test_what_cannot_be_imported_is_named(somewhere, source, path, message):
    if source is not None: (somewhere/f"{path.partition(':')[0]}.py").write_text(source)
    with pytest.raises(RRNError, match=message) as e: find_update(path)
    assert repr(path) in str(e.value)


def test_a_configuration_imports_nothing(somewhere):
    (somewhere/'mine_i.py').write_text('raise SystemExit')
    assert Config(update='mine_i:GRU').update == 'mine_i:GRU'


# ---------------------------------------------------------------- names of runs

def test_names_say_what_varies_and_old_ones_stay():
    assert run_name(preset('small')).startswith('shapes-unc-lstm543-tanh-s0-')
    all_three = preset('small', **NORMALISED[-1])
    assert run_name(all_three).startswith('shapes-unc-lstm543-tanh-norm-gates-cell-peepholes-forget1-s0-')
    assert run_name(preset('small', update='mine:GRU')).startswith('shapes-unc-mine.GRU543-tanh-s0-')
    assert run_name(Config()) == 'unc-lstm543-tanh-s0-1542ff'              # as before there were options
    assert len({run_name(preset('small', **how)) for how in NORMALISED}) == len(NORMALISED)


# ---------------------------------------------------------------- factors

@pytest.mark.parametrize('how', NORMALISED, ids=str)
def test_normalised_networks_share_what_depends_on_the_image(how):
    head = Head(preset('paper', **TINY | how), CHANNELS, 20, (5, 7)).double()
    features = {m: torch.randn(2, c, 5, 7, dtype=torch.float64) for m, c in CHANNELS.items()}
    words, image_of = torch.tensor([[0, 0, 3], [4, 5, 6], [0, 7, 8]]), torch.tensor([1, 0, 1])
    together = head(features, words, image_of)
    for i in range(3):
        alone = head({m: f[image_of[i]][None] for m, f in features.items()}, words[i:i + 1])
        torch.testing.assert_close(together[i:i + 1], alone, atol=1e-12, rtol=0)
    together.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize('normalise', ['', 'gates', 'gates,cell'])
@pytest.mark.parametrize('peepholes', [False, True])
@pytest.mark.parametrize('activation', ['tanh', 'relu'])
def test_gradients_of_the_lstm(normalise, peepholes, activation):
    torch.manual_seed(0)
    cell = ConvLSTM(2, (2, 3), 1, activation, normalise, peepholes).double()
    new = lambda S, C: torch.randn(S, C, 2, 3, dtype=torch.float64, requires_grad=True)
    z, h, c = new(1, 8), new(2, 2), new(2, 2)
    assert torch.autograd.gradcheck(cell, (z, h, c)) and torch.autograd.gradcheck(cell, (z, h))


def test_a_cell_of_zeros_is_no_cell():
    for how in NORMALISED[2:]:
        cell = ConvLSTM(4, (3, 5), **how)
        x, h = torch.randn(2, 2, 4, 3, 5)
        torch.testing.assert_close(cell.step(x, h), cell.step(x, h, torch.zeros_like(h)))


def test_the_quick_step_serves_gates_that_do_not_see_the_cell(monkeypatch):
    calls, x = [], torch.randn(2, 4, 3, 5)
    monkeypatch.setattr(LSTMStep, 'apply', lambda *a: calls.append(a) or (x, x))
    for how in [dict(), dict(forget_bias=1.), dict(normalise='gates'), dict(normalise='gates,cell')]:
        ConvLSTM(4, (3, 5), **how).step(x, x)
    assert len(calls) == 4
    ConvLSTM(4, (3, 5), peepholes=True).step(x, x)
    assert len(calls) == 4


def test_weights_of_equation_2_keep_their_names():
    assert set(ConvLSTM(4).state_dict()) == {'W.weight', 'W.bias', 'U.weight'}
    for update in ('plain', 'rnn'):
        assert set(make_update(update, 4).state_dict()) == {'U.weight', 'U.bias', 'W.weight'}
    assert set(ReleasedConvLSTM(4, (3, 5)).state_dict()) == {'weight_x', 'weight_h', 'peep', 'gamma', 'beta'}


def test_a_forget_bias_is_what_training_begins_with():
    torch.manual_seed(0); plain = ConvLSTM(4)
    torch.manual_seed(0); more = ConvLSTM(4, forget_bias=1.5)
    difference = (more.W.bias - plain.W.bias).view(4, 4)                  # of i, f, g, o
    torch.testing.assert_close(difference, torch.tensor([0, 1.5, 0, 0])[:, None].expand(4, 4))
    assert ConvLSTM(4, normalise='gates', forget_bias=1.5).N['f'].bias.tolist() == [1.5] * 4


@pytest.mark.parametrize('new', [partial(ConvLSTM, 6, peepholes=True), partial(ReleasedConvLSTM, 6)])
def test_peepholes_belong_to_one_size_of_map(new):
    h = torch.zeros(1, 6, 7, 5)
    with pytest.raises(RRNError, match=r'made for feature maps of \(5, 7\), not \(7, 5\)'): new((5, 7)).step(h, h, h)
    with pytest.raises(RRNError, match='size='): new()


@pytest.mark.parametrize('how', NORMALISED[:4], ids=str)
def test_a_map_without_variation_stays_finite(how):
    cell = make_update(how.get('update', 'lstm'), 3, (1, 1), normalise=how['normalise'])
    for p in cell.parameters(): nn.init.zeros_(p)
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    cell.step(x, x)[0].sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in cell.parameters())


# ---------------------------------------------------------------- the released cell

@pytest.mark.parametrize('kernel', [2, 3, 4])
def test_the_released_cell_at_awkward_sizes(kernel):
    free = ReleasedConvLSTM(6, kernel=kernel, activation='relu', in_channels=3, peephole=False, normalize=False)
    assert free.run(torch.randn(2, 4, 3, 5, 7))[0].shape == (2, 4, 6, 5, 7)
    assert free.run(torch.randn(1, 1, 3, 1, 9))[0].shape == (1, 1, 6, 1, 9)


def test_variables_that_do_not_fit():
    saved = released_cell_to_tf(ReleasedConvLSTM(6, (5, 7), in_channels=3), 'net/')
    without = lambda part: {n: w for n, w in saved.items() if not n.endswith(part)}
    broken = without('W_cf') | {'net/conv_lstm_cell/LayerNorm_2/beta': np.zeros(5)}
    def refused(said, variables, **how):
        with pytest.raises(RRNError, match=said): released_cell_from_tf(variables, **how)
    refused(r'W_cf is missing; LayerNorm_2/beta is \[5\] instead of \[6\]', broken)
    refused('LayerNorm/gamma is unknown', saved, normalize=False)
    refused('W_ci is unknown', saved, peephole=False)
    refused('kernel is .1, 1, 9, 24. instead of .3, 3', saved, kernel=3)
    refused('found 0', {'kernel': np.zeros(3)})
    refused('kernel is missing', without('kernel'))
    refused('found 2', saved | {n.replace('net/', 'other/'): w for n, w in saved.items()})
