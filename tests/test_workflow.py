"""The workflow as a user runs it, in a scratch checkout: what it lists, makes, leaves alone, and how it goes on after a kill."""
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import psutil
import pytest
import snakemake.cli
from rrn.core import RRNError
from rrn.matrix import device_slot, draw_scenes, given_matrix, outputs, weights_file

REPO = Path(__file__).resolve().parents[1]
TINY = dict(datasets='shapes-unc', more_seeds='', image_size=64, D_Q=8, D_I=8, D_S=8, embed_dim=8)

SCENES = {'train': 12, 'val': 6, 'testA': 6, 'testB': 6}


def new_checkout(root):
    "A checkout in `root` with the code of this one and no runs."
    (root/'data').mkdir(parents=True)
    shutil.copy(REPO/'data'/'published.yaml', root/'data')
    for name in ('Snakefile', 'settings.ini'): shutil.copy(REPO/name, root)
    for name in ('rrn', 'nbs', 'profiles'): (root/name).symlink_to(REPO/name)
    return root


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout of its own, as the working directory."
    monkeypatch.chdir(new_checkout(tmp_path))
    return tmp_path


def given(settings): return ['--config', *(f'{k}={v}' for k, v in settings.items())] if settings else []


def ask(*words, **settings):
    "`snakemake WORDS --cores 1 --config SETTINGS` in this process: (exit status, what it says)."
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try: snakemake.cli.main([*words, '--cores', '1', *given(settings)])
        except SystemExit as e: return e.code, said.getvalue()


def jobs(said) -> dict:
    "Job -> count of a dry run; {} if there is nothing to be done."
    table = said.rpartition('Job stats:')[2].partition('total')[0] if 'Job stats:' in said else ''
    return {line.split()[0]: int(line.split()[1]) for line in table.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit()}


def planned(*words, **settings) -> set:
    "The jobs that a dry run lists, beside the target."
    status, said = ask(*words, '-n', **settings)
    assert status == 0, said
    assert all(n == 1 for n in jobs(said).values())
    return set(jobs(said)) - {'reports', 'runs', 'trained'}


