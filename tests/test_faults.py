"""Runs that are killed, disks that are full or read-only, processes that die, numbers that are none, files that are damaged.

`pytest tests/test_faults.py --kills 20` kills each kind of run at 20 moments, as the nightly run does."""
import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
import pandas as pd
import pytest
import torch
import torch._dynamo                                                            # the first optimiser step loads it: once here, not in every process
from rrn import batches
from rrn.data import download
from rrn.common.core import locked, read_json, RRNError
from rrn.data.doctor import examine
from rrn.evaluate import evaluate
from rrn.data.refer import IMAGE_FOLDER
from rrn.data.shapes import ensure
from rrn.common.checkpoints import checkpoints
from rrn.experiments.jobs import open_evaluation, open_job, run_job
from rrn.experiments.record import add_metrics, Run
from tqdm import tqdm
from test_convert import converted, own                                      # `own` and `server` are fixtures
from test_download import DATA, server, zip_of

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

SIZES = dict(image_size=48, iterations=30, D_Q=6, D_I=6, D_S=6, embed_dim=6, weights='random', validate_every=10, save_every=5, log_every=5)
SCENES = {'train': 8, 'val': 3, 'testA': 2, 'testB': 2}


# ---- a process of its own --------------------------------------------------------------------------------------------------

def alone(work, folder, arm, told):
    "In a forked process: do `work(folder)` silently, killed as `arm` has it; the number of touches of files goes to `told`."
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())                 # its usual lock is shared by forked processes: one that is killed in it would stop the others
    with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        touches = arm(str(folder))
        try: work(folder)
        except RRNError as e: Path(told).write_text(f'refused: {e}'); os._exit(3)
    Path(told).write_text(str(touches[0]))


def counting(folder, kill_at=0):
    "Count what this process does to files below `folder`; kill it at the given one."
    touches, me = [0], os.getpid()
    def hook(event, args):
        if not event.startswith(('open', 'os.', 'tempfile.', 'shutil.')) or os.getpid() != me: return
        if not any(str(a).startswith(folder) for a in args): return
        touches[0] += 1
        if touches[0] == kill_at: os.kill(me, signal.SIGKILL)
    sys.addaudithook(hook)
    return touches


def started(work, folder, kill_at=0):
    "The process that does `work(folder)`, and the file in which it tells how it went."
    told = folder.with_suffix('.told')
    process = multiprocessing.get_context('fork').Process(target=alone, args=(work, folder, lambda f: counting(f, kill_at), told))
    process.start()
    return process, told


def done(work, folder):
    "Do `work(folder)` to the end; (touches of files, seconds)."
    start = time.perf_counter()
    process, told = started(work, folder)
    process.join()
    assert process.exitcode == 0, told.read_text() if told.exists() else process.exitcode
    return int(told.read_text()), time.perf_counter() - start


def killed(work, folder, kill_at=0, after=0.):
    "Do `work(folder)`, killed at its n-th touch of a file or after some seconds; whether it was killed before its end."
    process, _ = started(work, folder, kill_at)
    if after:
        process.join(after)
        with contextlib.suppress(ProcessLookupError): os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def moments(kind, kills, touches, seconds):
    "Random moments, the same at every call: at a touch of a file and, where there are many (they hang on the clock), after a time in turn."
    rng = random.Random(kind)
    return [dict(kill_at=rng.randint(1, touches)) if i % 2 == 0 or kills <= 5 else dict(after=rng.random() * seconds) for i in range(kills)]


def files_in(folder, *patterns):
    "Checksum of each file below `folder`; what is half-written has a hidden name and does not count."
    found = sorted(p for pattern in patterns or ['*'] for p in folder.rglob(pattern) if p.is_file())
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in found if not any(part.startswith('.') for part in p.relative_to(folder).parts)}


def killed_and_repeated(kind, work, result, tmp_path, kills):
    "Killed at random moments and given again, a command has the result of one that was not; the number of kills that came in time."
    touches, seconds = done(work, tmp_path/'unbroken')
    expected, in_time = result(tmp_path/'unbroken'), 0
    for i, moment in enumerate(moments(kind, kills, touches, seconds)):
        folder = tmp_path/str(i)
        in_time += killed(work, folder, **moment)
        done(work, folder)                                                   # at once: no lock and no process is left
        assert result(folder) == expected, moment
        assert not [p for p in folder.rglob('.*.part') if p.is_file()], 'what a killed process was writing is removed by the next one'
        shutil.rmtree(folder)
    assert in_time >= kills // 2
    print(f'{kind}: {in_time} of {kills} kills came before the end')


