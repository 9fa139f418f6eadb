"""The dress rehearsal: README's commands, from an empty home, on published layouts and CNNs in torchvision's files.

Pictures are drawn, numbers of weights are made up, and the published counts and checksums are replaced by those of what
was made (`PATCH`): everything else is what a user has on the day the real files come. Slow parts, which train every
system of Table 2, run with RRN_SLOW=1."""
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from rrn.backbone import build_backbone, cnn_checksum
from rrn.common.weight_files import load_weights
from rrn.common.core import RRNError
from rrn.experiments.matrix import given_matrix, SYSTEMS_OF_TABLES
from rrn.model import configured_cnn
from rrn.common.pretrained import find_weights, KNOWN_FILES
from rrn.experiments.record import Run
from rrn.data.datasets import open_dataset
from rrn.data.shapes import write_refer, write_referit
import rrn.common.pretrained

REPO = Path(__file__).resolve().parents[1]
README = (REPO/'README.md').read_text()
SIZES = {'train': 6, 'val': 3, 'testA': 3, 'testB': 3}
SETS = ('unc', 'unc+', 'gref', 'gref-umd', 'referit')
TINY = dict(iterations=2, image_size=64, D_I=8, D_S=8, D_Q=8, embed_dim=8)
DEEPLAB, VGG = KNOWN_FILES['resnet101', 'deeplab'], KNOWN_FILES['vgg16_fcn', 'imagenet']
slow = pytest.mark.skipif(not os.environ.get('RRN_SLOW'), reason='slow: set RRN_SLOW=1')

PATCH = """
import importlib.abc, importlib.util, sys
from dataclasses import replace
def counts(module): module.EXPECTED.clear(); module.EXPECTED.update({counts!r})
def checksums(module):
    for key, begin in {checksums!r}.items(): module.KNOWN_FILES[key] = replace(module.KNOWN_FILES[key], sha256=begin)
AFTER = {{'rrn.data.refer': counts, 'rrn.common.pretrained': checksums}}
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in AFTER: return None
        sys.meta_path.remove(self)
        try: spec = importlib.util.find_spec(name)
        finally: sys.meta_path.insert(0, self)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), AFTER[name](module))
        return spec
sys.meta_path.insert(0, Finder())
"""


def command_in_readme(pattern) -> list:
    "The words of a command that README gives, which has to be there."
    found = re.search(pattern, README)
    assert found, f'README no longer has {pattern}'
    return found[0].split()


# ---------------------------------------------------------------- what a user has on that day

def published_layouts(root):
    "The five sets where REFER and text_objseg put them; drawn pictures."
    write_refer(root, seed=5, sizes=SIZES, workers=1)
    write_referit(root, seed=5, sizes=SIZES, workers=1)
    refs = pickle.loads((root/'refcocog'/'refs(umd).p').read_bytes())
    splits = {'google': dict(train='train', val='val'),
              'umd': dict(train='train', val='val', testA='test', testB='test')}
    for by, new in splits.items():
        kept = [r | dict(split=new[r['split']]) for r in refs if r['split'] in new]
        (root/'refcocog'/f'refs({by}).p').write_bytes(pickle.dumps(kept, protocol=2))


def deeplab_file(folder) -> Path:
    "A file of torchvision's DeepLabV3 with made-up numbers, under its name, in a folder like the hub's."
    from torchvision.models.segmentation import deeplabv3_resnet101
    torch.manual_seed(1)
    net = deeplabv3_resnet101(weights=None, weights_backbone=None, aux_loss=True)
    state = net.state_dict()
    for name in state:
        # as trained ones, so that C5 is not in the ten thousands
        if name.endswith('bn3.weight'): state[name] *= .1
    folder.mkdir(parents=True)
    torch.save(state, folder/DEEPLAB.name)
    return folder/DEEPLAB.name


def counts_of(root) -> dict:
    "References, sentences and images of every split, as `EXPECTED` has them."
    return {name: {split: tuple(map(int, row)) for split, row in open_dataset(name, root).counts().iterrows()}
            for name in SETS}