def start(target, where, /, **settings):
    "The same as a process of its own, in a group of its own."
    command = [sys.executable, '-m', 'snakemake', target, '--cores', '1', *given(settings)]
    env = os.environ | dict(PYTHONPATH=str(REPO), OMP_NUM_THREADS='1')
    return subprocess.Popen(command, cwd=where, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def run(target, **settings):
    "Run to the end, which has to be good."
    status, said = ask(target, **settings)
    assert status == 0, said


def wanted_jobs(matrix):
    cells = matrix.cells()
    return {f'train_{c.run}' for c in cells} | {f'evaluate_{c.run}' for c in cells if outputs(matrix, c, 'evaluate')}


@pytest.mark.parametrize('settings, extra', [
    (dict(), {'tables', 'figures'}),
    (dict(matrix='paper', data_root='/nowhere'), {'tables', 'figures'}),
    (TINY | dict(data_root='/nowhere'), {'tables', 'figures'}),
], ids=['embedded', 'paper', 'given-data'])
def test_a_dry_run_lists_every_cell(checkout, settings, extra):
    assert planned('reports', **settings) == wanted_jobs(given_matrix(**settings)) | extra


@pytest.mark.parametrize('settings, message', [
    (dict(iteration=3), "Did you mean 'iterations'"),
    (dict(matrix='papper'), "Did you mean 'paper'"),
    (dict(iterations='many'), 'should be int'),
    (dict(update='lsmt'), "Did you mean 'lstm'"),
])
def test_wrong_settings_fail_with_one_message(checkout, settings, message):
    status, said = ask('reports', '-n', **settings)
    assert status == 1 and said.count(message) == 1 and 'Traceback' not in said, said


def pretend(files):
    "Empty files, each newer than those before, as a checkout might leave them."
    for i, file in enumerate(map(Path, files)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('')
        os.utime(file, (10**9 + i, 10**9 + i))


def pretend_clone(counts_last=False):
    "What is committed: counts, tables and figures, but no weights."
    matrix = given_matrix()
    counts = [f for c in matrix.cells() for f in outputs(matrix, c)]
    made = [f'reports/tables/table{n}.{e}' for n in (1, 2) for e in ('md', 'csv', 'tex')] + ['reports/tables/claims.md']
    drawn = [f'reports/figures/figure{n}.{e}' for n in range(1, 6) for e in ('png', 'pdf')] + ['reports/figures/figures.json']
    pretend(drawn + made + counts if counts_last else counts + made + drawn)
    Path('reports/figures/figures.json').write_text(json.dumps(dict(runs=[c.run for c in matrix.cells()][:5])))
    return matrix


def test_a_fresh_clone_needs_no_training(checkout):
    pretend_clone()
    assert planned('reports') == set()
    pretend_clone(counts_last=True)
    assert planned('reports') == {'tables'}


def test_in_a_fresh_clone_other_settings_make_other_runs(checkout):
    pretend_clone()
    assert planned('reports', iterations=30) == wanted_jobs(given_matrix(iterations=30)) | {'tables', 'figures'}


def test_in_a_fresh_clone_one_missing_run_is_one_run(checkout):
    matrix = pretend_clone()
    cell = matrix.cell('row5', 'shapes-unc')
    Path(outputs(matrix, cell, 'train')[0]).unlink()
    assert planned('reports') == {f'train_{cell.run}', f'evaluate_{cell.run}', 'tables'}


def kill_all(process):
    "kill -9 of the workflow, all that it started, and the kernels that left its group."
    family = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs([psutil.Process(p) for p in family if psutil.pid_exists(p)], timeout=60)


@pytest.mark.timeout(1800)
def test_made_once_made_beside_and_made_in_spite_of_a_kill(tmp_path, scenes, monkeypatch):
    """One row for real. It is made, and not made again; with another number of steps it is made beside what there is; and a workflow killed
    in the middle goes on by the same command, with no lock to remove by hand, to the weights of the training that nobody killed."""
    monkeypatch.setenv('PYTHONPATH', str(REPO)); monkeypatch.setenv('OMP_NUM_THREADS', '1')
    whole, killed = (new_checkout(tmp_path/name) for name in ('whole', 'killed'))
    monkeypatch.chdir(whole)
    few, many = (TINY | dict(data_root=scenes, folder='elsewhere', iterations=n) for n in (3, 560))
    cell, other = (given_matrix(**settings).cell('row12', 'shapes-unc') for settings in (few, many))
    run(f'evaluate_{cell.run}', **few)
    made = [Path(f) for f in [weights_file(given_matrix(**few), cell), *outputs(given_matrix(**few), cell)]]
    assert len(made) == 7 and all(f.stat().st_size > 0 for f in made) and made[0].parts[0] == 'elsewhere'
    assert {'train.ipynb', 'evaluate.ipynb', 'train.log', 'evaluate.log', 'config.json'} <= {f.name for f in made[0].parent.iterdir()}
    before = {f: f.read_bytes() for f in made}
    assert planned(f'evaluate_{cell.run}', **few) == set()
    target = f'train_{other.run}'
    assert planned(f'evaluate_{other.run}', **many) == {target, f'evaluate_{other.run}'}
    run(target, **many)
    assert all(f.read_bytes() == content for f, content in before.items())
    monkeypatch.chdir(killed)
    record = Path('elsewhere')/other.run
    with start(target, killed, **many) as process:
        while not (record/'checkpoints'/'step-00000500').exists() and process.poll() is None: time.sleep(.02)
        kill_all(process)
    assert not (record/'model.safetensors').exists() and list(Path('.snakemake/locks').iterdir()), 'killed in the middle, with a lock left'
    run(target, **many)
    for name in ('model.safetensors', f'rows/{made[1].name}'): assert (record/name).read_bytes() == (whole/record/name).read_bytes()


def hold(folder, per_gpu, told):
    "Take a slot of two made-up GPUs and keep it until killed."
    try:
        with device_slot(2, per_gpu, folder) as device:
            told.put((os.getpid(), device))
            told.close(); told.join_thread()
            signal.pause()
    except RRNError: told.put((os.getpid(), None))


@pytest.mark.parametrize('per_gpu', [1, 3])
def test_no_gpu_slot_is_given_twice_and_a_killed_holder_frees_it(tmp_path, per_gpu):
    fork = multiprocessing.get_context('fork')
    told = fork.Queue()
    def begin(n):
        started = [fork.Process(target=hold, args=(tmp_path, per_gpu, told)) for _ in range(n)]
        for p in started: p.start()
        return started, dict(told.get(timeout=60) for _ in started)
    holders, slots = begin(9)
    given_out = sorted(d for d in slots.values() if d)
    assert given_out == sorted(['cuda:0', 'cuda:1'] * per_gpu), 'as many as there are, shared out evenly; the rest are told no'
    victim = next(p for p in holders if slots[p.pid] == 'cuda:1')
    victim.kill(); victim.join()
    more, again = begin(3)
    assert sorted(again.values(), key=str) == [None, None, 'cuda:1'], 'what it held, and no more'
    for p in holders + more:
        p.kill(); p.join()


def test_on_a_machine_with_gpus_the_workflow_starts_no_more_runs_than_fit(checkout, monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    seen = []
    monkeypatch.setattr('snakemake.scheduling.job_scheduler.JobScheduler.__init__', lambda self, workflow, *rest, **more: seen.append(workflow.global_resources['gpu']) or sys.exit(3))
    for words, settings in ([], {}), ([], dict(runs_per_gpu=3)), (['--resources', 'gpu=1'], {}): ask('trained', '-n', *words, **settings)
    assert seen == [2, 6, 1]


def test_scenes_are_drawn_once_and_only_where_no_data_is_given(checkout, monkeypatch):
    drawn = []
    monkeypatch.setattr('rrn.matrix.ensure', drawn.append)
    for settings in dict(), dict(data_root='/nowhere'), dict(matrix='paper'):
        matrix = given_matrix(**settings)
        draw_scenes(matrix, matrix.cells()[0])
    assert drawn == ['unc']


def test_profiles_are_ones_that_snakemake_reads():
    import yaml
    default, *others = [yaml.safe_load((REPO/'profiles'/name/'config.yaml').read_text()) for name in ('default', 'slurm', 'kubernetes')]
    for profile in others: assert default.items() <= profile.items() and profile['executor'] and profile['retries'] > 0


def plugin_there():
    try: import snakemake_executor_plugin_slurm
    except ImportError: return False
    return True


@pytest.mark.skipif(not (shutil.which('sbatch') and plugin_there()), reason='needs a running Slurm and snakemake-executor-plugin-slurm')
def test_slurm(checkout, scenes):
    "One training through sbatch."
    settings = TINY | dict(data_root=scenes, iterations=3, gpus_per_run=0)
    matrix = given_matrix(**{k: v for k, v in settings.items() if k != 'gpus_per_run'})
    cell = matrix.cell('row2', 'shapes-unc')
    command = [sys.executable, '-m', 'snakemake', f'train_{cell.run}', '--workflow-profile', 'profiles/slurm', '--latency-wait', '5', '--slurm-status-command', 'squeue', '--slurm-init-seconds-before-status-checks', '20',
               '--default-resources', 'runtime=10', 'mem_mb=2000', 'cpus_per_task=1', *given(settings)]
    done = subprocess.run(command, env=os.environ | dict(PYTHONPATH=str(REPO)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(weights_file(matrix, cell)).exists() and 'SLURM jobid' in done.stderr