# ---- kill -9 and the same command again ------------------------------------------------------------------------------------

def result_of_training(folder):
    "Everything that a training and the evaluation after it leave, but for durations."
    log = pd.read_csv(folder/'run'/'log.csv').drop(columns='seconds').to_csv()
    record = {k: v for k, v in read_json(folder/'run'/'config.json').items() if k not in ('training_seconds', 'code', 'continued')}       # an edit of the code meanwhile shows in the last two
    return files_in(folder, 'model.safetensors', 'metrics.json', '*.csv.gz', 'vocabulary.json', '*.maps'), log, record


@pytest.mark.parametrize('kind', ['training', 'training with workers', 'training with a cache'])
def test_a_killed_training(kind, scenes, tmp_path, request):
    more = dict(workers=2) if 'workers' in kind else dict()
    def work(folder):
        cache = dict(feature_cache=str(folder/'maps')) if 'cache' in kind else {}
        job = replace(open_job(data_root=str(scenes), device='cpu', **SIZES, **more, **cache), run=Run(folder/'run'))
        run_job(job)
        add_metrics(job.run, 'shapes-unc val', evaluate(job.model, job.samples('val'), job.reader()), 'rrn')
    kills = request.config.getoption('--kills') // (1 if kind == 'training' else 2)
    killed_and_repeated(kind, work, result_of_training, tmp_path, kills)


@pytest.fixture(scope='module')
def trained(scenes, tmp_path_factory):
    "The folder of a finished run."
    folder = tmp_path_factory.mktemp('trained')/'run'
    run_job(replace(open_job(data_root=str(scenes), device='cpu', **SIZES), run=Run(folder)))
    return folder


def evaluate_all(folder, scenes, trained):
    "What the evaluation notebook does: all splits, with controls, into the record of the run (a copy of `trained`)."
    if not (folder/'run').exists(): folder.mkdir(exist_ok=True); shutil.copytree(trained, folder/'copy', dirs_exist_ok=True); (folder/'copy').rename(folder/'run')
    job = open_evaluation(run=str(folder/'run'), data_root=str(scenes), splits='val,testA,testB', device='cpu')
    for split in job.splits:
        for words in ('own', 'shuffled', 'none'): add_metrics(job.run, f'shapes-unc {split} ({words})', evaluate(job.model, job.samples(split), job.reader(), words), 'rrn')


def test_a_killed_evaluation(scenes, trained, tmp_path, request):
    result = lambda folder: (files_in(folder/'run', 'metrics.json', '*.csv.gz', '*.safetensors'), len(read_json(folder/'run'/'metrics.json')))
    killed_and_repeated('evaluation', lambda folder: evaluate_all(folder, scenes, trained), result, tmp_path, request.config.getoption('--kills'))


def draw(folder):
    for kind in ('unc', 'referit'): ensure(kind, folder, seed=9, sizes=SCENES, workers=2)


def test_a_killed_generation(tmp_path, request):
    "The processes that draw end with the one that started them, and let go of its lock."
    killed_and_repeated('generation', draw, files_in, tmp_path, request.config.getoption('--kills'))


def test_a_killed_conversion(own, tmp_path, request):
    "Given again when it had come to its end, it says that its folder is there."
    def work(folder):
        try: converted(own, folder/'set')
        except RRNError as e: assert 'is there already' in str(e) and (folder/'set'/'refcocog'/'refs(umd).p').exists()
    killed_and_repeated('conversion', work, files_in, tmp_path, request.config.getoption('--kills'))


