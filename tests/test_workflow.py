"""The workflow as a user runs it, in a scratch checkout: what it lists, makes, leaves alone, and how it goes on after a kill."""
import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import psutil
import pytest
import snakemake.cli
from rrn.common.core import RRNError
from rrn.experiments.cost import Rate, step_operations
from rrn.experiments.matrix import (device_slot, draw_scenes, given_matrix, result_keys, count_files, papermill_command,
                                    weights_file)
from rrn.experiments.record import published_run, rows_file
from rrn.common.core import write_json
from rrn.experiments.workflow import answer_goals, read_settings, done_stamp

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


def given(settings):
    "The words behind --config; no probe unless asked for."
    return ['--config', *(f'{k}={v}' for k, v in (dict(estimate=False) | settings).items())]


def ask(*words, **settings):
    "`snakemake WORDS --cores 1 --config SETTINGS` in this process: (exit status, what it says)."
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try: snakemake.cli.main([*words, '--cores', '1', *given(settings)])
        except SystemExit as e: return e.code, said.getvalue()


def planned(*words, **settings) -> set:
    "The jobs that a dry run lists, beside the target: 'tables', 'train_<run>', ..."
    status, said = ask(*words, '-n', **settings)
    assert status == 0, said
    blocks = re.findall(r'^(?:local)?rule (\w+):\n((?:    .*\n)+)', said, re.M)
    runs = [(rule, re.search(r'wildcards: run=(\S+)', block)) for rule, block in blocks]
    jobs = [f'{rule}_{run[1]}' if run else rule for rule, run in runs]
    assert len(jobs) == len(set(jobs))
    return set(jobs) - {'reports', 'runs', 'trained'}


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
    return {f'train_{c.run}' for c in cells} | {f'evaluate_{c.run}' for c in cells if count_files(matrix, c, 'evaluate')}


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
    (dict(prefix='../..'), 'cannot begin the name of a run'),
    (dict(folder='../else'), 'leads out'),
    (dict(seeds='0,one'), "seeds='one' is no seed"),
    (dict(more_seeds='-1'), 'more_seeds=-1 is no seed'),
    (dict(rows='row5,row16'), "rows='row16' is not known"),
    (dict(datasets='shapes-unk'), "Did you mean 'shapes-unc'"),
    (dict(fresh='perhaps'), 'should be true or false'),
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


def published_rows(cell):
    run = published_run(cell.run, 'embedded')
    return [str(rows_file(run, k).relative_to(Path.cwd())) for k in result_keys(cell)]


def pretend_clone(counts_last=False):
    "What is committed: records with counts, tables and figures, but no weights."
    matrix = given_matrix()
    counts = [f for c in matrix.cells() for f in published_rows(c)]
    made = [f'reports/tables/table{n}.{e}' for n in (1, 2) for e in ('md', 'csv', 'tex')] + ['reports/tables/claims.md']
    made += [*answer_goals()['answer'], *answer_goals()['report']]
    drawn = [f'reports/figures/figure{n}.{e}' for n in range(1, 6) for e in ('png', 'pdf')] + ['reports/figures/figures.json']
    pretend(drawn + made + counts if counts_last else counts + made + drawn)
    record = dict(training_seconds=60., code='old', device='a processor')
    for c in matrix.cells(): write_json(published_run(c.run, 'embedded').folder/'config.json', record)
    Path('reports/figures/figures.json').write_text(json.dumps(dict(runs=[c.run for c in matrix.cells()][:5])))
    return matrix


@pytest.mark.parametrize('counts_last', [False, True])
def test_a_fresh_clone_needs_no_training(checkout, counts_last):
    "Whichever files are the newer ones: a checkout writes them in any order."
    pretend_clone(counts_last)
    assert planned('reports') == set()


def test_in_a_fresh_clone_all_is_made_anew_beside_it_if_asked(checkout):
    matrix = pretend_clone()
    status, said = ask('reports', '-n', fresh=True)
    assert status == 0 and ' reports/tables/table1.md' not in said, said
    assert 'runs/reports/embedded/tables/table1.md' in said
    assert planned('reports', fresh=True) == wanted_jobs(matrix) | {'tables', 'figures'}


