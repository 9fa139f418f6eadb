"""Python processes that need not import PyTorch: they are forked from a server that has, and that knows nothing of rrn.

A new Python takes seconds of computing until PyTorch, timm and Jupyter are there, and tests start dozens. `run` stands for
`subprocess.run`, and conftest.py puts `kernel` in the place of what starts kernels. A test of the interpreter itself (other
hashes of strings, a module that is missing, warnings) starts a new one all the same."""
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

server = multiprocessing.get_context('forkserver')
server.set_forkserver_preload(['torch', 'torchvision', 'timm', 'torch._dynamo', 'pandas', 'ipykernel.kernelapp'])


def become(words, cwd, env, outputs):
    "In the forked process: what `python WORDS` would be."
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = ['', *filter(None, env.get('PYTHONPATH', '').split(os.pathsep))]
    for number, file in enumerate(outputs, 1): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.setsid()                                                        # who started it waits for this
    kind, what, *sys.argv[1:] = words
    if kind == '-m': return runpy.run_module(what, run_name='__main__', alter_sys=True)
    sys.argv[0] = '-c'
    exec(compile(what, '<string>', 'exec'), sys.modules['__main__'].__dict__)


class Forked:
    "`subprocess.Popen` of `python WORDS`, as far as tests and kernels need it."
    stdin = stdout = stderr = None

    def __init__(self, words, cwd=None, env=None, outputs=(os.devnull, os.devnull)):
        env = dict(os.environ if env is None else env)
        self.process = server.Process(target=become, args=([*map(str, words)], str(cwd or Path.cwd()), env, outputs))
        self.process.start()
        self.pid = self.process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid: time.sleep(.001)        # a group of its own to kill

    def poll(self): return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None: raise subprocess.TimeoutExpired('python', timeout)
        return self.process.exitcode

    def end(self):
        "With all that it has started, if it has not ended."
        if self.poll() is None: os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number): os.kill(self.pid, number)
    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


def run(words, cwd=None, env=None) -> subprocess.CompletedProcess:
    "`subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=env)`."
    with tempfile.TemporaryDirectory() as place:
        outputs = [os.path.join(place, name) for name in ('out', 'err')]
        process = Forked(words, cwd, env, outputs)
        try: status = process.wait()
        finally: process.end()
        said = [Path(file).read_text() if os.path.exists(file) else '' for file in outputs]
    return subprocess.CompletedProcess(words, status, *said)


def kernel(command, env=None, cwd=None, **ignored) -> Forked:
    "`jupyter_client.launcher.launch_kernel`; the kernel ends with the server, and that with the tests."
    multiprocessing.forkserver.ensure_running()                        # before the first process, it has no id yet
    server_id = multiprocessing.forkserver._forkserver._forkserver_pid
    return Forked([*command[1:], f'--IPKernelApp.parent_handle={server_id}'], cwd, env)
