"""The page on own data, command by command, on a few pictures that are drawn here."""
import contextlib, importlib, io, json, os, re, shlex
from pathlib import Path
import forked
import numpy as np
import pytest
from PIL import Image, ImageDraw
from rrn.cli import main
from rrn.common.core import RRNError
from rrn.common.pretrained import find_weights

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO/'docs'/'own-data.md').read_text()
SHORT = dict(iterations=4, image_size=64, D_I=8, D_S=8, D_Q=8, embed_dim=8, warmup=0)      # what a test adds to a training
COLOURS = {'zebra': (230, 230, 230), 'lion': (200, 150, 40)}

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')


def picture(path, rng) -> list:
    "Draw a picture of two zebras and a lion; (category, polygon) of each."
    image = Image.fromarray(rng.integers(60, 110, (90, 127, 3), dtype=np.uint8))
    things = []
    for x, name in zip((8, 48, 88), rng.permutation(['zebra', 'zebra', 'lion'])):
        y = int(rng.integers(5, 50))
        polygon = [x, y, x + 30, y + 4, x + 26, y + 32, x + 2, y + 28]
        ImageDraw.Draw(image).polygon(polygon, fill=COLOURS[name])
        things.append((str(name), polygon))
    image.save(path)
    return things


def own_pictures(folder, n):
    "Pictures, annotations and a new photograph, as the page has them."
    rng, names = np.random.default_rng(n), list(COLOURS)
    (folder/'photos').mkdir(parents=True)
    drawn = [picture(folder/'photos'/f'{i}.jpg', rng) for i in range(n)]
    annotations = [dict(image_id=i, category_id=names.index(name), segmentation=[polygon]) for i, things in enumerate(drawn) for name, polygon in things]
    data = dict(images=[dict(id=i, file_name=f'{i}.jpg', height=90, width=127) for i in range(n)],
                annotations=[a | dict(id=i) for i, a in enumerate(annotations, 1)], categories=[dict(id=i, name=name) for i, name in enumerate(names)])
    (folder/'labels.json').write_text(json.dumps(data))
    picture(folder/'new.jpg', rng)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A folder that looks like the clone's, with six pictures in data/."
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs').symlink_to(REPO/'nbs')
    own_pictures(tmp_path/'data', 6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> list:
    "The page's commands, each as a list of words."
    return [shlex.split(line) for line in re.findall(r'^    (\S.*)$', PAGE, re.M)]


def cnn() -> dict:
    "Random weights where the extra of the page is not installed."
    try: find_weights('tf_efficientnet_lite0', '')
    except RRNError: return dict(weights='random')
    return {}


def run(words):
    "Run a command of the page in this process; trainings are shortened."
    if words[0] == 'papermill':
        from papermill.cli import papermill
        more = [w for k, v in (SHORT | cnn()).items() for w in ('-p', k, str(v))] if 'train' in words[1] else []
        return papermill([*words[1:], *more, '--no-progress-bar'], standalone_mode=False)
    assert words[0] == 'rrn' and main(words[1:]) == 0


def block(kind) -> str:
    "The page's block of that language."
    return re.search(f'```{kind}\n(.*?)```', PAGE, re.S)[1]


def test_the_page_from_its_first_command_to_a_mask(clone):
    convert, doctor, train, train_again, evaluate, ask, convert_said = commands()
    for words in (convert, doctor, train, evaluate): run(words)
    metrics = json.loads((clone/'runs'/'zebras'/'metrics.json').read_text())
    assert {'zebras val', 'zebras val (shuffled)', 'zebras val (blind)', 'zebras test'} <= set(metrics)
    run(ask)
    asked = Path('data/mask.png').read_bytes()
    told = io.StringIO()
    with contextlib.redirect_stdout(told): exec(block('python'), {})
    with Image.open('data/mask.png') as mask, Image.open(io.BytesIO(asked)) as same:
        assert mask.size == (127, 90) and (np.asarray(mask) == (np.asarray(same) > 0)).all()
    assert 'never saw: ()' in told.getvalue()
    Path('data/said.csv').write_text(block('text'))
    run(convert_said)
    a_set_without_a_split_to_evaluate_on('zebras')
    settings = [f'{k}={v}' for k, v in (SHORT | cnn()).items()]
    done = forked.run(['-m', 'rrn.cli', *train_again[1:], *settings], env=os.environ | {'PYTHONPATH': str(REPO)})
    assert done.returncode == 0, done.stderr
    assert 'zebras val: ' in done.stderr and json.loads(done.stdout[done.stdout.index('{'):])['images'] == 1
    assert 'zebras val' in json.loads((clone/'runs'/'zebras-2'/'metrics.json').read_text())


def a_set_without_a_split_to_evaluate_on(run):
    "Asked for nothing, evaluation leaves out the split of the training, so here it has none."
    from rrn.data.convert import convert
    from rrn.experiments.jobs import open_evaluation
    convert('data/labels.json', 'data/photos', 'data/all', fractions=(1., 0., 0.), progress=False)
    with pytest.raises(RRNError, match='splits=train'): open_evaluation(run=run, data_root='data/all')
    assert open_evaluation(run=run, data_root='data/all', splits='train').splits == ['train']


def test_the_page_is_found():
    assert 'docs/own-data.md' in (REPO/'README.md').read_text() and 'docs/own-data.md' in (REPO/'data'/'README.md').read_text()


def test_scores_say_which_split_they_are_of(clone):
    from rrn.data.convert import convert
    from rrn.experiments.jobs import Job
    Path('data/said.csv').write_text('annotation_id,sentence,split\n1,a zebra,train\n4,a lion,test\n')
    convert('data/labels.json', 'data/photos', 'data/two', 'data/said.csv', progress=False)
    job = Job(None, importlib.import_module('rrn.data.convert').open_own('data/two'), None, None, None, {})
    job.config = type('Config', (), dict(split='train'))
    assert job.scored_on() == 'There is no split val. Scores are those of test. own test: 1 expressions about 1 pictures.'
