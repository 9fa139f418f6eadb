"""In a real browser: the explorer in JupyterLab; the built site and the page that asks a model, on a wide and a narrow screen.
Skipped without Chromium."""
import contextlib
import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from rrn.common.core import RRNError
from rrn.experiments.export import export_page
from rrn.predict import Predictor
from screens import differing_bits, LIMIT

REPO = Path(__file__).resolve().parents[1]
PAGES = REPO/'build'/'site'/'html'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason='no Chromium here: apt-get install chromium')]


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield opened
        opened.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def keep(page, name):
    "Keep what is seen, where one asked for it."
    if os.environ.get('RRN_SCREENSHOTS'): page.screenshot(path=Path(os.environ['RRN_SCREENSHOTS'])/f'{name}.png')


def looks_as_before(page, name, folder):
    "Loosely: see tests/screens.py."
    keep(page, name)
    page.screenshot(path=folder/f'{name}.png')
    assert differing_bits(folder/f'{name}.png', name) <= LIMIT, 'look at it with RRN_SCREENSHOTS=FOLDER; tests/screens.py writes its hash'


# ---- the site --------------------------------------------------------------------------------------------------------

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@contextlib.contextmanager
def served(folder):
    "The address of a folder, as any web server gives it."
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()


@pytest.fixture(scope='module')
def site():
    if not (PAGES/'index.html').exists(): pytest.skip('the site is not built: uv run --group site python docs/site/build.py')
    with served(PAGES) as address: yield address


SOME = ['nbs/index', 'nbs/1_paper/04_refine', 'nbs/explore', 'reports/README', 'reports/tables/claims', 'reports/tables/table1',
        'apidocs/rrn/rrn.refine', 'docs/site/pages/paper', 'README', 'CONTRIBUTING']


def opened(browser, url, width=1300):
    "A page, and what went wrong while it was loaded."
    page, wrong = browser.new_page(viewport=dict(width=width, height=900)), []
    page.on('console', lambda message: message.type in ('error', 'warning') and wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('response', lambda answer: answer.status >= 400 and wrong.append(answer.url))
    page.on('request', lambda request: url.split('/')[2] not in request.url and request.url.startswith('http') and wrong.append(request.url))
    page.goto(url, wait_until='load')
    return page, wrong


@pytest.mark.parametrize('name', SOME)
def test_a_page_is_whole_and_fits_a_narrow_screen(browser, site, name):
    page, wrong = opened(browser, f'{site}/{name}.html', width=400)
    keep(page, f"narrow-{name.replace('/', '-')}")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
    assert page.evaluate("[...document.images].filter(i => i.loading !== 'lazy' && !(i.complete && i.naturalWidth)).map(i => i.src)") == []
    assert wrong == []
    page.close()


def test_tables_are_sorted_and_the_start_page_leads_on(browser, site):
    page, wrong = opened(browser, f'{site}/reports/tables/claims.html')
    column = lambda: page.eval_on_selector_all('article table tbody tr', "rows => rows.map(r => r.cells[3].textContent)")
    before = column()
    page.click('article th >> nth=3')
    assert sorted(before) == sorted(column()) != column() or before != column()
    keep(page, 'sorted')
    page.goto(f'{site}/index.html')
    page.wait_for_url('**/nbs/index.html')
    assert page.locator('math').count() > 20
    page.goto(f'{site}/search.html?q=peepholes')
    page.wait_for_selector('ul.search li')
    assert wrong == []
    page.close()


@pytest.mark.parametrize('name, width', {'start': 1300, 'start-400': 400}.items())
def test_the_start_page_looks_as_before(browser, site, tmp_path, name, width):
    page, wrong = opened(browser, f'{site}/nbs/index.html', width)
    assert wrong == []
    looks_as_before(page, name, tmp_path)
    page.close()


# ---- the page that asks a model --------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "The folder of the page: the site's where that is built, else one made here."
    if (PAGES/'demo'/'index.html').exists(): return PAGES/'demo'
    pytest.importorskip('onnxscript', reason="the extra is not installed: pip install 'rrn[export]'")
    try: return export_page(Predictor.from_pretrained('shapes-unc', device='cpu'), tmp_path_factory.mktemp('demo')/'page')
    except RRNError as e:
        if 'npm' in str(e): pytest.skip(str(e))
        raise


def answered(page, sentence) -> np.ndarray:
    "Type a sentence into the page; where its picture is coloured then, (H, W) bool."
    page.fill('#sentence', sentence)
    page.wait_for_selector(f'body[data-asked="{sentence}"]')
    coloured = page.evaluate("""() => {
        const drawn = document.querySelector('#mask canvas'), { width, height } = drawn, { data } = window.rrn.picture;
        const seen = drawn.getContext('2d').getImageData(0, 0, width, height).data;
        return { width, height, where: Array.from({ length: width * height }, (_, i) => [0, 1, 2].some(c => seen[4 * i + c] !== data[4 * i + c])) };
    }""")
    return np.reshape(coloured['where'], (coloured['height'], coloured['width']))


@pytest.mark.parametrize('name, width', {'page': 1300, 'page-400': 400}.items())
def test_the_page_draws_the_masks_of_the_library(browser, demo, tmp_path, name, width):
    "For each scene, a sentence after another; nothing comes from elsewhere, and nothing is wider than the screen."
    predictor, scenes = Predictor.from_pretrained('shapes-unc', device='cpu'), json.loads((demo/'scenes.json').read_text())
    with served(demo) as address:
        page, wrong = opened(browser, f'{address}/index.html', width)
        page.wait_for_selector('body[data-ready]')
        for i, scene in enumerate(scenes[:2]):
            page.select_option('#picture', str(i))
            page.wait_for_selector('body[data-asked="%s"]' % scene['sentences'][0])
            predictor.set_image(Image.open(demo/scene['picture']))
            masks = [answered(page, sentence) for sentence in scene['sentences'][:3]]
            for theirs, ours in zip(masks, predictor.predict(scene['sentences'][:3])):
                assert ours.mask.any() and (theirs & ours.mask).sum() >= .99 * (theirs | ours.mask).sum()
            assert not np.array_equal(masks[0], masks[1])
        page.click('#mask canvas')
        assert 'pixel (' in page.inner_text('#pixel') and page.locator('#inside canvas').count() > 8
        assert page.evaluate('document.scrollingElement.scrollWidth') <= width and wrong == []
        looks_as_before(page, name, tmp_path)
        page.close()


def test_the_page_takes_ones_own_picture_and_names_what_it_cannot_read(browser, demo, tmp_path):
    Image.fromarray(np.full((90, 160, 3), 200, np.uint8)).save(tmp_path/'own.png')
    (tmp_path/'text.png').write_text('no picture')
    with served(demo) as address:
        page, wrong = opened(browser, f'{address}/index.html')
        page.wait_for_selector('body[data-ready]')
        page.set_input_files('#upload', tmp_path/'own.png')
        page.wait_for_function("document.querySelector('#mask canvas').width === 160")
        assert answered(page, 'left zebra').shape == (90, 160) and page.inner_text('#said') == 'never seen: zebra'
        page.set_input_files('#upload', tmp_path/'text.png')
        page.wait_for_function("document.querySelector('#said').textContent === 'text.png is no picture that can be read.'")
        page.fill('#sentence', ' . ')
        page.wait_for_function("document.querySelector('#said').textContent === 'Say what to look for.'")
        assert wrong == []
        page.close()


# ---- JupyterLab ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on a copy of the notebooks."
    root = tmp_path_factory.mktemp('lab')
    shutil.copytree(REPO/'nbs', root/'nbs')
    tracker = root/'settings'/'@jupyterlab'/'notebook-extension'/'tracker.jupyterlab-settings'
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps(dict(windowingMode='none', autoStartDefaultKernel=True)))
    news = root/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))
    port = free_port()
    env = os.environ | dict(JUPYTERLAB_SETTINGS_DIR=str(root/'settings'), PYTHONPATH=str(REPO), JUPYTER_CONFIG_DIR=str(root/'config'))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--IdentityProvider.token=',
               f'--ServerApp.root_dir={root}/nbs', f'--LabApp.workspaces_dir={root}/workspaces', '--LabApp.expose_app_in_browser=True']
    with open(root/'log', 'w') as log: process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api')
                break
            except OSError: time.sleep(.2)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        process.wait()