@pytest.fixture(scope='module')
def road(tmp_path_factory):
    "A checkout with data, and an empty home but for the hub's folder: (checkout, environment, the CNN's file)."
    place = tmp_path_factory.mktemp('road')
    checkout, home, patch = place/'checkout', place/'home', place/'patch'
    for folder in (checkout/'data', home, patch): folder.mkdir(parents=True)
    for name in ('Snakefile', 'settings.ini', 'README.md'): shutil.copy(REPO/name, checkout)
    shutil.copy(REPO/'data'/'published.yaml', checkout/'data')
    for name in ('rrn', 'nbs', 'profiles'): (checkout/name).symlink_to(REPO/name)
    published_layouts(checkout/'data')
    file = deeplab_file(home/'.cache'/'torch'/'hub'/'checkpoints')
    begin = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    (patch/'sitecustomize.py').write_text(PATCH.format(counts=counts_of(checkout/'data'),
                                                       checksums={('resnet101', 'deeplab'): begin}))
    kept = {k: os.environ[k] for k in ('PATH', 'LANG', 'TMPDIR') if k in os.environ}
    env = kept | dict(HOME=str(home), PYTHONPATH=f'{patch}{os.pathsep}{checkout}', OMP_NUM_THREADS='1',
                      PYTHONHASHSEED='0')
    env['PATH'] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return checkout, env, file


