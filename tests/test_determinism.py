"The same seed makes the same weights, bit for bit on a CPU: again, with other workers, in another process, of every system."
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from rrn.experiments.jobs import open_job, run_job
from rrn.experiments.record import Run

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

TINY = dict(dataset='shapes-unc', backbone='small', weights='random', vocabulary='', image_size=64, embed_dim=6, D_I=6, D_S=6, D_Q=6, iterations=6, images_per_batch=2, sentences_per_image=2, warmup=0,
            log_every=2, save_every=3, validate_every=4)

SCENES = {'train': 6, 'val': 2, 'testA': 1, 'testB': 1}


@pytest.fixture(autouse=True)
def one_thread():
    "How many threads add up decides the last bits; one is what the tests of all machines share."
    before = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(scenes, folder, device='cpu', **parameters):
    "The bytes of the final weights, and the losses in the log."
    job = replace(open_job(data_root=str(scenes), device=device, **TINY | parameters), run=Run(folder))
    log = run_job(job)
    return job.run.weights.read_bytes(), log.loss.dropna().tolist()


@pytest.mark.parametrize('name', ['small', 'paper', 'released', 'rmi'])
@pytest.mark.processor
def test_the_same_seed_makes_the_same_weights(scenes, tmp_path, name):
    one, two, other = (weights(scenes, tmp_path/str(i), preset=name, seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert one == two and one[0] != other[0] and one[1] != other[1]


@pytest.mark.parametrize('change', [dict(workers=2), dict(log_every=1, save_every=2, validate_every=6), dict(mirror=True, workers=2)], ids=['workers', 'plan', 'mirror'])
def test_what_changes_no_weights(scenes, tmp_path, change):
    base = {k: v for k, v in change.items() if k == 'mirror'}
    assert weights(scenes, tmp_path/'one', workers=0, **base)[0] == weights(scenes, tmp_path/'two', **{'workers': 0} | change)[0]


def test_another_process_makes_the_same_weights(scenes, tmp_path):
    "Its strings have other hashes, so that no order of a set can be in the result."
    script = f"import torch; torch.set_num_threads(1)\nfrom pathlib import Path\nfrom test_determinism import weights\nweights({str(scenes)!r}, Path({str(tmp_path/'there')!r}))"
    hashes = '1' if os.environ.get('PYTHONHASHSEED') != '1' else '2'
    subprocess.run([sys.executable, '-c', script], check=True, capture_output=True, cwd=Path(__file__).parent,
                   env=os.environ | {'PYTHONHASHSEED': hashes, 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])})
    assert weights(scenes, tmp_path/'here')[0] == (tmp_path/'there'/'model.safetensors').read_bytes()


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here'))])
@pytest.mark.parametrize('name', ['small', 'paper', 'released'])
def test_under_deterministic_algorithms(scenes, tmp_path, monkeypatch, name, device):
    "Every operation of a training has a deterministic form (docs/determinism.md); on a CPU it is the one that is used anyway."
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    plain = weights(scenes, tmp_path/'plain', device, preset=name)
    torch.use_deterministic_algorithms(True)
    try: one, two = (weights(scenes, tmp_path/str(i), device, preset=name) for i in range(2))
    finally: torch.use_deterministic_algorithms(False)
    assert one == two and (device != 'cpu' or one == plain)