@pytest.fixture
def sources(server, tmp_path, monkeypatch):
    "Three files on a server that breaks the connection, and kills who asks, where it is told to: (path, byte)."
    noise = random.Random(1).randbytes(700_000)
    files = {'/r': zip_of(tmp_path/'r.zip', ('refcoco/refs(unc).p', noise), ('refcoco/instances.json', b'{}')).read_bytes(),
             '/p': zip_of(tmp_path/'p.zip', *((f'train2014/{i}.jpg', noise[i:i + 9000]) for i in range(40))).read_bytes(), '/i': b'{"7.jpg": [16, 7]}'}
    server.victim = None
    def answer(h):
        content, asked = files[h.path], h.headers.get('Range')
        start = int(asked.split('=')[1].split('-')[0]) if asked and h.headers.get('If-Range') in (None, '"v1"') else 0
        parts = dict(Content_Range=f'bytes {start}-{len(content) - 1}/{len(content)}') if start else {}
        path, stop = server.deadly if server.victim else ('', 0)
        if h.path != path or start > stop: return h.send(206 if start else 200, content[start:], ETag='"v1"', **parts)
        h.send(206 if start else 200, content[start:stop], length=len(content) - start, ETag='"v1"', **parts)
        h.wfile.flush()
        time.sleep(.02)                                                      # so that some of it arrives
        os.kill(server.victim, signal.SIGKILL); server.victim = None
    for path in files: server.script(path, answer)
    table = {'refs': download.Source('refcoco.zip', (server.at('/r'),), {'refcoco': 'refcoco'}, 'free', len(files['/r']), sha256(files['/r']).hexdigest()),
             'pictures': download.Source('p.zip', (server.at('/p'),), {'train2014': str(IMAGE_FOLDER)}, 'free'),
             'index': download.Source('i.json', (server.at('/i'),), {'': 'referit/i.json'}, 'free')}
    monkeypatch.setattr(download, 'SOURCES', table); monkeypatch.setattr(download, 'DATASETS', {'unc': list(table)})
    server.files = files
    return lambda folder: download.download('unc', folder, wait=0, timeout=20, progress=False)


