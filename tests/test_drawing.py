"""The knobs of the embedded scenes: the usual ones change no bit, others are in the stamp and in the data's fingerprint."""
import subprocess
import sys
import hashlib
import pytest
from rrn.common.core import derived_rng, read_json, RRNError
from rrn.data.datasets import open_dataset
from rrn.data.shapes import default_root, describe, Drawing, drawing_root, draw_scene, ensure, stamp_file, targets
from rrn.experiments.record import data_fingerprint

SIZES = {'train': 4, 'val': 1, 'testA': 1, 'testB': 1}
ALWAYS = {0: '42aa832c41e99b2b', 7: '4c33016978c598f0', 2400: 'd2de493d50a1bb76'}      # of seed 2018, before there were knobs


def digest(scene):
    found = hashlib.sha256(scene.image.tobytes())
    for mask in scene.masks: found.update(mask.tobytes())
    found.update(repr(scene.things).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize('index', ALWAYS)
def test_usual_scenes_are_what_they_always_were(index):
    assert digest(draw_scene(2018, index)) == ALWAYS[index]


def test_a_usual_stamp_is_what_it_always_was(tmp_path):
    ensure('unc', tmp_path, seed=5, sizes=SIZES, workers=1)
    wanted = {'drawn by': 'rrn.shapes', 'version': 1, 'seed': 5, 'sizes': SIZES, 'whole': True}
    assert read_json(stamp_file(tmp_path, 'refer'), 'stamp') == wanted


@pytest.mark.parametrize('kind', ['unc', 'referit'])
def test_a_knob_is_in_stamp_folder_and_fingerprint(tmp_path, kind):
    prints = {}
    for name, knobs in dict(usual={}, small=dict(scale=.5), fine=dict(outlines='fine')).items():
        root = ensure(kind, tmp_path/name, seed=5, sizes=SIZES, workers=1, **knobs)
        assert read_json(stamp_file(root, 'referit' if kind == 'referit' else 'refer'), 'stamp').get('drawing', {}) == knobs
        prints[name] = data_fingerprint(open_dataset(f'shapes-{kind}', root).samples('train'))
    assert len(set(prints.values())) == 3


def test_a_folder_keeps_its_drawing_until_another_is_asked_for(tmp_path):
    ensure('unc', tmp_path, seed=5, sizes=SIZES, workers=1, scale=.5)
    before = stamp_file(tmp_path, 'refer').stat().st_mtime_ns
    ensure('unc', tmp_path)
    assert stamp_file(tmp_path, 'refer').stat().st_mtime_ns == before
    ensure('unc', tmp_path, scale=1, workers=1)
    assert 'drawing' not in read_json(stamp_file(tmp_path, 'refer'), 'stamp')


def test_each_drawing_has_a_default_folder():
    assert drawing_root(Drawing()) == default_root()
    assert default_root().name == 'shapes-v1-seed2018'
    assert drawing_root(Drawing(scale=.5)).name == 'shapes-v1-seed2018-scale-0.5'
    assert drawing_root(Drawing(outlines='fine', pixels=2.5)).name == 'shapes-v1-seed2018-outlines-fine-pixels-2.5'


@pytest.mark.parametrize('knob, wrong', [('scale', 0), ('scale', 'small'), ('scale', True), ('pixels', 100), ('outlines', 'thin')])
def test_what_no_drawing_can_be(knob, wrong):
    with pytest.raises(RRNError, match=knob): Drawing(**{knob: wrong})


@pytest.mark.parametrize('drawing', [Drawing(scale=.5), Drawing(outlines='fine'), Drawing(pixels=2.)])
def test_other_drawings_have_targets_that_can_be_described(drawing):
    scenes = [draw_scene(3, i, drawing=drawing) for i in range(12)]
    asked = [(s, i) for s in scenes for i in targets(s)]
    said = [describe(derived_rng(1, i), s.things[i], s.things, 'unc') for s, i in asked]
    assert len(asked) > 30 and sum(map(bool, said)) > 20


def test_of_two_that_start_at_once_one_draws_and_the_other_waits(tmp_path):
    sizes = dict(train=40, val=4, testA=4, testB=4)
    draw = f"from rrn.data.shapes import ensure; ensure('unc', {str(tmp_path/'set')!r}, sizes={sizes}, workers=1)"
    both = [subprocess.Popen([sys.executable, '-c', draw], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