def test_published_records_without_a_fingerprint_are_not_of_other_data(checkout):
    "Runs of A and runs of B made one table in silence, since the workflow kept no data_root."
    pretend_clone()
    assert planned('reports', data_root='/nowhere') == wanted_jobs(given_matrix()) | {'tables', 'figures'}


def test_in_a_fresh_clone_other_settings_make_other_runs(checkout):
    pretend_clone()
    assert planned('reports', iterations=30) == wanted_jobs(given_matrix(iterations=30)) | {'tables', 'figures'}


def test_in_a_fresh_clone_one_missing_run_is_one_run(checkout):
    matrix = pretend_clone()
    cell = matrix.cell('row5', 'shapes-unc')
    Path(published_rows(cell)[0]).unlink()
    assert planned('reports') == {f'train_{cell.run}', f'evaluate_{cell.run}', 'tables'}


def test_it_says_first_what_is_there_and_what_it_would_cost(checkout, monkeypatch):
    "`-n` in a fresh clone said 'Nothing to be done'; `matrix=paper` began weeks of work without a word."
    pretend_clone()
    known = lambda c, device, limit, remembered: Rate(.5, 20, step_operations(c, remembered), 'a processor')
    monkeypatch.setattr('rrn.experiments.workflow.rate', known)
    said = ask('reports', '-n', estimate=True)[1]
    n = len(given_matrix().cells())
    for part in (f'{n} runs on embedded scenes', f'{n} published in reports/runs, 0 made here in runs, 0 missing',
                 'nothing has to be trained', f'fresh=true (it took {n} minutes on a processor)',
                 'made by other versions of the code', f'old ({n})'): assert part in said
    assert n == 60 and said.index(f'{n} published') < said.index('Nothing to be done')
    paper = dict(matrix='paper', rows='row2,row12', seeds=0)
    said = ask('reports', '-n', **paper, data_root='/nowhere', estimate=True)[1]
    n = len(given_matrix(**paper).cells())
    assert f'0 published in reports/runs, 0 made here in runs, {n} missing' in said
    assert re.search(rf'to make: {n} runs, {700_000 * n:,} sentences in training, [\d,]+ in evaluation: '
                     r'about [\d.]+ days of computing on a processor \(from 20 steps', said), said


ODD = 'o\'brien "$(touch pwned)" `touch pwned` \\ # {run} ~ * ;touch pwned'


def recorder(folder, then=''):
    "A program in the place of Python: it keeps its arguments, does `then`, and writes the stamp."
    file = Path(folder)/"o'brien $(touch pwned)"/'python'
    file.parent.mkdir()
    file.write_text(f"""#!{sys.executable}
import json, pathlib, sys
with open('seen', 'a') as f: f.write(json.dumps(sys.argv[1:]) + '\\n')
{then}
for word in sys.argv:
    if word.startswith('--stamp='): pathlib.Path(word[8:]).touch()
""")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize('odd', [ODD, 'two\nlines', '-begins with a dash', '007'])
def test_settings_arrive_as_they_are_and_no_shell_reads_them(checkout, monkeypatch, odd):
    monkeypatch.setattr(sys, 'executable', recorder(checkout))
    folder = odd.replace('{', '').replace('}', '')
    settings = dict(datasets='shapes-unc', more_seeds='', data_root=odd, folder=folder, segmentation=odd)
    status, said = ask('runs', **settings)
    assert status == 0, said
    seen = [json.loads(line) for line in Path('seen').read_text().splitlines()]
    assert len(seen) == 28 and all(json.loads(words[4].partition('=')[2]).items() >= settings.items() for words in seen)
    assert not list(checkout.rglob('pwned')) and len(list((checkout/folder).glob('*/train.done'))) == 21


def test_stamps_without_weights_are_not_believed(checkout, monkeypatch):
    monkeypatch.setattr(sys, 'executable', recorder(checkout))
    run('runs', iterations=30)
    assert len(list(checkout.glob('runs/*/train.done'))) == 60
    assert planned('runs', iterations=30) == wanted_jobs(given_matrix(iterations=30))