def test_a_killed_download(sources, server, tmp_path, request):
    "At touches of files and at times; and by the server, in the middle of a transfer."
    kills, rng = request.config.getoption('--kills'), random.Random('download')
    whole = lambda folder: files_in(folder) | {p.name: '' for p in folder.rglob('.*.part')}         # a folder of one, too
    killed_and_repeated('download', sources, whole, tmp_path, kills - kills // 2)
    for i in range(kills // 2):
        folder, path = tmp_path/f'cut{i}', rng.choice(['/r', '/p'])
        server.deadly, server.asked[:] = (path, rng.randrange(1000, len(server.files[path]))), []
        process, _ = started(sources, folder)
        server.victim = process.pid
        process.join()
        assert process.exitcode == -signal.SIGKILL
        done(sources, folder)
        assert whole(folder) == whole(tmp_path/'unbroken')


def test_two_runs_in_one_folder(scenes, tmp_path):
    job = replace(open_job(data_root=str(scenes), **SIZES), run=Run(tmp_path/'run'))
    def hold(folder):
        with locked(folder): (tmp_path/'held').touch(); time.sleep(60)
    process, _ = started(hold, tmp_path/'run')
    try:
        while not (tmp_path/'held').exists(): assert process.is_alive(); time.sleep(.01)
        for resume in (True, False):
            with pytest.raises(RRNError, match='in use by another run'): run_job(replace(job, options=job.options | dict(resume=resume)))
        assert (tmp_path/'run'/'.lock').exists()
    finally: process.kill(); process.join()
    assert run_job(job, stop_after=5).step.max() == 5


def test_a_fork_does_not_hold_the_lock_of_its_parent(tmp_path):
    def hold(folder):
        with locked(folder):
            child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
            child.start()
            (tmp_path/'child').write_text(str(child.pid))
            (tmp_path/'child').rename(tmp_path/'held')
            time.sleep(60)
    process, _ = started(hold, tmp_path/'run')
    while not (tmp_path/'held').exists():
        assert process.is_alive()
        time.sleep(.01)
    child = int((tmp_path/'held').read_text())
    try:
        with pytest.raises(RRNError, match='in use by another run'):
            with locked(tmp_path/'run'): pass
        process.kill()
        process.join()
        os.kill(child, 0)                          # it outlives its parent
        with locked(tmp_path/'run'): pass
    finally: os.kill(child, signal.SIGKILL)


# ---- disks -----------------------------------------------------------------------------------------------------------------

def mount(place, *options):
    "Mount a small disk in memory; skip where that is not allowed."
    place.mkdir(exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', str(place)], capture_output=True).returncode: pytest.skip('mounting a small disk needs root')


@pytest.fixture
def disk(tmp_path):
    "A disk of 600 kB."
    mount(tmp_path/'disk', 'size=600k')
    yield tmp_path/'disk'
    subprocess.run(['umount', str(tmp_path/'disk')], check=True)


@contextlib.contextmanager
def full(disk):
    "The disk is full for a while."
    with open(disk/'ballast', 'wb', buffering=0) as f:
        try:
            while True: f.write(b'x' * 4096)
        except OSError as e: assert e.errno == errno.ENOSPC
    yield
    (disk/'ballast').unlink()


@contextlib.contextmanager
def read_only(disk):
    "The disk may not be written to for a while (rights would not stop root)."
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    yield
    subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)


BAD_DISKS = [(full, 'No space left'), (read_only, 'Read-only file system')]


@pytest.mark.parametrize('bad, why', BAD_DISKS, ids=['full', 'read-only'])
def test_training_on_a_bad_disk_keeps_the_last_checkpoint(scenes, disk, bad, why):
    job = replace(open_job(data_root=str(scenes), **SIZES), run=Run(disk/'run'))
    run_job(job, stop_after=5)
    kept = {p: files_in(p) for p in checkpoints(job.run.checkpoints)}
    with bad(disk), pytest.raises(RRNError, match=f'cannot be written: {why}'): run_job(job, stop_after=10)
    assert {p: files_in(p) for p in checkpoints(job.run.checkpoints)} == kept
    run_job(job, stop_after=10)
    assert checkpoints(job.run.checkpoints)[-1].name == 'step-00000010'
    with bad(disk), pytest.raises(RRNError, match=f'cannot be written: {why}'): run_job(replace(job, run=Run(disk/'new')))


@pytest.mark.parametrize('bad, why', BAD_DISKS, ids=['full', 'read-only'])
def test_evaluation_on_a_bad_disk_keeps_the_record(scenes, trained, disk, bad, why):
    shutil.copytree(trained, disk/'run', ignore=shutil.ignore_patterns('checkpoints', 'tensorboard'))
    job = open_evaluation(run=str(disk/'run'), data_root=str(scenes), splits='val')
    rows = evaluate(job.model, job.samples('val'), job.reader())
    add_metrics(job.run, 'shapes-unc val', rows, 'rrn')
    before = files_in(disk/'run')
    with bad(disk), pytest.raises(RRNError, match=f'cannot be written: {why}'): add_metrics(job.run, 'shapes-unc val (other)', rows, 'rrn')
    assert files_in(disk/'run') == before
    add_metrics(job.run, 'shapes-unc val (other)', rows, 'rrn')
    assert len(read_json(disk/'run'/'metrics.json')) == 2


@pytest.mark.parametrize('bad, why', BAD_DISKS, ids=['full', 'read-only'])
def test_generation_on_a_bad_disk(disk, bad, why):
    few = {'train': 2, 'val': 1, 'testA': 1, 'testB': 1}
    for workers in (1, 2):
        with bad(disk), pytest.raises(RRNError, match=why): ensure('unc', disk/'set', seed=9, sizes=few, workers=workers)
    ensure('unc', disk/'set', seed=9, sizes=few, workers=1)
    assert examine('shapes-unc', disk/'set', progress=False).status == 0


@pytest.mark.parametrize('bad, why', BAD_DISKS, ids=['full', 'read-only'])
def test_download_to_a_bad_disk(sources, disk, monkeypatch, bad, why):
    monkeypatch.setattr(download, 'DATASETS', {'unc': ['index']})
    with bad(disk), pytest.raises(RRNError, match=f'{why}|are free'): sources(disk/'data')
    sources(disk/'data')
    assert read_json(disk/'data'/'referit'/'i.json') == {'7.jpg': [16, 7]}


def test_a_disk_that_fills_up_while_unpacking(disk, tmp_path):
    archive = zip_of(tmp_path/'a.zip', *((str(i), DATA) for i in range(4)))
    with pytest.raises(RRNError, match='out cannot be written .*No space left.*Make room'): download.unpack(archive, disk/'out', progress=False)
    assert not list(disk.iterdir())


# ---- processes that die, numbers that are none, files that are damaged -------------------------------------------------------

def test_a_worker_that_is_killed(scenes, tmp_path, monkeypatch):
    "One clear error, the checkpoint stays, and the same command goes on to the same weights."
    def work(folder, **how): return run_job(replace(open_job(data_root=str(scenes), device='cpu', **SIZES | how), run=Run(folder)))
    work(tmp_path/'unbroken', workers=1)
    real = batches.read_batch
    def deadly(reader, groups, original=False):
        if multiprocessing.parent_process() and checkpoints(tmp_path/'run'/'checkpoints'): os.kill(os.getpid(), signal.SIGKILL)
        return real(reader, groups, original)
    monkeypatch.setattr(batches, 'read_batch', deadly)
    with pytest.raises(RRNError, match='process that decodes images died .* give the same command again'): work(tmp_path/'run', workers=1)
    assert checkpoints(tmp_path/'run'/'checkpoints') and not (tmp_path/'run'/'model.safetensors').exists()
    work(tmp_path/'run', workers=0)
    assert files_in(tmp_path/'run', 'model.safetensors') == files_in(tmp_path/'unbroken', 'model.safetensors')


def test_a_worker_that_is_killed_in_evaluation(scenes, trained, monkeypatch):
    job = open_evaluation(run=str(trained), data_root=str(scenes), splits='val')
    monkeypatch.setattr(batches, 'read_batch', lambda *a: os.kill(os.getpid(), signal.SIGKILL) if multiprocessing.parent_process() else None)
    with pytest.raises(RRNError, match='decodes images died'): evaluate(job.model, job.samples('val'), job.reader(), workers=1)


def test_corrupt_jpeg_in_training(scenes, tmp_path):
    "Named and stopped by default; passed over on demand."
    root = tmp_path/'scenes'; shutil.copytree(scenes, root)
    bad = sorted((root/IMAGE_FOLDER).glob('*.jpg'))[2]
    bad.write_bytes(bad.read_bytes()[:700])
    job = replace(open_job(data_root=str(root), **SIZES), run=Run(tmp_path/'stopped'))
    with pytest.raises(RRNError, match=bad.name): run_job(job)
    job = replace(open_job(data_root=str(root), on_corrupt='skip', **SIZES), run=Run(tmp_path/'skipped'))
    log = run_job(job)
    assert log.step.max() == 30 and torch.isfinite(torch.tensor(log.loss.dropna().to_numpy())).all()


def test_training_that_diverges(scenes, tmp_path):
    "A rate beyond all measure: the batch is named, what was saved is finite, and nothing is finished."
    job = replace(open_job(data_root=str(scenes), **SIZES | dict(lr=1e25, clip=0., warmup=0)), run=Run(tmp_path/'run'))
    with pytest.raises(RRNError, match='is (nan|inf) at step .*COCO_train2014.* last good checkpoint is kept'): run_job(job)
    assert not job.run.weights.exists()


@pytest.mark.parametrize('broken', [0, 1], ids=['loss', 'gradient'])
def test_nan_keeps_the_last_good_checkpoint(scenes, tmp_path, monkeypatch, broken):
    "At the very step of a checkpoint, which is therefore not written; without the fault the run goes on."
    import rrn.train as t
    real, numbers = t.update_step, [torch.tensor(.5), torch.tensor(1.)]
    numbers[broken] = torch.tensor(float('nan'))
    job = replace(open_job(data_root=str(scenes), **SIZES), run=Run(tmp_path/'run'))
    with monkeypatch.context() as m:
        m.setattr(t, 'update_step', lambda model, o, b, step, *more: tuple(numbers) if step == 9 else real(model, o, b, step, *more))
        with pytest.raises(RRNError, match=f"{['loss', 'gradient'][broken]} is nan at step 9 .*COCO_train2014"): run_job(job)
    assert [p.name for p in checkpoints(job.run.checkpoints)] == ['step-00000005']
    assert run_job(job, stop_after=10).step.max() == 10
