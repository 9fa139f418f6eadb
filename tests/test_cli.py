"""The command `rrn`: its help comes from comments, settings are said in several ways, errors are one line."""
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from rrn.cli import COMMANDS, command_of, main
from rrn.common.command import parameter_comments
from rrn.common.core import RRNError
from rrn.experiments import jobs
from rrn.experiments.jobs import EvaluationOptions, open_job, run_job, RunOptions
from rrn.experiments.record import Run
from rrn.model import Config

REPO = Path(__file__).resolve().parents[1]
SCENES = {'train': 6, 'val': 2, 'testA': 1, 'testB': 1}
TINY = dict(image_size=48, iterations=2, D_Q=6, D_I=6, D_S=6, embed_dim=6, device='cpu')


def ends(words, capsys) -> tuple:
    "Exit status, output and errors of `rrn`, as a shell sees them."
    try: status = main(words)
    except SystemExit as e: status = e.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


def options_in(text) -> dict:
    "Option -> (comment, default) in a page of help."
    rows = [line.strip('│╭╮╰╯─ ') for line in text.splitlines()]
    plain = ' '.join(' '.join(rows).split()).replace('--help', '')
    found = re.findall(r' --(\w+)(?:, --no_\w+| [A-Z]+)* (.*?)\((?:default: (.*?)|required)\)(?= |$)', plain)
    return {name: (comment.strip(), default) for name, comment, default in found}


# ---- help ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', COMMANDS)
def test_every_option_has_a_comment(name, capsys):
    status, out, err = ends([name, '--help'], capsys)
    assert status == 0 and not err and f'usage: rrn {name}' in out
    for option, (comment, _) in options_in(out).items(): assert comment, option


def test_help_shows_every_field_with_the_default_of_the_preset(capsys):
    shown = options_in(ends(['train', '--help'], capsys)[1])
    assert set(shown) == {f.name for kind in (RunOptions, Config) for f in fields(kind)}
    assert shown['clip'] == ('largest norm of the gradient; 0: no limit', '0.0') and shown['dataset'][1] == 'shapes-unc'
    assert shown['preset'][1] == 'auto' and shown['iterations'][1] == '700000'
    for words in (['--preset', 'fast', '--help'], ['-p', 'preset', 'fast', '-h'], ['preset=fast', '--help']):
        assert options_in(ends(['train', *words], capsys)[1])['iterations'][1] == '22000'
    assert set(options_in(ends(['evaluate', '--help'], capsys)[1])) == {f.name for f in fields(EvaluationOptions)}


def test_help_names_every_data_set(capsys):
    from rrn.data.datasets import READERS
    from rrn.data.download import DATASETS
    for command, names in dict(train=READERS, doctor=READERS, score=READERS, download=DATASETS).items():
        words = re.findall(r'[\w+-]+', ends([command, '--help'], capsys)[1])
        assert {name for name in names if not name.startswith('shapes-')} <= set(words), command


def test_a_functions_comments_are_its_help(capsys):
    "What `examine` says of its parameters is what `rrn doctor` says."
    from rrn.data.doctor import examine
    shown = options_in(ends(['doctor', '--help'], capsys)[1])
    for name in ('workers', 'limit'): assert shown[name][0] == parameter_comments(examine)[name]


LISTS = """
import sys
from rrn.cli import main
try: main(['--help'])
finally: print([m for m in ('torch', 'numpy') if m in sys.modules])
"""


