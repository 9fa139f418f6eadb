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
from types import SimpleNamespace
import nbformat
import numpy as np
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image
from rrn.common.core import RRNError
from rrn.experiments.export import export_page
from rrn.predict import Predictor
from models_made import untrained
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


@pytest.mark.parametrize('width', [1300, 400])
def test_the_demo_answers_inside_the_site(browser, site, width):
    page, wrong = opened(browser, f'{site}/docs/site/pages/demo.html', width)
    demo = page.frame_locator('iframe.demo')
    if not demo.owner.count(): pytest.skip('the site was built without the demo: it needs npm and onnx')
    demo.locator('body[data-ready]').wait_for(timeout=60_000)
    demo.locator('#sentence').fill('left zebra')
    demo.locator('#said >> text=never seen: zebra').wait_for()
    assert demo.locator('.mask canvas').is_visible() and demo.locator('html').evaluate("e => e.scrollWidth <= e.clientWidth")
    keep(page, f'demo-{width}')
    assert page.evaluate('document.scrollingElement.scrollWidth') <= width and wrong == []
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


def drawn_mask(page, view=0) -> np.ndarray:
    "Where a view's picture is coloured, (H, W) bool."
    coloured = page.evaluate("""view => {
        const drawn = document.querySelectorAll('.mask')[view].firstChild, { width, height } = drawn, { data } = window.rrn.picture;
        const seen = drawn.getContext('2d').getImageData(0, 0, width, height).data;
        return { width, height, where: Array.from({ length: width * height }, (_, i) => [0, 1, 2].some(c => seen[4 * i + c] !== data[4 * i + c])) };
    }""", view)
    return np.reshape(coloured['where'], (coloured['height'], coloured['width']))


def answered(page, sentence) -> np.ndarray:
    "Type a sentence into the page; the mask of its first view then."
    page.fill('#sentence', sentence)
    page.wait_for_selector(f'body[data-asked="{sentence}"]')
    return drawn_mask(page)


def chosen(page, view, name) -> np.ndarray:
    "Choose a model in a view; its mask then."
    page.locator('.view').nth(view).locator('select').select_option(name)
    page.wait_for_function("([view, name]) => document.querySelectorAll('.view')[view].dataset.shown === name", arg=[view, name])
    page.wait_for_function("() => !document.querySelector('#said').textContent.includes('is being loaded')")
    return drawn_mask(page, view)


def alike(theirs, ours) -> bool:
    "Whether a mask of the page is the library's."
    return ours.any() and (theirs & ours).sum() >= .99 * (theirs | ours).sum()


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
            for theirs, ours in zip(masks, predictor.predict(scene['sentences'][:3])): assert alike(theirs, ours.mask)
            assert not np.array_equal(masks[0], masks[1])
        page.click('.mask canvas')
        assert 'pixel (' in page.inner_text('.pixel') and page.locator('.inside canvas').count() > 8
        assert page.evaluate('document.scrollingElement.scrollWidth') <= width and wrong == []
        looks_as_before(page, name, tmp_path)
        page.close()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "A page with two models, and both as the library has them."
    pytest.importorskip('onnxscript', reason="the extra is not installed: pip install 'rrn[export]'")
    shipped = Predictor.from_pretrained('shapes-unc', device='cpu')
    models = {'shapes-unc': shipped, 'untrained': untrained(shipped.vocabulary, tmp_path_factory.mktemp('runs')/'untrained')}
    try: return export_page(models.values(), tmp_path_factory.mktemp('two')/'page'), models
    except RRNError as e:
        if 'npm' in str(e): pytest.skip(str(e))
        raise