def test_the_jobs_of_a_cluster_are_given_one_plain_word(checkout, monkeypatch):
    "They are other calls of Snakemake, and a shell reads their commands."
    seen = []
    def stop(self, workflow, *rest, **more):
        seen.append(workflow.config_settings.config_args)
        sys.exit(3)
    monkeypatch.setattr('snakemake.scheduling.job_scheduler.JobScheduler.__init__', stop)
    ask('trained', '-n', data_root=ODD, iterations=7)
    (word,), = seen
    assert re.fullmatch('packed=[a-z0-9]+', word) and read_settings({}, [word])[0] == dict(data_root=ODD, iterations=7)


def test_a_value_reaches_the_kernel_as_it_is(checkout, monkeypatch):
    "From the command of a job through papermill into the notebook's variables."
    import nbformat
    (checkout/'nbs').unlink(); (checkout/'nbs').mkdir()
    keep = "import json, pathlib\npathlib.Path('got').write_text(json.dumps([a, b, c]))"
    tagged = nbformat.v4.new_code_cell("a = b = c = ''", metadata=dict(tags=['parameters']))
    cells = [tagged, nbformat.v4.new_code_cell(keep)]
    kernel = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), 'nbs/small.ipynb')
    values = [ODD + '\nsecond line', '-0123', 'true']
    command = papermill_command('small', checkout/'out {a}.ipynb', **dict(zip('abc', values)))
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(Path('got').read_text()) == values
    assert not Path('pwned').exists() and Path('out {a}.ipynb').exists()


def test_weights_survive_a_job_that_fails(checkout, monkeypatch):
    "Snakemake removes the outputs of a failed job, and finished weights were among them."
    writes = "pathlib.Path(f'runs/{sys.argv[4]}/model.safetensors').write_text('weights'); sys.exit(1)"
    monkeypatch.setattr(sys, 'executable', recorder(checkout, writes))
    cell = given_matrix(iterations=30).cell('row5', 'shapes-unc')
    status, said = ask(done_stamp(given_matrix(), cell.run, 'train'), iterations=30)
    assert status == 1 and Path(f'runs/{cell.run}/model.safetensors').read_text() == 'weights'
    assert not Path(f'runs/{cell.run}/train.done').exists()


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
    done = lambda cell, step: f'elsewhere/{cell.run}/{step}.done'
    run(done(cell, 'evaluate'), **few)
    made = [Path(f) for f in [weights_file(given_matrix(**few), cell), *count_files(given_matrix(**few), cell)]]
    assert len(made) == 7 and all(f.stat().st_size > 0 for f in made) and made[0].parts[0] == 'elsewhere'
    assert {'train.ipynb', 'evaluate.ipynb', 'train.log', 'evaluate.log', 'config.json'} <= {f.name for f in made[0].parent.iterdir()}
    before = {f: f.read_bytes() for f in made}
    assert planned(done(cell, 'evaluate'), **few) == set()
    target = done(other, 'train')
    assert planned(done(other, 'evaluate'), **many) == {f'train_{other.run}', f'evaluate_{other.run}'}
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
    monkeypatch.setattr('rrn.experiments.matrix.ensure', lambda kind, root, **how: drawn.append((kind, root, how)))
    for settings in dict(), dict(data_root='/nowhere'), dict(matrix='paper'), dict(matrix='rates'):
        matrix = given_matrix(**settings)
        draw_scenes(matrix, matrix.cells()[0])
    assert drawn == [('unc', None, {}), ('unc', checkout/'data/scenes-seed7', dict(seed=7))]


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
    profile = ['--workflow-profile', 'profiles/slurm', '--latency-wait', '5', '--slurm-status-command', 'squeue']
    profile += ['--slurm-init-seconds-before-status-checks', '20']
    profile += ['--default-resources', 'runtime=10', 'mem_mb=2000', 'cpus_per_task=1']
    command = [sys.executable, '-m', 'snakemake', done_stamp(matrix, cell.run, 'train'), *profile, *given(settings)]
    done = subprocess.run(command, env=os.environ | dict(PYTHONPATH=str(REPO)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(weights_file(matrix, cell)).exists() and 'SLURM jobid' in done.stderr


def test_without_papermill_the_way_is_said(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(RRNError, match='put uv run before'): papermill_command('tables', 'out.ipynb')