def test_the_list_of_commands_loads_nothing():
    "In a process of its own: a line for each command, without PyTorch."
    done = subprocess.run([sys.executable, '-c', LISTS], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0 and done.stdout.endswith('[]\n'), done.stderr
    for name in COMMANDS:
        assert re.search(rf'• {name} +[A-Z].*\. ', done.stdout), name


def test_without_words_the_help_is_shown(capsys):
    assert ends([], capsys)[:2] == ends(['--help'], capsys)[:2]


def test_argparse_is_gone():
    assert not [p for p in REPO.glob('rrn/**/*.py') if 'argparse' in p.read_text()]


# ---- settings --------------------------------------------------------------------------------------------------------

@pytest.fixture
def told(monkeypatch):
    "What `rrn train` tells the library, instead of a training."
    given = []
    monkeypatch.setattr(jobs, 'train_job', given.append)
    monkeypatch.setattr(jobs, 'summary', lambda rows: {})
    return given


WAYS = """
--dataset unc --data-root d --lr 1e-3 --no-resume
--dataset=unc --data_root=d --lr=.001 --resume False
-p dataset unc -p data_root d -p lr 1e-3 -p resume False
-p dataset=unc -p data_root=d -p lr=1e-3 -p resume=false
dataset=unc data_root=d lr=1e-3 resume=False
--dataset gref --dataset unc data_root=d -p lr 1e-3 --no_resume
"""


@pytest.mark.parametrize('line', WAYS.strip().splitlines())
def test_only_what_is_given_is_told(line, told, capsys):
    assert ends(['train', *line.split()], capsys)[0] == 0
    assert told == [dict(dataset='unc', data_root='d', lr=1e-3, resume=False)]


@pytest.mark.parametrize('words, given', [
    ([], {}), (['--mirror'], dict(mirror=True)), (['--no-mirror'], dict(mirror=False)),
    (['pyramid='], dict(pyramid='')), (['--run', 'a=b'], dict(run='a=b')), (['run=a=b'], dict(run='a=b')),
    (['clip=-1'], dict(clip=-1.)),
    (['--update', 'mine:GRU'], dict(update='mine:GRU')), (['--preset', 'paper'], dict(preset='paper')),
    (['-p', 'D_Q', '7'], dict(D_Q=7)), (['--D-Q', '7'], dict(D_Q=7)),
    (['--vocabulary', 'resume'], dict(vocabulary='resume'))])
def test_values(words, given, told, capsys):
    assert ends(['train', *words], capsys)[0] == 0 and told == [given]


def test_a_machine_without_tyro_takes_settings(told, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tyro', None)
    assert ends(['train', '--dataset', 'unc', 'lr=1e-3', '--no-resume', '--mirror'], capsys)[0] == 0
    assert told == [dict(dataset='unc', lr=1e-3, resume=False, mirror=True)]


@pytest.mark.parametrize('words, said', [
    (['train', 'iteration=5'], "Did you mean 'iterations'"), (['train', '--lrr', '5'], "Did you mean 'lr'"),
    (['train', '-p', 'iteration', '5'], "Did you mean 'iterations'"), (['train', 'resume=7'], 'should be bool'),
    (['train', '--preset', 'papper'], "Did you mean 'paper'"), (['train', 'lr'], 'name=value'),
    (['train', '-p', 'lr'], 'name=value'),
    (['train', '--lr', 'fast'], '--lr'), (['train', 'iterations=1.5'], '--iterations'), (['train', '--lr'], '--lr'),
    (['evaluate', 'split=val'], "Did you mean 'splits'"), (['doctor'], 'DATASET'),
    (['doctor', 'a', 'b', 'more'], 'more'),
    (['download', 'unc'], 'one folder'), (['predict', 'a.jpg'], 'what to find'),
    (['score', '--dataset', 'unc'], 'predictions'),
    (['score', 'x', '--dataset', 'unc', '--kind', 'masc'], 'probability'),
    (['trian'], "Did you mean 'train'"), (['--run'], 'Allowed: train')])
def test_wrong_words_are_answered_in_a_line(words, said, capsys):
    status, out, err = ends(words, capsys)
    assert status == 2 and not out and err.startswith('error: ') and err.count('\n') == 1 and said in err


@pytest.mark.parametrize('words, said', [
    (['train', 'dataset=unk'], "Did you mean 'unc'"), (['train', '--update', 'lsmt'], "Did you mean 'lstm'"),
    (['doctor', 'umc'], "Did you mean 'unc'"), (['evaluate', '--folder', '/nowhere'], 'no finished run'),
    (['matrix', 'trian'], "Did you mean 'train'"), (['leaks', '--data_root', '/nowhere'], 'is no folder'),
    (['publish', '.'], 'cannot be the name of a run')])
def test_what_cannot_be_done_is_status_1(words, said, capsys):
    status, out, err = ends(words, capsys)
    assert status == 1 and not out and err.startswith('error: ') and err.count('\n') == 1 and said in err


def test_names_with_a_dash(capsys):
    assert ends(['gpu-checks', '--help'], capsys) == ends(['gpu_checks', '--help'], capsys)
    assert all(callable(command_of(name)) for name in COMMANDS)


# ---- evaluate and predict --------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def run(scenes, tmp_path_factory):
    "A run that was trained for a moment, and the folder of runs that it lies in."
    folder = tmp_path_factory.mktemp('runs')
    run_job(open_job(data_root=str(scenes), folder=str(folder), run='a-run', **TINY))
    Image.fromarray(np.full((90, 127, 3), 200, 'uint8')).save(folder/'grey.png')
    return folder


def test_evaluate_prints_what_it_records(run, scenes, capsys):
    words = ['--run', 'a-run', '--folder', str(run), '--data-root', str(scenes), '--splits', 'val', '--crf', 'torch']
    status, out, err = ends(['evaluate', *words], capsys)
    assert status == 0 and 'a-run' in err
    recorded, shown = json.loads((run/'a-run'/'metrics.json').read_text()), json.loads(out)
    kinds = ('', ' (shuffled)', ' (no words)', ' (dcrf)')
    assert set(shown) == {f'shapes-unc val{kind}' for kind in kinds} == set(recorded)
    assert all(recorded[key]['overall_iou'] == shown[key]['overall_iou'] for key in shown)
    assert 'unknown_words' in recorded['shapes-unc val'] and recorded['shapes-unc val (dcrf)']['crf'] == 'torch'


def test_predict_writes_a_mask(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asks = ['predict', str(run/'grey.png'), 'left giraffe', '--run', str(run/'a-run')]
    status, out, err = ends([*asks, '-o', 'out/mask.png', '--overlay'], capsys)
    assert status == 0 and out.startswith('out/mask.png: "left giraffe", ') and out.count('\n') == 1
    assert "never seen 'giraffe'" in out and Path('out/mask-overlay.png').exists()
    with Image.open('out/mask.png') as mask: assert mask.size == (127, 90) and set(np.unique(mask)) <= {0, 255}
    assert ends(asks, capsys)[0] == 0 and Path('mask.png').read_bytes() == Path('out/mask.png').read_bytes()


def test_predict_many(run, tmp_path, monkeypatch, capsys):
    "Pictures of a table lie where it says, from here or from beside it; a line and a row say where each mask went."
    monkeypatch.chdir(tmp_path)
    assert ends(['predict', str(run/'grey.png'), 'left star', 'a = b', '--run', str(run/'a-run')], capsys)[0] == 0
    assert sorted(p.name for p in Path('masks').iterdir()) == ['grey-1.png', 'grey-2.png', 'masks.csv']
    (run/'ask.csv').write_text('sentence,picture\nleft star,grey.png\n"red, ring",grey.png\n')
    words = ['--csv', str(run/'ask.csv'), '--out', 'found', '--run', str(run/'a-run')]
    status, out, err = ends(['predict', *words], capsys)
    assert status == 0 and out.count('\n') == 2 and 'found/grey-2.png: "red, ring"' in out
    assert Path('found/grey-1.png').read_bytes() == Path('masks/grey-1.png').read_bytes()
    assert Path('found/masks.csv').read_text().splitlines()[0] == 'picture,sentence,mask,percent,unknown'


@pytest.mark.parametrize('words, status, said', [
    (['nowhere.png', 'left star'], 1, 'nowhere.png'), (['grey.png', 'left', 'right', '-o', 'x.png'], 2, 'folder'),
    (['grey.png', ''], 1, 'word'), (['grey.png', 'left', '--run', 'nobody'], 1, 'run'),
    (['--csv', 'nowhere.csv'], 1, 'nowhere.csv'), (['--csv', 'grey.png'], 1, 'no CSV'),
    (['--csv', 'bad.csv'], 1, 'row 1 has no sentence'), (['grey.png', 'left', '--csv', 'bad.csv'], 2, '--csv FILE')])
def test_predict_says_what_is_wrong(words, status, said, run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    Path('bad.csv').write_text('picture,words\ngrey.png,left star\n')
    found, out, err = ends(['predict', *words, *([] if '--run' in words else ['--run', str(run/'a-run')])], capsys)
    assert found == status and said in err and err.startswith('error: ') and err.count('\n') == 1
    assert not Path('mask.png').exists()


def test_the_newest_run_is_asked(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('rrn.experiments.record.runs_folder', lambda folder='': run)
    monkeypatch.chdir(tmp_path)
    assert ends(['predict', str(run/'grey.png'), 'left star'], capsys)[0] == 0 and Path('mask.png').exists()