@pytest.mark.parametrize('name, width', {'two': 1300, 'two-400': 400}.items())
def test_another_model_is_chosen_and_two_stand_side_by_side(browser, two, tmp_path, name, width):
    "Each mask is that of its own model; the second one is fetched when it is chosen."
    folder, models = two
    scene, fetched = json.loads((folder/'scenes.json').read_text())[0], []
    ours = {name: p.set_image(Image.open(folder/scene['picture'])).predict(scene['sentences'][0]).mask for name, p in models.items()}
    with served(folder) as address:
        page, wrong = opened(browser, f'{address}/index.html', width)
        page.on('request', lambda request: fetched.append(request.url))
        page.wait_for_selector('body[data-ready]')
        assert not any('untrained' in url for url in fetched) and not page.locator('.view').nth(1).locator('.mask').is_visible()
        first, other = drawn_mask(page), chosen(page, 0, 'untrained')
        assert alike(first, ours['shapes-unc']) and alike(other, ours['untrained']) and not alike(first, other)
        assert any('models/untrained/head.onnx' in url for url in fetched) and 'Gate' not in page.inner_text('.inside')
        again = chosen(page, 0, 'shapes-unc'), chosen(page, 1, 'untrained')
        assert [alike(mask, ours[name]) for mask, name in zip(again, models)] == [True, True]
        assert page.inner_text('#between h2') == f"{(again[0] != again[1]).sum()} pixels differ"
        answered(page, 'left zebra')
        assert page.inner_text('#said') == 'never seen by shapes-unc: zebra; never seen by untrained: zebra'
        page.locator('.mask canvas').nth(1).click()
        assert [view.inner_text().startswith('pixel (') for view in page.locator('.pixel').all()] == [True, True]
        assert page.evaluate('document.scrollingElement.scrollWidth') <= width and wrong == []
        looks_as_before(page, name, tmp_path)
        page.locator('.view').nth(1).locator('select').select_option('')
        page.wait_for_function("() => !document.querySelector('#between').firstChild")
        page.close()


def test_a_model_that_is_not_there_is_named(browser, two, tmp_path):
    folder = shutil.copytree(two[0], tmp_path/'page')
    shutil.rmtree(folder/'models'/'untrained')
    with served(folder) as address:
        page, wrong = opened(browser, f'{address}/index.html')
        page.wait_for_selector('body[data-ready]')
        page.locator('.view').nth(1).locator('select').select_option('untrained')
        page.wait_for_function("() => document.querySelector('#said').textContent.startsWith('untrained cannot be loaded: models/untrained/model.json is not there')")
        assert drawn_mask(page).any() and not page.locator('.view').nth(1).locator('.mask').is_visible()
        page.close()


def test_the_page_takes_ones_own_picture_and_names_what_it_cannot_read(browser, demo, tmp_path):
    Image.fromarray(np.full((90, 160, 3), 200, np.uint8)).save(tmp_path/'own.png')
    (tmp_path/'text.png').write_text('no picture')
    with served(demo) as address:
        page, wrong = opened(browser, f'{address}/index.html')
        page.wait_for_selector('body[data-ready]')
        page.set_input_files('#upload', tmp_path/'own.png')
        page.wait_for_function("document.querySelector('.mask canvas').width === 160")
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
        yield SimpleNamespace(address=f'http://127.0.0.1:{port}', folder=root/'nbs')
    finally:
        process.terminate()
        process.wait()


CURRENT = "window.jupyterapp.shell.currentWidget"
READY = """name => {          // the indicator already says so before there is a kernel, and what is run then is lost
    const { sessionContext, path } = CURRENT?.context ?? {}, kernel = sessionContext?.session?.kernel;
    return path === name && sessionContext?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}""".replace('CURRENT', CURRENT)


