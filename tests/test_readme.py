"""What README says is true: its numbers are those of the records, its notebooks and files exist."""
import re
from pathlib import Path
from rrn.experiments.claims import claims_summary
from rrn.experiments.matrix import given_matrix
from rrn.experiments.report import read_records, replace_section, results_text
from rrn.experiments.tables import as_markdown, table1, table2

REPO = Path(__file__).resolve().parents[1]
TEXT = (REPO/'README.md').read_text()


def test_results_are_those_of_the_records():
    shown = re.findall(r'Run `([^`]+)`', TEXT)
    assert shown, 'README shows the results of at least one run'
    records = [r for r in read_records() if r['run'] in shown]
    assert TEXT == replace_section(TEXT, 'results', results_text(records)), 'run nbs/readme.ipynb'


def test_tables_and_claims_are_those_of_the_runs():
    matrix = given_matrix(folder='reports/runs/embedded')
    tables = as_markdown(1, table1(matrix), matrix) + '\n' + as_markdown(2, table2(matrix), matrix)
    assert TEXT == replace_section(replace_section(TEXT, 'tables', tables), 'claims', claims_summary(matrix)), 'run nbs/readme.ipynb'
    kept = (REPO/'reports'/'tables'/'table1.md').read_text()
    assert kept == as_markdown(1, table1(matrix), matrix), 'run nbs/tables.ipynb'


def test_named_files_exist():
    for name in re.findall(r'`nbs/(\w+\.ipynb)`', TEXT): assert (REPO/'nbs'/name).exists(), name
    for name in re.findall(r'\]\(([\w/.]+)\)', TEXT): assert (REPO/name).exists(), name
    for names in re.findall(r'^\| .+ \| ((?:\d\d_\w+(?:, )?)+) \|$', TEXT, re.M):
        for name in names.split(', '): assert (REPO/'nbs'/f'{name}.ipynb').exists(), name


def test_no_paths_of_a_machine():
    for path in [REPO/'README.md', *REPO.glob('nbs/*.ipynb'), *REPO.glob('reports/runs/*/*/*.*'), *REPO.glob('rrn/*.py')]:
        if path.suffix in ('.ipynb', '.md', '.json', '.csv', '.py'):
            text = path.read_text()
            for place in ('/root/', '/work/', '/home/', 'site-packages'): assert place not in text, (path, place)


SCENES = {'train': 6, 'val': 2, 'testA': 1, 'testB': 1}


def test_its_lines_for_asking_run_as_they_stand(scenes, tmp_path, monkeypatch):
    "With the newest finished run, as after the first command."
    from rrn.experiments.jobs import open_job, run_job
    tiny = dict(image_size=48, iterations=3, D_Q=6, D_I=6, D_S=6, embed_dim=6, device='cpu')
    run_job(open_job(data_root=str(scenes), folder=str(tmp_path), **tiny))
    monkeypatch.setattr('rrn.experiments.record.runs_folder', lambda folder='': tmp_path)
    lines, = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    names = {}
    exec(lines, names)
    assert names['mask'].shape == names['probability'].shape and names['mask'].ndim == 2
    assert names['mask'].dtype == bool
