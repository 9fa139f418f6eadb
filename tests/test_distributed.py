"""Two processes on the CPU (gloo, through accelerate) do what one does: gradients, metrics, checkpoints, and resuming either way."""
import json
import os
import shutil
import uuid
from dataclasses import replace
import forked
import pytest
import safetensors.torch
import torch
from rrn.batches import Batches, group_by_image
from rrn.common.team import Team
from rrn.evaluate import evaluate
from rrn.common.checkpoints import checkpoints
from rrn.experiments.jobs import open_job, run_job
from rrn.train import make_optimiser, read_log, sentences_read, update_step
from rrn.experiments.record import Run, runs_folder

pytest.importorskip('accelerate')
SIZES = dict(image_size=48, iterations=8, D_Q=6, D_I=6, D_S=6, embed_dim=6, weights='random', validate_every=4, save_every=4, log_every=2,
             images_per_batch=3, sentences_per_image=3, workers=0)

SCENES = {'train': 8, 'val': 5, 'testA': 2, 'testB': 2}


def together(work, ends_well=True, **given):
    "Do `work`, the body of a function of `given`, in two processes that accelerate starts; what they say on standard error."
    body = ''.join(f'    {line}\n' for line in work.strip().split('\n'))
    script = f'import accelerate, rrn.train\ndef work(given):\n{body}\naccelerate.debug_launcher(work, ({given!r},), 2)\n'
    done = forked.run(['-c', script], env=os.environ | dict(PYTHONPATH=os.getcwd(), OMP_NUM_THREADS='1'))
    assert (done.returncode == 0) == ends_well, done.stderr[-3000:]
    return done.stderr


GRADIENTS = """
import torch, safetensors.torch
from rrn.batches import Batches, group_by_image
from rrn.common.team import this_team
from rrn.evaluate import evaluate
from rrn.experiments.jobs import open_job
from rrn.train import Engine, make_optimiser, update_step
team = this_team()
assert team.size == 2
job = open_job(data_root=given['root'], **given['sizes'])
parts = [g.samples for g in group_by_image(job.samples('train'))]
batches = Batches(job.reader(), [parts[:3], parts[3:4], parts[4:]], team=team)
state = {n: t.clone() for n, t in job.model.state_dict().items()}
for step in range(3):
    job.model.load_state_dict(state)
    loss, norm = update_step(job.model.train(), make_optimiser(job.model), batches[step], 0, Engine(team=team))
    found = {n: p.grad for n, p in job.model.named_parameters() if p.grad is not None}
    safetensors.torch.save_file(found | {'loss': loss, 'norm': norm, 'sentences': torch.tensor(len(batches[step].words))}, f"{given['folder']}/{step}-{team.rank}.safetensors")
job.model.load_state_dict(state)
evaluate(job.model.eval(), job.samples('val'), job.reader(), images_per_batch=2).to_json(f"{given['folder']}/rows-{team.rank}.json")
"""


def test_gradients_and_metrics_are_those_of_one_process(scenes, tmp_path):
    "Batches of three images, of one (the second process has none), and of five; every row of an evaluation."
    job = open_job(data_root=str(scenes), **SIZES)
    together(GRADIENTS, folder=str(tmp_path), root=str(scenes), sizes=SIZES)
    parts = [g.samples for g in group_by_image(job.samples('train'))]
    batches = Batches(job.reader(), [parts[:3], parts[3:4], parts[4:]])
    state = {n: t.clone() for n, t in job.model.state_dict().items()}
    for step in range(3):
        job.model.load_state_dict(state)
        loss, norm = update_step(job.model.train(), make_optimiser(job.model), batches[step], 0)
        a, b = (safetensors.torch.load_file(tmp_path/f'{step}-{rank}.safetensors') for rank in (0, 1))
        shares = [int(m.pop('sentences')) for m in (a, b)]
        assert sum(shares) == len(batches[step].words) and (shares[1] == 0) == (step == 1)
        assert all(a[n].equal(b[n]) for n in a), 'both members step alike'
        wanted = {n: p.grad for n, p in job.model.named_parameters() if p.grad is not None} | {'loss': loss, 'norm': norm}
        assert wanted.keys() == a.keys()
        for n, g in wanted.items(): torch.testing.assert_close(a[n], g, atol=1e-6, rtol=1e-5, msg=lambda m: f'{step} {n}: {m}')
    job.model.load_state_dict(state)
    evaluate(job.model.eval(), job.samples('val'), job.reader(), images_per_batch=2).to_json(tmp_path/'rows.json')
    for rank in (0, 1): assert (tmp_path/f'rows-{rank}.json').read_text() == (tmp_path/'rows.json').read_text()


RUN = """
from dataclasses import replace
from rrn.experiments.jobs import open_job, run_job
from rrn.experiments.record import Run
run_job(replace(open_job(data_root=given['root'], **given['sizes']), run=Run(given['run'])), stop_after=4)
"""

