"""How the house is kept: tools/house.py counts it, here stand the limits."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
import pytest

REPO = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('house', REPO/'tools'/'house.py')
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)

AT_MOST = {                                   # what may never become worse
    'README lines': 100, 'README table rows': 20,
    'function lines, median': 6, 'function lines, 90th percentile': 12, 'function lines, longest': 34,
    'library lines over 120 columns': 0, 'library lines over 140 columns': 0,
    'names defined in two modules': 0}
AT_LEAST = {'notebooks with a picture': 24, 'pictures': 60, 'code cells that show an output, %': 23}


@pytest.fixture(scope='module')
def now():
    return house.figures(house.files_now())


@pytest.mark.parametrize('name, limit', AT_MOST.items())
def test_no_more_than(now, name, limit):
    assert now[name] <= limit, f'python {REPO.name}/tools/house.py says {now[name]:.1f}'


@pytest.mark.parametrize('name, limit', AT_LEAST.items())
def test_no_less_than(now, name, limit):
    assert now[name] >= limit


def cell(kind, source, outputs=()):
    extra = dict(outputs=list(outputs), execution_count=None) if kind == 'code' else {}
    return dict(cell_type=kind, source=source, metadata={}, **extra)


PICTURE = dict(output_type='display_data', metadata={}, data={'image/png': 'x', 'text/plain': 'a picture'})
MODULE = '''
LIMIT, other = 1, 2
LIMIT_OF = {}
LIMIT_OF['x'] = 3

def f(x):
    "One line."
    def inner(): return 1
    return x

class Thing:
    def g(self): return 1

def main(): pass
def _private(): pass
''' + '# ' + 'x' * 130 + '\n'


@pytest.fixture
def toy(tmp_path):
    "A checkout with one library notebook, one driver and two modules."
    books = {'nbs/1_paper/00_a.ipynb': [cell('code', '#| default_exp a'), cell('code', '#| export\nLIMIT = 1\n\nother = 2'),
                                        cell('code', 'LIMIT', [PICTURE]), cell('markdown', '![a picture](x.png)')],
             'nbs/train.ipynb': [cell('code', 'one = 1\ntwo = 2\nthree = 3\nfour = 4')]}
    for path, cells in books.items():
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/path).write_text(json.dumps(dict(cells=cells)))
    (tmp_path/'rrn').mkdir()
    for name, text in {'a.py': MODULE, 'b.py': 'LIMIT = 2\ndef Thing(): return 1\nmain = 3\n', '_modidx.py': 'd = {}\n'}.items():
        (tmp_path/'rrn'/name).write_text(text)
    (tmp_path/'README.md').write_text('# A\n\n| a |\n| - |\n')
    return tmp_path


def test_it_counts(toy):
    found = house.figures(house.files_now(toy))
    assert found == {
        'notebooks': 2, 'that export a module': 1, 'in nbs/': 1, 'in nbs/1_paper': 1,
        'exported share of their code, %': pytest.approx(100 * 2 / 3), "exported share of all notebooks' code, %": pytest.approx(100 * 2 / 7),
        'code cells that show an output, %': pytest.approx(100 / 3), 'pictures': 2, 'notebooks with a picture': 1,
        'modules': 2, 'library lines': 19, 'function lines, median': 1, 'function lines, 90th percentile': 1,
        'function lines, longest': 4, 'library lines over 120 columns': 1, 'library lines over 140 columns': 0,
        'names defined in two modules': 2, 'README lines': 4, 'README table rows': 2}
    assert set(house.defined_twice(house.modules(house.files_now(toy)))) == {'LIMIT', 'Thing'}


def test_it_counts_a_commit_beside_what_is_there(toy):
    git = lambda *words: subprocess.run(['git', '-C', toy, '-c', 'user.name=a', '-c', 'user.email=a@b', *words], check=True, capture_output=True)
    git('init', '-q'), git('add', '-A'), git('commit', '-qm', 'one')
    before = house.files_of('HEAD', toy)
    assert before == house.files_now(toy)
    (toy/'README.md').write_text('# A\n')
    assert house.figures(house.files_of('HEAD', toy))['README lines'] == 4
    said = house.table({'HEAD': house.figures(before), 'now': house.figures(house.files_now(toy))})
    assert '| README lines | 4 | 1 |' in said and '| pictures | 2 | 2 |' in said


def test_as_a_command():
    said = subprocess.run([sys.executable, '-I', REPO/'tools'/'house.py', '--names'], capture_output=True, text=True, check=True)
    assert '| README lines |' in said.stdout
