"""What a newcomer meets in the first hour: parameters that are edited and run again, one bar, errors that say what to do, help."""
import json, os, subprocess, sys
from pathlib import Path
import forked
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

REPO = Path(__file__).resolve().parents[1]
DRIVERS = sorted(p for p in (REPO/'nbs').glob('*.ipynb') if p.name != 'index.ipynb')
SCENES = {'train': 6, 'val': 4, 'testA': 4, 'testB': 4}

# ---- one kernel, as in JupyterLab --------------------------------------------------------------------------------------------

class Kernel:
    "A kernel that stays alive while cells are edited and run again."
    def __init__(self, folder): self.manager, self.client = start_new_kernel(cwd=str(folder))

    def run(self, source) -> list:
        "Run a cell; its outputs, with updates in place."
        outputs, shown = [], {}
        def hook(message):
            kind, content = message['msg_type'], message['content']
            if kind == 'update_display_data': shown[content['transient']['display_id']]['data'] = content['data']
            if kind in ('stream', 'error', 'display_data', 'execute_result'): outputs.append(dict(content, kind=kind))
            if kind == 'display_data' and 'display_id' in content['transient']: shown[content['transient']['display_id']] = outputs[-1]
        self.client.execute_interactive(source, output_hook=hook, store_history=True, timeout=120)
        return outputs

    def run_all(self, cells) -> str:
        "Run cells until one fails; the error as it is shown, or ''."
        for source in cells:
            for output in self.run(source):
                if output['kind'] == 'error': return '\n'.join(output['traceback'])
        return ''

    def value(self, expression): return ''.join(o['text'] for o in self.run(f'print({expression})') if o['kind'] == 'stream')

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope='module')
def kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp('user'))
    yield kernel
    kernel.stop()


def sources(name, last='') -> list:
    "Code cells of a driver, to the first that holds `last`; the tagged cell's position."
    cells = [c for c in nbformat.read(REPO/'nbs'/f'{name}.ipynb', 4).cells if c.cell_type == 'code']
    tagged = next(i for i, c in enumerate(cells) if 'parameters' in c.metadata.get('tags', []))
    end = next((i + 1 for i, c in enumerate(cells) if last and last in c.source), len(cells))
    return [c.source for c in cells[:end]], tagged


def test_run_all_again_in_the_same_kernel(kernel, scenes):
    cells, tagged = sources('train', 'open_job(')
    edited = lambda text: [*cells[:tagged], cells[tagged] + f'\n{text}', *cells[tagged + 1:]]
    here = f'data_root = {str(scenes)!r}'
    assert "Did you mean 'iterations'" in kernel.run_all(edited(f'{here}\niteration = 7'))
    for _ in range(2): assert kernel.run_all(edited(f'{here}\niterations = 7\nD_Q = 8')) == ''
    assert kernel.value('job.config.iterations, job.config.D_Q') == '7 8\n'
    kernel.run(cells[tagged] + f'\n{here}\niterations = 9')                      # this cell alone, then what opens the job
    assert kernel.run_all(cells[-1:]) == '' and kernel.value('job.config.iterations, job.config.D_Q') == '9 64\n'
    assert kernel.run_all(edited(here)) == '' and kernel.value('job.config.iterations') == '3600\n'


@pytest.mark.parametrize('path', DRIVERS, ids=lambda p: p.stem)
def test_a_wrong_name_is_refused_by_every_driver(kernel, path):
    cells, tagged = sources(path.stem)
    cells.insert(tagged + 1, '# Parameters\nseeed = 1\n')                        # as papermill puts it
    error = kernel.run_all(cells)
    assert error.startswith("RRNError: parameter='seeed' is not known."), error


def test_a_value_of_another_type_is_refused(kernel):
    cells, tagged = sources('benchmark')
    cells.insert(tagged + 1, '# Parameters\nquick = "yes"\n')
    assert kernel.run_all(cells).startswith("RRNError: quick='yes' is str; it should be bool.")


