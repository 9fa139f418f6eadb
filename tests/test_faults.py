"""Runs that are killed, disks that are full, files that are damaged."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest
import safetensors.torch
import torch
from rrn.core import RRNError
from rrn.data import group_by_image
from rrn.model import preset
from rrn.shapes import write_refer
from rrn.train import Run, checkpoints, open_job, run_job

SIZES = dict(image_size=48, iterations=60, D_Q=6, D_I=6, D_S=6, embed_dim=6, weights='', validate_every=10**6, save_every=5, log_every=5)

SCRIPT = """
import sys
from pathlib import Path
from dataclasses import replace
import torch
torch.set_num_threads(1)
from rrn.train import Run, open_job, run_job
import rrn.train as t
slow = t.update_step
def with_pause(*a):
    import time; time.sleep({pause}); return slow(*a)
t.update_step = with_pause
job = open_job(data_root={root!r}, **{sizes!r})
run_job(replace(job, run=Run({folder!r})))
"""


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_refer(root, seed=9, sizes={'train': 8, 'val': 3, 'testA': 2, 'testB': 2}, workers=1)
    return root


def start(root, folder, pause=0.):
    "A training in a process of its own."
    script = SCRIPT.format(root=str(root), folder=str(folder), sizes=SIZES, pause=pause)
    return subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(root, folder):
    "Train to the end; the final weights."
    process = start(root, folder)
    _, error = process.communicate()
    assert process.returncode == 0, error[-2000:]
    return safetensors.torch.load_file(Path(folder)/'model.safetensors')


def test_killed_and_resumed_ends_with_the_same_weights(scenes, tmp_path):
    "kill -9 after the first checkpoint, in the middle, and near the end: bit for bit the weights of an unbroken run."
    unbroken = finish(scenes, tmp_path/'unbroken')
    for wanted in (5, 30, 50):
        process = start(scenes, tmp_path/'killed', pause=.02)
        while process.poll() is None:
            done = [int(p.name[5:]) for p in checkpoints(tmp_path/'killed'/'checkpoints')]
            if done and done[-1] >= wanted: process.send_signal(signal.SIGKILL); break
            time.sleep(.005)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (tmp_path/'killed'/'model.safetensors').exists()
    resumed = finish(scenes, tmp_path/'killed')
    assert unbroken.keys() == resumed.keys() and all(unbroken[n].equal(resumed[n]) for n in unbroken)
    assert (tmp_path/'killed'/'log.csv').read_text().count('\n') == (tmp_path/'unbroken'/'log.csv').read_text().count('\n')


def test_two_runs_in_one_folder(scenes, tmp_path):
    process = start(scenes, tmp_path/'run', pause=.5)
    try:
        while not (tmp_path/'run'/'config.json').exists(): assert process.poll() is None; time.sleep(.05)
        from dataclasses import replace
        job = open_job(data_root=str(scenes), **SIZES)
        with pytest.raises(RRNError, match='in use by another run'): run_job(replace(job, run=Run(tmp_path/'run')))
    finally: process.kill(); process.communicate()


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 300 kB."
    place = tmp_path/'disk'; place.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(place)], capture_output=True).returncode:
        pytest.skip('mounting a small disk needs root')
    yield place
    subprocess.run(['umount', str(place)], check=True)


def test_full_disk_keeps_the_last_checkpoint(scenes, small_disk):
    from dataclasses import replace
    job = open_job(data_root=str(scenes), **SIZES)
    job = replace(job, run=Run(small_disk/'run'))
    run_job(job, stop_after=5)
    kept = checkpoints(job.run.checkpoints)
    with open(small_disk/'ballast', 'wb', buffering=0) as f:
        try:
            while True: f.write(b'x' * 4096)
        except OSError: pass
    with pytest.raises(RRNError, match='cannot be written: No space left'): run_job(job, stop_after=10)
    assert checkpoints(job.run.checkpoints) == kept
    (small_disk/'ballast').unlink()
    run_job(job, stop_after=10)
    assert checkpoints(job.run.checkpoints)[-1].name == 'step-00000010'


def test_corrupt_jpeg_in_training(scenes, tmp_path):
    "Named and stopped by default; passed over on demand."
    import shutil
    from dataclasses import replace
    root = tmp_path/'scenes'; shutil.copytree(scenes, root)
    bad = sorted((root/'images/mscoco/images/train2014').glob('*.jpg'))[2]
    bad.write_bytes(bad.read_bytes()[:700])
    job = replace(open_job(data_root=str(root), **SIZES), run=Run(tmp_path/'stopped'))
    with pytest.raises(RRNError, match=bad.name): run_job(job)
    job = replace(open_job(data_root=str(root), on_corrupt='skip', **SIZES), run=Run(tmp_path/'skipped'))
    log = run_job(job)
    assert log.step.max() == 60 and torch.isfinite(torch.tensor(log.loss.dropna().to_numpy())).all()


def test_nan_keeps_the_last_good_checkpoint(scenes, tmp_path, monkeypatch):
    import rrn.train as t
    from dataclasses import replace
    real = t.update_step
    monkeypatch.setattr(t, 'update_step', lambda m, o, b, step, *more: (torch.tensor(float('nan')), torch.tensor(1.)) if step == 7 else real(m, o, b, step, *more))
    job = replace(open_job(data_root=str(scenes), **SIZES), run=Run(tmp_path/'run'))
    with pytest.raises(RRNError, match='nan at step 7 .*COCO_train2014'): run_job(job)
    assert [p.name for p in checkpoints(job.run.checkpoints)] == ['step-00000005']
