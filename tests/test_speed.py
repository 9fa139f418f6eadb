"""What makes it fast changes nothing: caches that are damaged or shared, large sets, compiled steps, the benchmark's command."""
import cProfile
import gc
import json
import os
import pickle
import re
import shutil
import tracemalloc
from dataclasses import replace
import pytest
import torch
from rrn.experiments.benchmark import Bench, main, SIZES, write_unc_sized
from rrn.common.core import RRNError
from rrn.batches import group_by_image
from rrn.features import FeatureFiles
from rrn.model import preset
from rrn.common.untrusted import harmless, safe_load
from rrn.data.masks import InFile
from rrn.data.refer import open_refer, read_instances
from rrn.data.datasets import open_dataset
from rrn.experiments.jobs import open_job, run_job
from rrn.train import batch_loss, make_engine, update_step
from rrn.experiments.record import Run

TINY = dict(image_size=48, iterations=6, D_Q=6, D_I=6, D_S=6, embed_dim=6, weights='random', validate_every=10**6, save_every=3, log_every=3)

SCENES = {'train': 6, 'val': 2, 'testA': 1, 'testB': 1}


def trained(scenes, folder, **options):
    job = replace(open_job(data_root=str(scenes), **TINY, **options), run=Run(folder))
    run_job(job)
    return job.model.trained_state()


# ---- the cache of features -------------------------------------------------------------------------------------------

@pytest.mark.processor
def test_the_cache_changes_nothing_whatever_happens_to_it(scenes, tmp_path):
    "Filled, found, damaged, with what a killed process left, removed in between: bit for bit the same weights; nowhere to write is an error."
    cache = tmp_path/'cache'
    wanted = trained(scenes, tmp_path/'without')
    check = lambda name, **o: [torch.testing.assert_close(t, wanted[n], atol=0, rtol=0) for n, t in trained(scenes, tmp_path/name, feature_cache=str(cache), **o).items()]
    check('filling')
    files = sorted(cache.rglob('*.maps'))
    assert len(files) == 6 and len({f.parent for f in files}) == 1
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-1]); files[1].write_bytes(whole); files[2].unlink()
    broken = bytearray(files[3].read_bytes()); broken[99] ^= 1; files[3].write_bytes(broken)
    (files[0].parent/f'.{files[0].name}.abc.part').write_bytes(whole[:500])
    check('damaged')
    assert files[0].read_bytes() == whole and files[2].exists()
    shutil.rmtree(cache)
    check('removed')
    shutil.rmtree(cache); cache.write_text('a file is no folder')
    for nowhere in (cache, '/proc/nowhere'):
        with pytest.raises(RRNError, match='cannot be (written|used)'): trained(scenes, tmp_path/'nowhere to write', feature_cache=str(nowhere))


def test_half_precision_is_close_and_half_as_large(scenes, tmp_path):
    full, half = (trained(scenes, tmp_path/d, feature_cache=str(tmp_path/'cache'), cache_dtype=d) for d in ('fp32', 'fp16'))
    sizes = sorted(f.stat().st_size for f in (tmp_path/'cache').rglob('*.maps'))
    assert len(sizes) == 12 and sizes[-1] - 4 == 2 * (sizes[0] - 4)
    assert all((full[n] - half[n]).abs().max() < .01 for n in full)
    with pytest.raises(RRNError, match="Did you mean 'fp16'"): trained(scenes, tmp_path/'x', feature_cache=str(tmp_path/'cache'), cache_dtype='fp61')


def test_another_picture_under_the_same_name_is_not_found(scenes, tmp_path):
    job = open_job(data_root=str(scenes), **TINY)
    name = tmp_path/'a.jpg'
    name.write_bytes(b'one'); first = FeatureFiles(tmp_path/'c', job.model).path((name, False))
    name.write_bytes(b'two'); second = FeatureFiles(tmp_path/'c', job.model).path((name, False))
    assert first != second and first.parent == second.parent


# ---- large sets ------------------------------------------------------------------------------------------------------