READY = """() => {          // the indicator already says so before there is a kernel, and what is run then is lost
    const session = window.jupyterapp.shell.currentWidget?.context?.sessionContext, kernel = session?.session?.kernel;
    return session?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""


def run_all(browser, lab, name, height=1000):
    "A notebook in JupyterLab, with all its cells being run."
    page = browser.new_page(viewport=dict(width=1500, height=height))
    page.goto(f'{lab}/lab/tree/{name}')
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    return page


FAULTS = '.jp-OutputArea-output[data-mime-type*="stderr"], .jp-OutputArea-output[data-mime-type*="error"]'


def test_the_explorer_answers_what_is_typed(browser, lab, tmp_path):
    page = run_all(browser, lab, 'explore.ipynb')
    picture = page.locator('img[alt^="the picture with the mask"]').first
    picture.wait_for(timeout=240_000)
    page.wait_for_selector('img[alt^="h_3"]', timeout=60_000)
    before = picture.get_attribute('src')
    page.locator('.widget-text input[type="text"]').first.fill('top star')
    page.wait_for_function("old => document.querySelector('img[alt^=\"the picture with the mask\"]').src !== old", arg=before, timeout=30_000)
    picture.click(position=dict(x=60, y=50))
    page.wait_for_selector('.rrn-pixel >> text=pixel (', timeout=30_000)
    page.wait_for_function("() => document.querySelectorAll('.rrn-pictures img[alt^=without]').length === 2", timeout=30_000)    # two words
    assert page.locator(FAULTS).count() == 0
    picture.evaluate("picture => picture.scrollIntoView({ block: 'center' })")
    looks_as_before(page, 'explorer', tmp_path)
    page.close()


@pytest.mark.parametrize('name', ['index.ipynb', '1_paper/04_refine.ipynb', 'train.ipynb'])
def test_notebooks_run_without_a_warning(browser, lab, name):
    if not os.environ.get('RRN_SLOW'): pytest.skip('minutes: set RRN_SLOW=1')
    page = run_all(browser, lab, name)
    page.wait_for_function("""() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].filter(p => p.textContent.includes('*')).length === 0
        && [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(p => /[0-9]/.test(p.textContent))""", timeout=1_500_000, polling=2000)
    assert page.locator(FAULTS).count() == 0 and page.locator('.jp-OutputArea img').count() > 0
    keep(page, name.replace('/', '-'))
    page.close()
