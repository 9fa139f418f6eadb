"""What README says is true: its numbers are those of the records, its notebooks and files exist."""
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
import nbformat
import numpy as np
import pytest
from packaging.specifiers import SpecifierSet
from PIL import Image
from rrn.common.core import read_json
from rrn.experiments.benchmark import speed_text
from rrn.experiments.claims import claims_summary
from rrn.experiments.matrix import given_matrix
from rrn.experiments.paper_report import findings
from rrn.experiments.report import read_records, replace_section, results_text

REPO = Path(__file__).resolve().parents[1]
TEXT = (REPO/'README.md').read_text()
REPORTS = (REPO/'reports'/'README.md').read_text()
MATRIX = given_matrix(folder='reports/runs/embedded')


def records_shown():
    "The records that the page of reports names."
    shown = re.findall(r'Run `([^`]+)`', REPORTS)
    assert shown, 'the results of at least one run are shown'
    return [r for r in read_records() if r['run'] in shown]


def test_findings_are_those_of_the_records():
    record, = records_shown()
    assert TEXT == replace_section(TEXT, 'findings', findings(record)), 'run nbs/readme.ipynb'
    assert 'It says nothing about photographs' in TEXT


def test_results_are_those_of_the_records():
    assert REPORTS == replace_section(REPORTS, 'results', results_text(records_shown())), 'run nbs/readme.ipynb'


def test_claims_are_those_of_the_runs():
    "tests/test_published.py has the tables."
    assert REPORTS == replace_section(REPORTS, 'claims', claims_summary(MATRIX)), 'run nbs/readme.ipynb'


def test_speed_is_that_of_a_report():
    made = [speed_text(read_json(path, 'report')) for path in (REPO/'reports'/'benchmarks').glob('*.json')]
    assert REPORTS in [replace_section(REPORTS, 'speed', text) for text in made], 'run nbs/readme.ipynb'


def test_no_other_number_is_typed():
    "Outside the generated sections there is nothing that looks like a score."
    for text in (TEXT, REPORTS):
        typed = re.sub(r'<!-- (\w+): made by.*?<!-- end of \1 -->', '', text, flags=re.S)
        assert not re.findall(r'\b\d+\.\d+ ?%|(?<= )[+-]\d+\.\d|\b\d\d\.\d\b', typed)


def test_named_files_exist():
    for name in re.findall(r'`(nbs/[\w/.*]+)`', TEXT): assert list(REPO.glob(name)), name
    for place, text in ((REPO, TEXT), (REPO/'reports', REPORTS)):
        for name in re.findall(r'\]\(([\w/.-]+)', text): assert (place/name).exists(), name


def test_every_floor_and_every_driver_is_named():
    drivers = {path.stem for path in REPO.glob('nbs/*.ipynb')}
    assert drivers <= set(re.findall(r'`(\w+)`', TEXT)) | set(re.findall(r'`nbs/(\w+)\.ipynb`', TEXT))
    assert {path.name for path in REPO.glob('nbs/[0-9]*/')} == set(re.findall(r'^\| `nbs/(\d\w+)` \|', TEXT, re.M))


def test_the_first_screen():
    "What it is, a picture with the commands that make it, what was found, training and tests: within fifty lines."
    screen = '\n'.join(TEXT.splitlines()[:50])
    for part in ('![', '    pip install .\n    rrn predict scene', '<!-- findings', 'uv run papermill nbs/train.ipynb out.ipynb', 'uv run nbdev_test && uv run pytest'):
        assert part in screen, part
    assert len(TEXT.splitlines()) <= 100


def test_the_container_does_what_is_said():
    "A devcontainer sets itself up, trains and tests by the commands of README, on a Python that the package takes."
    container = json.loads((REPO/'.devcontainer'/'devcontainer.json').read_text())
    for step in ('postCreateCommand', 'postAttachCommand'): assert f'\n    {container[step]}\n' in TEXT
    takes = tomllib.loads((REPO/'pyproject.toml').read_text())['project']['requires-python']
    assert SpecifierSet(takes).contains(container['image'].rpartition(':')[2])


def test_no_paths_of_a_machine():
    found = [p for folder in ('nbs', 'rrn', 'reports', 'docs') for p in (REPO/folder).rglob('*')]
    for path in [*REPO.glob('*.md'), *found]:
        if path.suffix in ('.ipynb', '.md', '.json', '.csv', '.py') and '.ipynb_checkpoints' not in path.parts:
            text = path.read_text()
            for place in ('/root/', '/work/', '/home/', 'site-packages'): assert place not in text, (path, place)


def outputs(path):
    "What the cells of a notebook show, and as text."
    shown = [output for cell in nbformat.read(path, 4).cells for output in cell.get('outputs', [])]
    said = lambda o: o.get('text', '') + ''.join(str(v) for k, v in o.get('data', {}).items() if k.startswith('text/'))
    return [(output, said(output)) for output in shown]


@pytest.mark.parametrize('path', sorted(REPO.glob('nbs/**/*.ipynb')), ids=lambda path: path.stem)
def test_outputs_show_no_place_of_a_machine_and_no_progress(path):
    "Temporary folders and bars are no result."
    for output, said in outputs(path):
        assert output.output_type != 'error'
        assert not re.search(r'/(tmp|root|home|work)/|\d%\|', said), said[:300]


@pytest.mark.parametrize('path', sorted(REPO.glob('nbs/*.ipynb')), ids=lambda path: path.stem)
def test_drivers_are_committed_with_a_real_run(path):
    shown = outputs(path)
    assert shown and not [o for o, _ in shown if o.get('name') == 'stderr'], 'python tools/keep_outputs.py'
    assert path.stat().st_size < 600_000
    without_picture = ('data', 'deviations', 'tables')
    assert path.stem in without_picture or any('image/png' in o.get('data', {}) for o, _ in shown)


def test_its_first_picture_is_what_its_first_command_draws(tmp_path, monkeypatch):
    "To a hundredth of the colours' range on average: letters and the last digits may be drawn otherwise elsewhere."
    from rrn.cli import main
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(re.search(r'^    (rrn predict scene .*)$', TEXT, re.M)[1])
    assert program == 'rrn' and not main(words)
    with Image.open(REPO/'reports'/'figures'/'readme.png') as shown, Image.open(tmp_path/'masks'/'overlays.png') as drawn:
        shown, drawn = (np.asarray(image.convert('RGB'), float) for image in (shown, drawn))
    assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 2.55, 'run nbs/readme.ipynb'


def test_its_lines_for_asking_run_as_they_stand():
    "With the model that comes with the library."
    lines, = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    names = {}
    exec(lines, names)
    assert names['mask'].shape == names['probability'].shape and names['mask'].ndim == 2
    assert names['mask'].dtype == bool


def test_what_commands_leave_in_a_clone_is_ignored():
    "`git status` stays empty after README's commands."
    left = ['masks/overlays.png', 'mask.png', 'mask-overlay.png', 'onnx/cnn.onnx', 'out.ipynb', 'runs/x/metrics.json', 'build/lib/rrn/ask.py']
    done = subprocess.run(['git', 'check-ignore', '--no-index', *left], cwd=REPO, capture_output=True, text=True)
    if done.returncode == 128: pytest.skip('this is no checkout of git')
    assert done.stdout.split() == left