def work_of(root):
    "Function calls and bytes at the peak that opening a set takes."
    re.purge(); gc.collect()                                        # patterns that others have compiled, and what they leave to clean up, are not counted
    tracemalloc.start()
    with cProfile.Profile() as profile: data = open_refer('unc', root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    calls = sum(function.callcount for function in profile.getstats())
    return calls, peak, data


def test_opening_grows_linearly(tmp_path):
    "Twice as much costs twice as much: each doubling adds twice what the one before added."
    found = []
    for times in (.005, .01, .02, .04):                             # the first time, modules are loaded
        counts = write_unc_sized(tmp_path/str(times), times, pictures=0)
        calls, peak, data = work_of(tmp_path/str(times))
        assert {s: tuple(map(int, row)) for s, row in data.counts().iterrows()} == counts
        found.append((calls, peak))
    for one, two, four in zip(*found[1:]): assert 1.6 < (four - two) / (two - one) < 2.4
    assert all(len(g.samples) for g in group_by_image(data.samples('train')))


def test_outlines_stay_in_the_file(tmp_path):
    "Drawn when asked for; a file that has changed since is an error that names the annotation."
    write_unc_sized(tmp_path, .002, pictures=0)
    path = tmp_path/'refcoco'/'instances.json'
    raw = {a['id']: a['segmentation'] for a in json.loads(path.read_text())['annotations']}
    index = read_instances(path)
    assert all(isinstance(a['segmentation'], InFile) and a['segmentation'].read('') == raw[id] for id, a in index.annotations.items())
    sample = open_refer('unc', tmp_path).samples('val')[3]
    assert sample.mask.decode().sum() > 0
    path.write_text(path.read_text()[:3000])
    with pytest.raises(RRNError, match='annotation [0-9]+'): sample.mask.decode()
    path.unlink()
    with pytest.raises(RRNError, match='annotation [0-9]+: cannot be read'): sample.mask.decode()


def test_real_files_take_the_fast_way(shared):
    files = list((shared/'data').rglob('refs(*).p'))
    assert files
    for path in files:
        assert harmless(path.read_bytes()), path
        with open(path, 'rb') as f: assert safe_load(path) == pickle.load(f, encoding='utf-8')


def test_unc_sized_is_complete_when_it_is(tmp_path):
    "All 142,210 sentences: the opened set passes for the published one by its counts."
    if not os.environ.get('RRN_SLOW'): pytest.skip('slow: set RRN_SLOW=1')
    write_unc_sized(tmp_path, 1, pictures=0)
    assert open_dataset('unc', tmp_path).note == 'complete'


# ---- steps -----------------------------------------------------------------------------------------------------------

def test_a_compiled_step_is_the_same_step():
    if not os.environ.get('RRN_SLOW'): pytest.skip('slow (a minute of compiling): set RRN_SLOW=1')
    c, losses = preset('paper', **SIZES['small'] | dict(image_size=72)), []
    for compiled in (False, True):
        bench = Bench(c, torch.device('cpu'), 2, 3, vocabulary_size=30, compiled=compiled, plain=False)
        losses.append(torch.stack([update_step(bench.model, bench.optimiser, bench.batch, step, bench.engine)[0] for step in range(3)]))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=0)


def test_the_whole_step_can_be_traced():
    "What a compiler asks of the code, without what it makes of it."
    bench = Bench(preset('small'), torch.device('cpu'), 1, 2, vocabulary_size=30, plain=False)
    b, maps = bench.batch, bench.model.features(bench.batch.images)
    compiled = torch.compile(batch_loss, backend='eager')
    losses = [f(bench.model, maps, b.words, b.image_of, b.masks) for f in (batch_loss, compiled)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)


@pytest.mark.processor
def test_bf16_trains_in_the_same_direction():
    losses = []
    for precision in ('fp32', 'bf16'):
        bench = Bench(preset('paper', **SIZES['small'], precision=precision, lr=1e-3), torch.device('cpu'), 2, 3, vocabulary_size=30, plain=False)
        losses.append([update_step(bench.model, bench.optimiser, bench.batch, 0)[0].item() for _ in range(8)])
    assert losses[0][-1] < losses[0][0] and losses[1][-1] < losses[1][0] and losses[1][0] == pytest.approx(losses[0][0], rel=.02)


def test_the_command_writes_json(tmp_path, capsys):
    main(['--json', str(tmp_path/'b.json'), '--sizes', 'small', '--quick', '--device', 'cpu', '--open', '.1'])
    report = json.loads((tmp_path/'b.json').read_text())
    assert report['sizes'] == 'small' and report['speeds'][1]['train']['times_the_plain_port'] > 0 and 'sentences/s' in capsys.readouterr().out
    assert main(['--device', 'gpu']) == 1
    assert 'device=' in capsys.readouterr().err