def test_a_parameter_that_was_renamed_in_the_cell_is_missed(kernel):
    cells, tagged = sources('deviations')
    cells[tagged] = cells[tagged].replace('iterations = ', 'steps = ')
    assert "lacks 'iterations'" in kernel.run_all(cells)


# ---- one bar -----------------------------------------------------------------------------------------------------------------

LOOP = 'from rrn.common.notebook import progress_bar\nfor i in progress_bar(range(3000), "counting", mininterval=0): pass'


def test_a_bar_is_one_output_that_ends_at_100(kernel):
    outputs = kernel.run(LOOP)
    assert len(outputs) == 1 and '100%' in outputs[0]['data']['text/plain'] and set(outputs[0]['data']) == {'text/plain'}


def python(*words, **more):
    return forked.run(words, env=os.environ | {'PYTHONPATH': str(REPO)}, **more)


def test_a_bar_in_a_log_is_few_lines(capsys):
    exec(LOOP, {})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and all('%' in line for line in lines) and '3000/3000' in lines[-1]


def test_a_bar_in_a_terminal_is_drawn_over_itself():
    import pty, termios
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    words, env = ['-c', LOOP.replace(', mininterval=0', '')], os.environ | {'PYTHONPATH': str(REPO)}
    done = forked.Forked(words, env=env, outputs=(os.devnull, os.ttyname(theirs)))
    os.close(theirs)
    text = b''
    try:
        while part := os.read(ours, 10_000): text += part
    except OSError: pass                     # the other end is closed
    assert done.wait() == 0 and text.count(b'\n') == 1 and b'3000/3000' in text.strip().split(b'\r')[-1]


# ---- errors ------------------------------------------------------------------------------------------------------------------

def test_papermill_shows_the_message_and_fails(tmp_path):
    done = python('-m', 'papermill', str(REPO/'nbs'/'train.ipynb'), 'out.ipynb', '-p', 'update', 'lsmt', '--no-progress-bar', cwd=tmp_path)
    message = "RRNError: update='lsmt' is not known. Did you mean 'lstm'?"
    shown = done.stderr[done.stderr.index('Exception encountered'):].strip().splitlines()
    assert done.returncode != 0 and shown[1].startswith(message) and len(shown) <= 4 and len(done.stderr.splitlines()) < 60
    cell = next(o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells for o in c.get('outputs', []) if o.output_type == 'error')
    assert cell.traceback[0].startswith(message) and len(cell.traceback) == 2


def test_another_error_keeps_its_traceback(kernel):
    shown = kernel.run_all(['def divide(x): return 1/x\ndivide(0)'])
    assert 'ZeroDivisionError' in shown and len(shown.splitlines()) > 5 and 'divide' in shown

# ---- help --------------------------------------------------------------------------------------------------------------------

COMMANDS = sorted({p.stem for p in (REPO/'rrn').glob('*.py') if '__main__' in p.read_text()} - {'cli'})
EACH = '''
import contextlib, io, json, runpy, sys, warnings
warnings.simplefilter('ignore')
found = {}
for module in list(sys.argv[1:]):
    for option in ('--help', '--no-such-option'):
        out, err = io.StringIO(), io.StringIO()
        sys.argv[1:] = [option]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: status = runpy.run_module('rrn.' + module, run_name='__main__', alter_sys=True) and 0
            except SystemExit as e: status = e.code
        found[module + ' ' + option] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(found))
'''


