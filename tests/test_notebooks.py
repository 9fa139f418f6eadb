"""The driver notebooks as a user runs them: through papermill, in a folder that is not the notebook's."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path
import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

REPO = Path(__file__).resolve().parents[1]
DRIVERS = sorted(p for p in (REPO/'nbs').glob('*.ipynb') if p.name != 'index.ipynb')
TINY = dict(image_size=64, iterations=30, D_Q=8, D_I=8, D_S=8, embed_dim=8, validate_every=1000, save_every=10)

SCENES = {'train': 12, 'val': 6, 'testA': 6, 'testB': 6}


@pytest.fixture
def run_folder():
    "A run name that no one uses, and its folder, removed afterwards."
    import shutil, uuid
    name = f'test-{uuid.uuid4().hex[:8]}'
    yield name
    shutil.rmtree(REPO/'runs'/name, ignore_errors=True)


def execute(notebook, tmp_path, **parameters):
    "Run a driver like `papermill nbs/X.ipynb out.ipynb -p ...`; the output notebook's text."
    out = tmp_path/'out.ipynb'
    papermill.execute_notebook(REPO/'nbs'/notebook, out, parameters, cwd=tmp_path, progress_bar=False)
    return out.read_text()


@pytest.mark.parametrize('path', DRIVERS, ids=lambda p: p.stem)
def test_driver_has_one_parameters_cell(path):
    cells = nbformat.read(path, 4).cells
    assert sum('parameters' in c.metadata.get('tags', []) for c in cells) == 1


def test_there_are_drivers():
    assert {'train', 'evaluate', 'pretrain'} <= {p.stem for p in DRIVERS}


@pytest.mark.parametrize('wrong, message', [
    (dict(iteration=5), "Did you mean 'iterations'"),
    (dict(update='lsmt'), "Did you mean 'lstm'"),
    (dict(iterations='many'), 'should be int'),
    (dict(dataset='unk'), "Allowed: unc, unc+"),
    (dict(device='cuda:77'), 'PyTorch sees'),
    (dict(dataset='unc', data_root='/nowhere'), 'data/README.md'),
])
def test_wrong_parameters_fail_at_once(tmp_path, wrong, message):
    with pytest.raises(PapermillExecutionError, match='RRNError') as e: execute('train.ipynb', tmp_path, **wrong)
    assert message in str(e.value)
    assert e.value.exec_count <= 6, 'before any data is read or network made'


def test_train_then_evaluate(tmp_path, scenes, run_folder):
    text = execute('train.ipynb', tmp_path, data_root=str(scenes), run=run_folder, **TINY)
    folder = REPO/'runs'/run_folder
    metrics = json.loads((folder/'metrics.json').read_text())
    assert set(metrics) == {'shapes-unc val', 'shapes-unc val (shuffled)', 'shapes-unc val (blind)'}
    assert all(0 <= m['overall_iou'] <= 100 and m['protocol'] == 'rrn' for m in metrics.values())
    config = json.loads((folder/'config.json').read_text())
    assert config['config']['iterations'] == 30 and config['preset'] == 'small'
    assert {'torch', 'python'} <= set(config['versions']) and config['training_seconds'] > 0 and config['device'] and config['code']
    assert text.count('image/png') >= 3, 'samples, curves and predictions are in the notebook'
    outputs = [o for c in json.loads(text)['cells'] for o in c.get('outputs', [])]
    bars = [''.join(o['data']['text/plain']) for o in outputs if '%|' in ''.join(o.get('data', {}).get('text/plain', ''))]
    assert len(bars) == 5 and all('100%' in bar for bar in bars), 'two trainings and three evaluations, a line each'
    assert not [o for o in outputs if o.get('name') == 'stderr']
    told = re.search(r"from_run\('(.*?)'\)", text)[1]
    assert (tmp_path/told/'model.safetensors').exists(), 'the path is right where the command was given'
    execute('evaluate.ipynb', tmp_path, run=run_folder, data_root=str(scenes), splits='testA,testB')
    metrics = json.loads((folder/'metrics.json').read_text())
    assert {'shapes-unc testA', 'shapes-unc testB', 'shapes-unc testB (shuffled)'} <= set(metrics) and len(metrics) == 9


def test_papermill_command_keeps_the_notebook(tmp_path, scenes, run_folder):
    "From the command line, in a folder of the user's, the executed notebook ends up in the run's record."
    flags = [w for k, v in (TINY | dict(data_root=str(scenes), run=run_folder, controls=False, iterations=4)).items() for w in ('-p', k, str(v))]
    command = [sys.executable, '-m', 'papermill', str(REPO/'nbs'/'train.ipynb'), 'out.ipynb', *flags]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=os.environ | {'PYTHONWARNINGS': 'ignore'})
    kept = json.loads((REPO/'runs'/run_folder/'train.ipynb').read_text())
    assert any('Training' in ''.join(c['source']) for c in kept['cells']) and kept['metadata']['papermill']['parameters']['run'] == run_folder


@pytest.mark.parametrize('path', DRIVERS, ids=lambda p: p.stem)
def test_nbdev_test_skips_drivers(path):
    "A driver takes minutes: its first cell tells nbdev_test to leave it out."
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == 'raw' and 'skip_exec: true' in first.source
