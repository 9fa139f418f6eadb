"""rrn.experiments.gpu_checks, rehearsed on the CPU at tiny sizes, as on a machine that lacks what it may lack."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch
from rrn.common.core import RRNError
from rrn.experiments.gpu_checks import is_done, main, NotFinished, Place, run_stages, STAGES, work_folder

REPO = Path(__file__).resolve().parents[1]
ABSENT = ['timm', 'pycocotools', 'accelerate', 'papermill', 'nbdev', 'execnb', 'fastcore', 'IPython', 'pydensecrf',
          'huggingface_hub', 'contourpy', 'tyro']
BLOCK = f"""
import sys
import time
class Absent:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in {ABSENT!r}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "Environment variables of a Python without the packages that a borrowed machine may lack."
    folder = tmp_path_factory.mktemp('bare')
    (folder/'sitecustomize.py').write_text(BLOCK)
    return os.environ | dict(PYTHONPATH=f'{folder}{os.pathsep}{REPO}', OMP_NUM_THREADS='1')


@pytest.fixture(scope='module')
def rehearsal(bare, tmp_path_factory):
    "All stages, from a plain checkout: (what was said, the folder)."
    out = tmp_path_factory.mktemp('gpu')
    command = [sys.executable, '-m', 'rrn.experiments.gpu_checks', '--device', 'cpu', '--tiny', '--out', str(out)]
    return subprocess.run(command, env=bare, cwd=out, capture_output=True, text=True), out


def test_every_stage_is_recorded(rehearsal):
    process, out = rehearsal
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    records = json.loads((out/'records.json').read_text())
    assert list(records) == list(STAGES) and all(map(is_done, records.values()))
    assert 'rehearsal' in process.stdout and all(r['tiny'] and {'code', 'versions', 'device'} <= set(r)
                                                 for r in records.values())


def test_what_the_rehearsal_shows_on_a_cpu(rehearsal):
    "Here the device is the CPU, so that float32 is the same and bits are, too."
    records = json.loads((rehearsal[1]/'records.json').read_text())
    assert records['vectors']['too_far'] == [] and all(ways['fp32'] == [0, 0]
                                                       for ways in records['vectors']['errors'].values())
    assert all(ways['released program, fp32'][0] < 1e-5 for n,
               ways in records['vectors']['errors'].items() if not n.startswith('preset'))
    assert all(records['determinism']['same_bits'].values())
    assert records['kill']['same_bits'] and 0 < records['kill']['killed_at_step'] < 30
    assert all(e['labels_that_differ'] == 0 for e in records['crf']['errors'].values())
    assert set(records['machine']['packages_absent']) >= {'timm', 'pycocotools', 'accelerate'}
    assert records['train']['steps'] == 6 and records['train']['last_loss'] < records['train']['first_loss']


def test_nothing_is_done_twice(rehearsal, capsys):
    _, out = rehearsal
    before = (out/'records.json').read_bytes()
    with pytest.raises(SystemExit) as e: main(['--device', 'cpu', '--tiny', '--out', str(out)])
    assert e.value.code == 0 and (out/'records.json').read_bytes() == before
    assert 'recorded' not in capsys.readouterr().out


def place(out, minutes=9): return Place(torch.device('cpu'), True, work_folder(out), time.monotonic() + 60 * minutes)


def test_time_is_up_between_stages_and_within_one(tmp_path, monkeypatch):
    "A call does at least one stage; the training stops at a checkpoint and goes on in the next call."
    said, first = [], ['machine', 'crf']
    assert list(run_stages(place(tmp_path, 0), tmp_path, first, said.append)) == ['machine']
    assert said[-1] == 'time is up before crf'
    assert json.loads((tmp_path/'records.json').read_text()).keys() == {'machine'}
    assert list(run_stages(place(tmp_path, 0), tmp_path, first, said.append)) == first
    assert 'train' not in run_stages(place(tmp_path, 0), tmp_path, ['train'],
                                     said.append) and 'at step 3 of 6' in said[-1]
    assert run_stages(place(tmp_path), tmp_path, ['train'], said.append)['train']['steps'] == 6
    assert len(list((tmp_path/'work'/'train'/'checkpoints').iterdir())) == 2


def test_a_stage_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    broken = STAGES['crf']
    monkeypatch.setitem(STAGES, 'crf', type(broken)(lambda place: 1 / 0, 0, 'fails'))
    with pytest.raises(SystemExit) as e: main(['--device', 'cpu', '--tiny', '--out', str(tmp_path), '--only',
                                               'crf,machine'])
    records = json.loads((tmp_path/'records.json').read_text())
    assert e.value.code == 1 and 'ZeroDivisionError' in records['crf']['error'] and is_done(records['machine'])
    assert 'crf failed: ZeroDivisionError' in capsys.readouterr().out
    monkeypatch.setitem(STAGES, 'crf', broken)
    assert is_done(run_stages(place(tmp_path), tmp_path, ['crf'])['crf'])


def test_stages_alone(tmp_path):
    "A share is one of a peak that is measured where it is not known; a comparison without its other side says so."
    records = run_stages(place(tmp_path), tmp_path, ['speed 1x1', 'kill'])
    assert records['speed 1x1']['share_of_peak'] > 0 and 'do the stage determinism first' in records['kill']['error']


def test_records_are_not_mixed(tmp_path, capsys):
    (tmp_path/'records.json').write_text(json.dumps(dict(machine=dict(device='another', tiny=True))))
    with pytest.raises(RRNError, match='--out FOLDER'): run_stages(place(tmp_path), tmp_path)
    assert main(['--device', 'cpu', '--out', str(tmp_path)]) == 1 and 'no GPU here' in capsys.readouterr().err
    assert main(['--device', 'cpu', '--tiny', '--out', str(tmp_path/'new'), '--only', 'machin']) == 1
    assert "Did you mean 'machine'" in capsys.readouterr().err
