"""The extension point: an update function of the user's own, from a file or a cell to a row of Table 1."""
import importlib
import json
import linecache
import re
import sys
from pathlib import Path
import forked
import papermill
import pytest
from rrn.common.core import RRNError
from rrn.experiments.matrix import TABLE1, given_matrix, run_step, step_parameters
from rrn.experiments.record import Run
from rrn.experiments.tables import printed_table, RIVALS, table1, write_tables
from rrn.experiments.jobs import main, open_job, open_run, train_job

REPO = Path(__file__).resolve().parents[1]
SCENES = {'train': 12, 'val': 8, 'testA': 1, 'testB': 1}
TINY = dict(image_size=48, D_Q=8, D_I=8, D_S=8, embed_dim=8, iterations=3)
MINE = """
from rrn.refine import Update, same_conv

class Leaky(Update):
    "h_t = h_{t-1} / 2 + a(W * x_t) / 2"
    def __init__(self, D, size=None, kernel=1, activation='tanh'):
        super().__init__(D, size, kernel, activation)
        self.W = same_conv(D, D, kernel, bias=True)
    def project(self, x): return self.W(x)
    def forward(self, z, h, state=None): return h / 2 + self.a(z) / 2, None
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working directory of the user's, with a module in it, which Python forgets afterwards."
    (tmp_path/'their_updates.py').write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    yield tmp_path
    sys.modules.pop('their_updates', None)


def small(here, scenes, rows):
    places = dict(folder=str(here/'runs'), data_root=str(scenes))
    return given_matrix(datasets='shapes-unc', rows='row5,row12', more_seeds='', extra_rows=rows, **places, **TINY)


# ---------------------------------------------------------------- the way of a user

def test_a_class_in_a_file_has_a_row_in_the_table(here, scenes):
    "Trained by its import path from the command line in the user's folder; rows 5 and 12 beside it."
    matrix = small(here, scenes, 'leaky=update=their_updates:Leaky activation=relu')
    cells = {s: matrix.cell(s, 'shapes-unc') for s in ('row5', 'row12', 'leaky')}
    for name in ('row5', 'row12'): train_job(step_parameters(matrix, cells[name], 'train'))
    settings = [f'{k}={v}' for k, v in step_parameters(matrix, cells['leaky'], 'train').items()]
    done = forked.run(['-m', 'rrn.train', *settings])
    assert done.returncode == 0, done.stderr
    long = table1(matrix).set_index(['row', 'column'])
    assert list(dict.fromkeys(long.index.get_level_values('row'))) == [*TABLE1, 'leaky']
    ours = long.loc[('leaky', 'overall_iou')]
    assert ours.low <= ours.ours <= ours.high and ours.runs == cells['leaky'].run
    for rival, column in RIVALS.items():
        cell = long.loc[('leaky', column)]
        assert cell.ours == pytest.approx(ours.ours - long.loc[(rival, 'overall_iou'), 'ours'])
        assert cell.low <= cell.ours <= cell.high
    shown = printed_table(table1(matrix)).loc['leaky', 'minus row 12']
    assert re.fullmatch(r'[+-][0-9.]+ \[[+-][0-9.]+ to [+-][0-9.]+\]', shown)
    write_tables(matrix, here/'tables')
    assert ' leaky ' in (here/'tables'/'table1.md').read_text()
    assert 'minus row 5' in (here/'tables'/'table1.tex').read_text()


def test_the_trainer_names_what_is_not_there(here, scenes, capsys):
    assert main(['update=their_updates:Leeky', f'data_root={scenes}', f'folder={here}', 'preset=small']) == 1
    assert re.search('update=.their_updates:Leeky.*no class Leeky', capsys.readouterr().err)


def test_the_runs_of_a_matrix_find_it(here, scenes, monkeypatch):
    "They start in the checkout, and not in the folder in which the command was given."
    matrix = small(here, scenes, 'leaky=update=their_updates:Leaky')
    look = 'import os, sys; from rrn.refine import find_update; find_update(sys.argv[1]); print(os.getcwd())'
    monkeypatch.setattr('rrn.experiments.matrix.step_command', lambda *a: [sys.executable, '-c', look, 'their_updates:Leaky'])
    monkeypatch.setattr('rrn.experiments.matrix.evaluate_shuffled', lambda *a: None)      # nothing was trained
    run_step(matrix, 'train', matrix.cell('leaky', 'shapes-unc').run)


def test_the_notebook_from_cell_to_row(tmp_path, scenes):
    out = tmp_path/'out.ipynb'
    given = dict(TINY, data_root=str(scenes), folder=str(tmp_path/'runs'))
    papermill.execute_notebook(REPO/'nbs'/'extend.ipynb', out, given, cwd=tmp_path, progress_bar=False)
    outputs = [o for c in json.loads(out.read_text())['cells'] for o in c.get('outputs', [])]
    page = next(''.join(o['data']['text/markdown']) for o in outputs if 'text/markdown' in o.get('data', {}))
    assert page.count('\n| ') >= 4 and '| minus row 5' in page and 'gru: update=gru' in page
    assert sum('image/png' in o.get('data', {}) for o in outputs) == 2
    assert not [o for o in outputs if o.get('name') == 'stderr']


# ---------------------------------------------------------------- what cannot be

@pytest.mark.parametrize('rows, message', [
    ('gru', 'is no row'), ('gru=', 'is no row'), ('=update=rnn', "'' cannot name"), ('a b=update=rnn', 'cannot name a row'),
    ('row5=update=rnn', 'there is a row row5 already'), ('a=update=rnn; a=update=fpn', 'there twice'),
    ('a=updat=rnn', "Did you mean 'update'"),
    ('a=update=rnnn', "row a: .*Did you mean 'rnn'"), ('a=update=rnn kernel=two', 'should be int'),
    ('a=seed=3', "parameter='seed'"),
    ('a=update=rnn normalise=gates', 'row a: '), ('a=update=rnn norm', 'name=value'),
    ('../x=update=rnn', 'cannot name')])
def test_rows_that_cannot_be(rows, message):
    with pytest.raises(RRNError, match=message): given_matrix(extra_rows=rows)


def test_rows_are_trained_with_all_seeds_and_change_nothing_else():
    plain, more = given_matrix(), given_matrix(extra_rows='a=update=rnn normalise=update; b=update=lstm pyramid=C5,C4')
    runs = [c.run for c in plain.cells()]
    assert [c.run for c in more.cells() if c.system not in more.extra_rows] == runs
    added = [(c.system, c.config.seed) for c in more.cells() if c.system in more.extra_rows]
    assert added == [(name, seed) for seed in (0, 1, 2) for name in 'ab']
    assert more.systems['b'].values == dict(update='lstm', pyramid='C5,C4') and list(more.table1) == [*TABLE1, 'a', 'b']


def test_without_extra_rows_the_table_is_the_papers(tmp_path):
    matrix = given_matrix(folder=str(tmp_path))
    assert len(table1(matrix)) == 15 * 6 and not set(RIVALS.values()) & set(table1(matrix).column)


# ---------------------------------------------------------------- what a run was made of

def test_a_run_does_not_go_on_with_another_function_of_that_name(here, scenes):
    given = dict(TINY, update='their_updates:Leaky', data_root=str(scenes), folder=str(here), run='one', preset='small')
    def write(source):
        (here/'their_updates.py').write_text(source)
        sys.modules.pop('their_updates', None)
        importlib.invalidate_caches()
        linecache.checkcache()
    train_job(given)
    assert len(Run(here/'one').identity()['update']) == 64
    write(MINE.replace('self.a(z) / 2, None', 'self.a(z)/2,  None      # half of both'))
    train_job(given)
    write(MINE.replace('self.a(z) / 2', 'self.a(z) / 4'))
    with pytest.raises(RRNError, match='the update function'): train_job(given)
    with pytest.raises(RRNError, match='another update function'): open_run(here/'one')
    train_job(given | dict(resume=False))
    assert open_run(here/'one')[0].config.update == given['update']


def test_runs_of_this_package_are_identified_as_before(here, scenes):
    job = open_job(**dict(TINY, data_root=str(scenes), folder=str(here), preset='small'))
    assert set(job.identity) == {'data', 'vocabulary', 'cnn'}


def test_a_file_that_registers_a_function_of_its_own_name(here, scenes, monkeypatch):
    "`rrn train -p update=mine`, where mine.py stands in the working directory."
    registered = MINE.replace('import Update', 'import Update, update_function').replace('class', "@update_function('mine')\nclass")
    (here/'mine.py').write_text(registered)
    settings = [f'{k}={v}' for k, v in TINY.items()]
    words = ['-p', 'update=mine', '-p', f'data_root={scenes}', '-p', f"folder={here/'runs'}", *settings]
    done = forked.run(['-m', 'rrn.cli', 'train', *words])
    assert done.returncode == 0, done.stderr
    run, = (here/'runs').glob('*/config.json')
    assert json.loads(run.read_text())['config']['update'] == 'mine' and json.loads(run.read_text())['identity']['update']
    with pytest.raises(RRNError, match="update='yours' is not known"): open_job(update='yours', data_root=str(scenes))