KILLED = """
import os, signal, rrn.train
from dataclasses import replace
from rrn.common.team import this_team
from rrn.experiments.jobs import open_job, run_job
from rrn.experiments.record import Run
def deadly(*args):
    team = this_team()
    if team.rank == given['victim'] and args[3] == given['at']: os.kill(os.getpid(), signal.SIGKILL)
    return step(*args)
step, rrn.train.update_step = rrn.train.update_step, deadly
for folder in given['runs']:
    run_job(replace(open_job(data_root=given['root'], **given['sizes']), run=Run(folder)))
"""

COMMAND = """
from rrn.experiments.jobs import main
assert main(given['settings']) == 0
"""


def alone(scenes, folder, **plan):
    run_job(replace(open_job(data_root=str(scenes), **SIZES), run=Run(folder)), **plan)


def test_a_killed_member(scenes, tmp_path):
    "With one of two killed in the seventh step the other ends, too; the same command goes on from the fourth, with the weights of an unbroken run."
    given = dict(root=str(scenes), sizes=SIZES, victim=1)
    said = together(KILLED, ends_well=False, runs=[str(tmp_path/'run')], at=6, **given)
    assert 'SIGKILL' in said and [p.name for p in checkpoints(tmp_path/'run'/'checkpoints')] == ['step-00000004'] and not (tmp_path/'run'/'model.safetensors').exists()
    together(KILLED, runs=[str(tmp_path/'run'), str(tmp_path/'unbroken')], at=-1, **given)
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == (tmp_path/'unbroken'/'model.safetensors').read_bytes()
    assert not [p for p in (tmp_path/'run').rglob('.*.part')]


@pytest.fixture
def named():
    "A name for a run, and its folder, removed afterwards."
    name = f'test-{uuid.uuid4().hex[:8]}'
    yield name, runs_folder()/name
    shutil.rmtree(runs_folder()/name, ignore_errors=True)


def test_a_run_changes_the_number_of_processes(scenes, tmp_path, named):
    "Two processes, then one; one, then two by the cluster's command: the weights of one process throughout, one record, no step twice."
    alone(scenes, tmp_path/'one')
    together(RUN, root=str(scenes), sizes=SIZES, run=str(tmp_path/'two-one'))
    assert [p.name for p in checkpoints(tmp_path/'two-one'/'checkpoints')] == ['step-00000004']
    alone(scenes, tmp_path/'two-one')
    name, one_two = named
    alone(scenes, one_two, stop_after=4)
    settings = [f'{k}={v}' for k, v in (SIZES | dict(run=name, data_root=scenes)).items()]
    together(COMMAND, settings=settings)
    metrics = json.loads((one_two/'metrics.json').read_text())
    assert list(metrics) == ['shapes-unc val'] and metrics['shapes-unc val']['images'] == 5
    wanted, log = safetensors.torch.load_file(tmp_path/'one'/'model.safetensors'), read_log(Run(tmp_path/'one'))
    for folder in (tmp_path/'two-one', one_two):
        found, relog = safetensors.torch.load_file(folder/'model.safetensors'), read_log(Run(folder))
        assert found.keys() == wanted.keys()
        for n in wanted: torch.testing.assert_close(found[n], wanted[n], atol=2e-5, rtol=1e-3)
        assert log.step.tolist() == relog.step.tolist() and log.sentences.equals(relog.sentences)
        assert relog.val_overall_iou.count() == 2 and relog.loss.dropna().to_numpy() == pytest.approx(log.loss.dropna().to_numpy(), rel=1e-4)
        assert len(list(folder.glob('tensorboard/*'))) == 2, 'one for each of the two runs of the leader'


class OfTwo(Team):
    "The first of two members; the other has read five sentences, or none."
    others = 0
    def collect(self, items): return [*items, self.others]


def test_a_step_is_made_if_anybody_could_read_something(scenes, tmp_path):
    "Members skip a step together, as one process would; where unreadable pictures stop a run nobody asks the others."
    job, team = open_job(data_root=str(scenes), **SIZES, on_corrupt='skip'), OfTwo(0, 2)
    parts = [[replace(s, image=tmp_path/'none.jpg') for s in g.samples] for g in group_by_image(job.samples('train'))[:2]]
    batch = Batches(job.reader(), [parts], team=team)[0]
    assert len(batch.skipped) == 1 and len(batch.samples) == 0
    assert sentences_read(batch, parts, job.reader(), team) == 0 == sentences_read(batch, parts, job.reader(), Team())
    team.__class__.others = 5
    assert sentences_read(batch, parts, job.reader(), team) == 5
    team.__class__.collect = None
    assert sentences_read(batch, parts, replace(job, options=job.options | dict(on_corrupt='stop')).reader(), team) == sum(map(len, parts))
