"""What a wheel holds works outside of a checkout, and what needs a checkout says so."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
import forked
import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "A folder with the files that setuptools puts into a wheel."
    tools = tomllib.loads((REPO/'pyproject.toml').read_text())['tool']['setuptools']
    site = tmp_path_factory.mktemp('site')
    for package in tools['packages']:
        folder = Path(*package.split('.'))
        patterns = ['*.py', *tools['package-data'].get(package, [])]
        for source in {p for pattern in patterns for p in (REPO/folder).glob(pattern) if p.is_file()}:
            target = site/source.relative_to(REPO)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return site


@pytest.fixture
def python(installed, tmp_path):
    "Run a program with the wheel's files, in a folder that is no checkout; what it prints."
    def run(program):
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PYTHONPATH=str(installed))
        done = forked.run(['-c', program], tmp_path, env)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return run


def test_every_file_that_the_library_reads_is_in_the_wheel(installed):
    "Assets of every kind, and every package that has modules."
    there = {p.relative_to(installed) for p in installed.rglob('*') if p.is_file()}
    assert {p.relative_to(REPO) for p in (REPO/'rrn').rglob('*') if p.is_file() and '__pycache__' not in p.parts} <= there


def test_the_working_directory_takes_the_place_of_a_checkout(python, tmp_path):
    said = python('''
from rrn.common.core import checkout, repo_root
from rrn.experiments.cost import probes_file
from rrn.experiments.record import published_runs, runs_folder
from rrn.experiments.tables import paper_numbers
print(checkout(), repo_root(), runs_folder(), published_runs(), probes_file())
print(paper_numbers()['table1', 'row12', 'overall_iou'])
''')
    assert said.split() == ['None', *map(str, (tmp_path, tmp_path/'runs', [], tmp_path/'runs'/'.probes.json')), '54.26']


def test_pages_are_made(python, tmp_path):
    "Tables and claims of runs that do not exist, and the page of deviations."
    python('''
from rrn.experiments.claims import write_claims
from rrn.experiments.deviations import deviations_page, write_deviations_page
from rrn.experiments.matrix import given_matrix
from rrn.experiments.tables import write_tables
matrix = given_matrix(datasets='shapes-unc')
write_tables(matrix, 'tables')
write_claims(matrix, 'tables')
write_deviations_page('deviations.md')
''')
    assert '54.26' in (tmp_path/'tables'/'table1.md').read_text()
    assert 'comparisons could be made' in (tmp_path/'tables'/'claims.md').read_text()
    assert 'No effect has been measured' in (tmp_path/'deviations.md').read_text()


NEED_A_CHECKOUT = {     # what is called -> what its message names
    "matrix.papermill_command('train', 'out.ipynb')": 'nbs/train.ipynb',
    "matrix.run_step(drawn, 'train', drawn.cells()[0].run)": 'nbs/train.ipynb',
    "matrix.make_report({}, 'tables')": 'nbs/tables.ipynb',
    "report.publish('a-run')": 'reports/runs',
    "deviations.write_deviations_page()": 'docs/deviations.md',
    "gpu_checks.vectors_folder()": 'reference vectors'}


def test_what_needs_a_checkout_says_so(python):
    said = python(f'''
from rrn.common.core import RRNError
from rrn.experiments import deviations, gpu_checks, matrix, report
drawn = matrix.given_matrix(data_root='.')
for call in {list(NEED_A_CHECKOUT)}:
    try: eval(call)
    except RRNError as e: print(e)
    else: print(call, 'went well')
''').splitlines()
    for line, (call, what) in zip(said, NEED_A_CHECKOUT.items(), strict=True):
        assert what in line and 'needs a checkout' in line and 'Clone the repository' in line, (call, line)


def test_the_version_is_not_that_of_somebody_elses_repository(python, tmp_path):
    "In a repository of the user's own, the version of the code is the installed one."
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path)]
    for words in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'mine']): subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, 'rev-parse', '--short=12', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
    said = python('from rrn.common.core import code_version\nprint(code_version())').strip()
    assert said and said != head


# ---------------------------------------------------------------- a wheel in an empty environment, without a network

BUILD = 'import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))'
NO_NETWORK = '''
import socket
def refused(*words): raise OSError('this test has no network')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
'''


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    "An environment with the built wheel beside the packages of this one; no program in it reaches a network."
    place = tmp_path_factory.mktemp('wheel')
    shutil.copytree(REPO/'rrn', place/'source'/'rrn', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(REPO/name, place/'source'/name)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-c', BUILD, str(place)], cwd=place/'source', env=env, check=True, capture_output=True)
    subprocess.run([sys.executable, '-m', 'venv', str(place/'venv')], check=True)
    site = next((place/'venv').glob('lib/python*/site-packages'))
    (site/'packages.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    (site/'sitecustomize.py').write_text(NO_NETWORK)
    wheel, = place.glob('rrn-*.whl')
    command = [place/'venv'/'bin'/'python', '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', str(wheel)]
    subprocess.run(command, check=True, env=env)
    return place/'venv'


@pytest.fixture
def rrn(environment, tmp_path):
    "Run the installed command in an empty folder, with an empty home."
    def run(*words, program='rrn'):
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'HF_HOME', 'TORCH_HOME', 'XDG_CACHE_HOME')}
        return subprocess.run([environment/'bin'/program, *words], cwd=tmp_path, env=env | dict(HOME=str(tmp_path/'home')),
                              capture_output=True, text=True)
    return run


CHECK = '''
import rrn, sys
from rrn.common.core import read_json
from rrn.experiments.package import boxes, differs
from rrn.predict import Predictor
assert rrn.__file__.startswith(sys.prefix), rrn.__file__
predictor = Predictor.from_pretrained('shapes-unc', device='cpu')
told = read_json(predictor.run.folder/'scene.json')['asked']
answers = predictor.set_image(predictor.run.folder/'scene.jpg').predict([s['sentence'] for s in told])
print([differs(a, s) for a, s in zip(answers, told)])
'''


def test_one_command_gives_a_mask(rrn, tmp_path):
    "README's: nothing is trained, fetched or configured before it."
    told = json.loads((REPO/'rrn'/'assets'/'models'/'shapes-unc'/'scene.json').read_text())['asked']
    sentence = max(told, key=lambda t: t['intersection'])['sentence']
    done = rrn('predict', 'scene', sentence, '-o', 'mask.png', '--overlay')
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path/'mask.png') as mask: assert set(np.unique(mask)) == {0, 255}
    assert {p.name for p in tmp_path.glob('*.png')} == {'mask.png', 'mask-overlay.png'}


def test_the_answers_of_the_wheel_are_those_of_the_record(rrn):
    "Counts of pixels. On another processor a pixel within 0.0001 of the threshold may fall on either side (docs/determinism.md)."
    done = rrn('-c', CHECK, program='python')
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip(' []\n').split(', ')) == {'0'}


def test_another_picture_is_answered_with_a_word_about_photographs(rrn, tmp_path):
    Image.new('RGB', (90, 60), 'white').save(tmp_path/'photo.png')
    (tmp_path/'questions.csv').write_text('picture,sentence,out\nphoto.png,left giraffe,giraffe.png\nphoto.png,red star,\n')
    done = rrn('predict', '--csv', 'questions.csv', '--out', 'found')
    assert done.returncode == 0 and 'not photographs' in done.stderr and "never seen 'giraffe'" in done.stdout, done.stderr
    assert {p.name for p in (tmp_path/'found').iterdir()} == {'giraffe.png', 'photo-2.png', 'masks.csv'}


def test_a_hub_is_not_reached(rrn):
    done = rrn('predict', 'scene', 'star', '--run', 'nobody/nothing')
    assert done.returncode == 1 and done.stderr.startswith('error: nobody/nothing is no folder here'), done.stderr