def run_all(browser, address, name, height=1000):
    "A notebook in JupyterLab, with all its cells being run. Notebooks that were open before are not."
    page = browser.new_page(viewport=dict(width=1500, height=height))
    page.goto(f'{address}/lab/tree/{name}?reset')
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=120_000)
    page.wait_for_function(READY, arg=name, timeout=120_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    return page


CELLS = """() => [...CURRENT.content.model.cells].filter(cell => cell.type === 'code').map(cell => cell.toJSON())
    .filter(cell => cell.source.length)""".replace('CURRENT', CURRENT)
DONE = f"""() => {{        // to the end, or to the first error
    const cells = ({CELLS})();
    return cells.every(cell => cell.execution_count) || cells.some(cell => cell.outputs.some(output => output.output_type === 'error'));
}}"""


def faults_in(page) -> list:
    "Errors and whatever went to stderr in the notebook that is open."
    outputs = [output for cell in page.evaluate(CELLS) for output in cell['outputs']]
    return [output for output in outputs if output['output_type'] == 'error' or output.get('name') == 'stderr']


def close(page):
    "The notebook with its kernel."
    page.evaluate(f"() => {CURRENT}.context.sessionContext.shutdown()")
    page.close()


def test_the_explorer_answers_what_is_typed(browser, lab, tmp_path):
    page = run_all(browser, lab.address, 'explore.ipynb')
    picture = page.locator('img[alt^="the picture with the mask"]').first
    picture.wait_for(timeout=240_000)
    page.wait_for_selector('img[alt^="h_3"]', timeout=60_000)
    before = picture.get_attribute('src')
    page.locator('.widget-text input[type="text"]').first.fill('top star')
    page.wait_for_function("old => document.querySelector('img[alt^=\"the picture with the mask\"]').src !== old", arg=before, timeout=30_000)
    picture.click(position=dict(x=60, y=50))
    page.wait_for_selector('.rrn-pixel >> text=pixel (', timeout=30_000)
    page.wait_for_function("() => document.querySelectorAll('.rrn-pictures img[alt^=without]').length === 2", timeout=30_000)    # two words
    assert faults_in(page) == []
    picture.evaluate("picture => picture.scrollIntoView({ block: 'center' })")
    looks_as_before(page, 'explorer', tmp_path)
    page.locator('.widget-dropdown select').nth(2).select_option('shapes-unc')
    page.wait_for_selector('.rrn-pictures >> text=0 pixels differ', timeout=60_000)
    Image.fromarray(np.full((90, 160, 3), 200, np.uint8)).save(tmp_path/'own.png')
    with page.expect_file_chooser() as chooser: page.locator('.widget-upload').click()
    chooser.value.set_files(tmp_path/'own.png')
    page.wait_for_function("() => document.querySelector('img[alt^=\"the picture with the mask\"]').naturalWidth === 160", timeout=60_000)
    page.locator('.widget-toggle-buttons').wait_for(state='hidden')       # what was proposed for the scene
    assert faults_in(page) == []
    keep(page, 'explorer-own')
    close(page)


def with_parameters(path, **values):
    "Put a cell with parameters behind the notebook's own, as papermill does."
    nbformat.write(parameterize_notebook(load_notebook_node(str(path)), values), path)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize('name, least', {'index.ipynb': 3, '1_paper/04_refine.ipynb': 1, 'train.ipynb': 3}.items())
def test_notebooks_run_without_a_warning(browser, lab, name, least):
    "From the first cell to the last, with at least so many pictures. Of the training, a few steps are taken."
    if not os.environ.get('RRN_SLOW'): pytest.skip('minutes: set RRN_SLOW=1')
    if name == 'train.ipynb': with_parameters(lab.folder/name, iterations=60, folder=str(lab.folder.parent/'runs'))
    page = run_all(browser, lab.address, name)
    page.wait_for_function(DONE, timeout=1_500_000, polling=2000)
    assert faults_in(page) == [] and all(cell['execution_count'] for cell in page.evaluate(CELLS))
    pictures = page.locator('.jp-MainAreaWidget:not(.lm-mod-hidden) .jp-OutputArea-output img')
    assert pictures.count() >= least
    pictures.last.evaluate("picture => picture.scrollIntoView({ block: 'center' })")
    keep(page, name.replace('/', '-'))
    close(page)
