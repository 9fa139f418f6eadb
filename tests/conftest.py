"What several test files need."
import os
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')       # before PyTorch is loaded: there are as many processes as cores, and commands have one thread, too

import forked
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

LONG = ('workflow', 'rehearsal', 'wheel', 'faults', 'gpu_checks', 'distributed', 'export', 'crate', 'extend', 'first_hour',
        'notebooks', 'own_data', 'claim_pages', 'figures', 'deviations', 'fuzz', 'determinism', 'exam')

set_hypothesis_home_dir(Path(tempfile.gettempdir())/'rrn-hypothesis')       # not into the checkout

def pytest_addoption(parser):
    parser.addoption('--fuzz', type=int, default=400, help="hostile inputs over all readers (nightly: 20000)")
    parser.addoption('--fuzz-seed', type=int, default=0, help="another number draws other inputs")
    parser.addoption('--kills', type=int, default=5, help="moments at which each kind of run is killed (nightly: 20)")

def pytest_xdist_auto_num_workers(config):
    "Workers where all tests are asked for. Each imports PyTorch for seconds, so a file, or what -k or -m choose, is quicker without."
    whole = config.args_source is config.ArgsSource.TESTPATHS and not (config.option.keyword or config.option.markexpr)
    return min(4, len(os.sched_getaffinity(0))) if whole else 0

def pytest_collection_modifyitems(items):
    "Long files first, so that no worker begins one when the others are at the end."
    order = {f'test_{name}.py': n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))

@pytest.fixture(scope='session', autouse=True)
def kernels_are_forked():
    "Kernels start in a moment. A papermill that is a process of its own starts real ones."
    with pytest.MonkeyPatch.context() as m:
        m.setattr('jupyter_client.provisioning.local_provisioner.launch_kernel', forked.kernel)
        yield

@pytest.fixture(scope='session')
def shared() -> Path:
    "The folder of reference vectors, texts and pictures beside the checkout; it is not part of the product."
    folder = Path(__file__).resolve().parents[2]/'shared'
    if not folder.is_dir(): pytest.skip("../shared (reference vectors and test data) is not beside this checkout")
    return folder

@pytest.fixture(scope='module')
def scenes(request, tmp_path_factory) -> Path:
    "The folder of a small embedded data set of its own, with as many scenes a split as the test file's `SCENES` says."
    from rrn.data.shapes import write_refer
    root = tmp_path_factory.mktemp('scenes')
    write_refer(root, seed=9, sizes=request.module.SCENES, workers=1)
    return root