def test_every_command_has_help_and_refuses_what_it_does_not_know():
    from dataclasses import fields
    from rrn.model import Config
    from rrn.cli import COMMANDS as ALL
    from rrn.experiments.jobs import RUN_OPTIONS
    assert {'train', 'download', 'doctor', 'convert', 'benchmark'} <= set(COMMANDS) <= set(ALL) and {'matrix', 'publish'} <= set(ALL)
    found = json.loads(python('-c', EACH, *COMMANDS).stdout)
    for module in COMMANDS:
        status, out, err = found[f'{module} --help']
        assert (status or 0) == 0 and f'usage: rrn {module}' in out and not err, module
        status, out, err = found[f'{module} --no-such-option']
        assert status == 2 and len(err.splitlines()) == 1 and err.startswith('error: '), module
    told = found['train --help'][1]
    for name in (*(f.name for f in fields(Config)), *RUN_OPTIONS): assert f' --{name}' in told
    assert '(default: 0.00025)' in told and 'largest norm of the gradient' in told and 'processes that decode images' in told


def test_a_setting_without_a_value_is_refused():
    from rrn.common.core import RRNError
    from rrn.common.command import typed_settings
    kinds = dict(lr=float, run=str, mirror=bool)
    assert typed_settings(['lr=1e-3', 'run=a=b', 'mirror=True'], kinds) == dict(lr=1e-3, run='a=b', mirror=True)
    with pytest.raises(RRNError, match='name=value'): typed_settings(['lr'], kinds)


# ---- started beside the clone ------------------------------------------------------------------------------------------------

BUILD = "import setuptools.build_meta as b, sys; b.build_editable(sys.argv[1])"
IMPORT = "import site, sys; site.addsitedir(sys.argv[1]); import rrn; print(rrn.__version__, rrn.__file__)"


def test_beside_a_clone_called_rrn_the_package_is_imported(tmp_path):
    "Installed as `uv sync` installs it. A folder without __init__.py must not hide the package."
    import shutil, zipfile
    clone, site = tmp_path/'rrn', tmp_path/'site'
    shutil.copytree(REPO/'rrn', clone/'rrn', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(REPO/name, clone/name)
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-c', BUILD, str(tmp_path)], cwd=clone, env=environment, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel: wheel.extractall(site)
    for folder in (tmp_path, clone, clone/'rrn'):
        done = subprocess.run([sys.executable, '-S', '-c', IMPORT, str(site)], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.split()[1] == str(clone/'rrn'/'__init__.py'), (folder, done.stderr, done.stdout)


# ---- opened in JupyterLab ----------------------------------------------------------------------------------------------------

def lab_saves(folder, name, **hook):
    "Open a notebook through the server's contents API, do to it what JupyterLab does when its kernel has started, and save it."
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_server.services.contents.filemanager import FileContentsManager
    contents = FileContentsManager(root_dir=str(folder), **hook)
    model = contents.get(f'nbs/{name}')
    model['content']['metadata']['kernelspec'] = dict(name='python3', display_name='Python 3 (ipykernel)', language='python')
    model['content']['metadata']['language_info'] = IPythonKernel.language_info
    contents.save(dict(type='notebook', format='json', content=json.loads(json.dumps(model['content']))), f'nbs/{name}')


@pytest.fixture
def opened(tmp_path, monkeypatch):
    "A copy of the notebooks with the settings beside them."
    import shutil
    shutil.copytree(REPO/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    shutil.copy(REPO/'settings.ini', tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path/'jupyter'))             # where signatures go
    return tmp_path


def differences(opened): return [p.name for p in sorted((opened/'nbs').glob('*.ipynb')) if p.read_bytes() != (REPO/'nbs'/p.name).read_bytes()]


@pytest.mark.filterwarnings('ignore')
def test_what_jupyterlab_changes_is_cleaned_away(opened):
    from nbdev.clean import clean_jupyter, nbdev_clean
    names = [p.name for p in (opened/'nbs').glob('*.ipynb')]
    for name in names: lab_saves(opened, name, pre_save_hook=clean_jupyter)                 # the hook of nbdev_install_hooks
    assert differences(opened) == []
    for name in names: lab_saves(opened, name)
    assert len(differences(opened)) == len(names)
    nbdev_clean.__wrapped__(str(opened/'nbs'))
    assert differences(opened) == []