def run(road, words, **settings):
    "A command with `-p name value` for every setting; what it says."
    checkout, env, _ = road
    given = [w for k, v in settings.items() for w in ('-p', k, str(v))]
    done = subprocess.run([*map(str, words), *given], cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def as_there(road, monkeypatch):
    "The same home and checksums in this process."
    checkout, env, file = road
    monkeypatch.setenv('HOME', env['HOME']); monkeypatch.delenv('TORCH_HOME',
                                                                raising=False); monkeypatch.delenv('XDG_CACHE_HOME',
                                                                                                   raising=False)
    begin = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(rrn.common.pretrained.KNOWN_FILES, ('resnet101', 'deeplab'), replace(DEEPLAB, sha256=begin))
    return file


# ---------------------------------------------------------------- which CNN the tables stand on

def all_cells():
    matrix = given_matrix('paper', data_root='data')
    return matrix.cells()


def test_no_system_of_either_table_trains_on_a_cnn_that_holds_no_weights(as_there):
    "Every run of matrix=paper finds its CNN's file; and every CNN that they build holds what the file holds."
    cells = all_cells()
    assert {c.system for c in cells} == set(SYSTEMS_OF_TABLES) and {c.config.dataset for c in cells} == set(SETS)
    for cnn in {(c.config.backbone, c.config.weights) for c in cells}: assert find_weights(*cnn) == as_there, cnn
    wanted = {n.removeprefix('backbone.'): t for n, t in load_weights(as_there).items() if n.startswith('backbone.')}
    for c in {(c.config.backbone, c.config.weights, c.config.output_stride): c.config for c in cells}.values():
        found = configured_cnn(c).net.state_dict()
        assert len(found) > 500 and all(torch.equal(t, wanted[n]) for n, t in found.items())


def test_without_the_file_no_system_of_either_table_trains(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.delenv('TORCH_HOME',
                                                                  raising=False); monkeypatch.delenv('XDG_CACHE_HOME',
                                                                                                     raising=False)
    for c in {(c.config.backbone, c.config.weights): c.config for c in all_cells()}.values():
        with pytest.raises(RRNError, match=DEEPLAB.name): find_weights(c.backbone, c.weights)


def test_a_file_of_that_name_that_is_not_the_published_one_is_refused(road, monkeypatch):
    "Made-up numbers pass here only because these tests replace the checksum that is part of the file's name."
    monkeypatch.setenv('HOME', road[1]['HOME']); monkeypatch.delenv('TORCH_HOME', raising=False)
    with pytest.raises(RRNError, match=f'not the published file: .*{DEEPLAB.sha256}'): find_weights('resnet101',
                                                                                                    'deeplab')


@slow
def test_lstm_cnn_s_own_network(tmp_path, monkeypatch):
    "VGG-16, the CNN of the preset `lstm-cnn`: refused without its file, and built on it."
    from torchvision.models import vgg16
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.delenv('TORCH_HOME', raising=False)
    with pytest.raises(RRNError, match=VGG.name): find_weights('vgg16_fcn', 'imagenet')
    file = tmp_path/'.cache'/'torch'/'hub'/'checkpoints'/VGG.name
    file.parent.mkdir(parents=True)
    state = vgg16(weights=None).state_dict()
    torch.save(state, file)
    monkeypatch.setitem(rrn.common.pretrained.KNOWN_FILES, ('vgg16_fcn', 'imagenet'),
                        replace(VGG, sha256=hashlib.sha256(file.read_bytes()).hexdigest()[:8]))
    net = build_backbone('vgg16_fcn', 'imagenet', 32)
    assert torch.equal(net.conv[0].weight, state['features.0.weight'])
    assert torch.equal(net.fc7.weight.flatten(), state['classifier.3.weight'].flatten())


# ---------------------------------------------------------------- README's commands

def test_readme_s_weights_command_finds_them(road):
    words = command_in_readme(r'python -m rrn\.download weights resnet101')
    assert DEEPLAB.name in run(road, words)


@pytest.fixture(scope='module')
def trained(road):
    "The run of README's training command, with the paper's preset by name: without a GPU `auto` would choose `mini`."
    words = command_in_readme(r'papermill nbs/train\.ipynb out\.ipynb -p dataset unc -p data_root data')
    run(road, [*words, '--no-progress-bar'], preset='paper', run='a-run', **TINY)
    return Run(road[0]/'runs'/'a-run')


def test_train_and_evaluate(road, trained):
    "The record says which CNN, and that the set is complete; results with a CRF and without."
    record = trained.record()
    assert record['data'] == 'complete'
    assert (record['config']['backbone'], record['config']['weights']) == ('resnet101', 'deeplab')
    assert record['identity']['cnn'] == cnn_checksum(build_backbone('resnet101', road[2], 8))
    run(road, ['papermill', 'nbs/evaluate.ipynb', 'out.ipynb', '--no-progress-bar'], run='a-run', data_root='data',
        splits='val,testA,testB', crf='torch',
        controls=False, protocols=False)
    found = json.loads(trained.metrics.read_text())
    assert {f'unc {s}{with_crf}' for s in ('val', 'testA', 'testB') for with_crf in ('', ' (dcrf)')} <= set(found)


def config_words(**settings): return ['--config', *(f'{k}={v}' for k, v in settings.items())]


def check_runs(road, cells):
    "Every cell's record: the CNN of the file, and results for every column."
    checksum = cnn_checksum(build_backbone('resnet101', road[2], 8))
    for c in cells:
        record = Run(road[0]/'runs'/c.run).record()
        assert record['identity']['cnn'] == checksum and record['config']['weights'] == 'deeplab', c.run
        assert record['data'] == 'complete', c.run


@slow
def test_snakemake_makes_tables_and_figures(road):
    "From nothing to tables and figures: every system of Table 2 and Figure 5's baseline on two sets."
    assert '--config matrix=paper data_root=data' in README
    settings = TINY | dict(matrix='paper', data_root='data', datasets='unc,referit', rows='row12', more_seeds='',
                           repeated='')
    run(road, ['snakemake', 'reports', '--cores', '1', *config_words(**settings)])
    check_runs(road, given_matrix(**settings).cells())
    made = next((road[0]/'runs'/'reports').glob('paper*'))
    assert 'RRN (LSTM, DCRF)' in (made/'tables'/'table2.md').read_text() and (made/'tables'/'claims.md').is_file()
    assert all((made/'figures'/f'figure{n}.png').is_file() for n in (1, 2, 3, 4, 5))
