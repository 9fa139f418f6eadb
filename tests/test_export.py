"""rrn export: ONNX equals PyTorch, and what the page's JavaScript does around the networks equals the library."""
import json
import shutil
import subprocess
from pathlib import Path
import numpy as np
import pytest
import torch
from rrn.common.core import RRNError, seed_everything
from rrn.common.pictures import read_image
from rrn.data.shapes import draw_scene
from rrn.experiments.explore import look, recurrence
from rrn.cli import main
from rrn.experiments.export import about, export_onnx, export_page, OnnxModel, RUNTIME_FILES
from rrn.experiments.package import boxes, scene_sentences
from rrn.image import fit, image_tensor, place_image, unplace
from rrn import refine
from rrn.model import preset, RRN
from rrn.predict import Predictor
from rrn.refine import Update, update_function
from rrn.text import split_words, Vocabulary
from models_made import SMALL, untrained

REPO = Path(__file__).resolve().parents[1]
pytest.importorskip('onnxscript', reason="the extra is not installed: pip install 'rrn[export]'")
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::FutureWarning', 'ignore::DeprecationWarning')


# ---------------------------------------------------------------- ONNX

@pytest.mark.parametrize('how', [dict(), dict(normalise='gates,cell', peepholes=True, pyramid='C4,C2'),
                                 dict(update='released_lstm', start='zero', upsample='probability', mapping='tf', blind=True)], ids=str)
def test_onnx_is_pytorch(tmp_path, how):
    "Of each kind of recurrence: probabilities and states, for one word and for twenty, to 1e-4."
    pytest.importorskip('onnxruntime')
    seed_everything(0)
    words = Vocabulary.build(['left red star', 'the ring'])
    predictor = Predictor(RRN(preset('small', **SMALL, **how), len(words)), words)
    folder = export_onnx(predictor, tmp_path/'onnx')
    onnx, image, size = OnnxModel(folder), draw_scene(7, 3).image, (48, 48)
    predictor.set_image(image)
    maps = onnx.features(image_tensor(image, size))
    for sentence in ('ring', 'the left red star ' * 5):
        numbers = [n for n in words.encode(sentence) if n]
        found = onnx.ask(maps, numbers)
        with torch.inference_mode():
            states, gates = recurrence(predictor, sentence)
            p = predictor.probabilities([sentence])
        np.testing.assert_allclose(found['steps'][-1:], p, atol=1e-4)
        np.testing.assert_allclose(found['states'], torch.cat(states), atol=1e-4)
        opened = [g.mean(1)[0].numpy() for step in gates for g in step.values()]
        if opened: np.testing.assert_allclose(found['gates'], opened, atol=1e-4)
        assert len(found.get('gates', [])) == len(opened) == len(json.loads((folder/'model.json').read_text())['gates'])
    with torch.inference_mode():
        nothing = predictor.model.head(predictor.maps, torch.zeros(1, 20, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    np.testing.assert_allclose(onnx.ask(maps, [])['small'][-1:], nothing.sigmoid()[:, 0], atol=1e-4)
    for path in folder.iterdir(): assert str(REPO).encode() not in path.read_bytes() and b'site-packages' not in path.read_bytes()


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    words = Vocabulary.build(['star'])
    with pytest.raises(RRNError, match='only models of system rrn'):
        export_onnx(Predictor(RRN(preset('small', **SMALL, system='rmi', pyramid=''), len(words)), words), tmp_path/'a')
    released = Vocabulary(words.words, 'released')
    predictor = Predictor(RRN(preset('small', **SMALL), len(words)), released)
    with pytest.raises(RRNError, match='tokenizer'): export_page(predictor, tmp_path/'b')
    with pytest.raises(RRNError, match='dist/ort'): export_page(Predictor(predictor.model, words), tmp_path/'c', runtime=str(tmp_path))
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RRNError, match='Install Node.js'): export_page(Predictor(predictor.model, words), tmp_path/'c')
    with pytest.raises(RRNError, match="two models are called 'model'"): export_page([Predictor(predictor.model, words)] * 2, tmp_path/'c')
    with pytest.raises(RRNError, match="'_a' cannot be the name"): export_page(untrained(words, tmp_path/'_a'), tmp_path/'c')
    assert not list(tmp_path.glob('[abc]'))


def test_an_update_function_that_onnx_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr('rrn.refine.UPDATES', dict(refine.UPDATES))

    @update_function('moody')
    class Moody(Update):
        "What it does depends on what it sees."
        def forward(self, x, h, state=None): return (x + h if h.mean() > 0 else x - h), None

    predictor = untrained(Vocabulary.build(['star']), tmp_path/'a-run', update='moody')
    with pytest.raises(RRNError, match=r"a-run: its network cannot be written as ONNX \(.*update function 'moody'.*no branch"):
        export_onnx(predictor, tmp_path/'onnx')
    assert not (tmp_path/'onnx').exists()


def test_several_models_have_a_folder_each(tmp_path, monkeypatch, capsys):
    "`rrn export ONE TWO`; one by default."
    there = {name: untrained(Vocabulary.build([name]), tmp_path/name) for name in ('one', 'two')}
    monkeypatch.setattr('rrn.experiments.export.open_predictor', lambda run, device: there[run or 'one'])
    monkeypatch.chdir(tmp_path)
    assert not main(['export', 'one', 'two', '--out', 'both']) and not main(['export'])
    for name, folder in (('one', 'both/one'), ('two', 'both/two'), ('one', 'onnx')):
        assert json.loads(Path(folder, 'model.json').read_text()) == about(there[name])
    assert main(['export', 'one', 'one', '--out', 'again']) == 1 and "two models are called 'one'" in capsys.readouterr().err and not Path('again').exists()


# ---------------------------------------------------------------- the page's JavaScript

def ask(**asked):
    "What rrn.js says, by Node.js."
    if not shutil.which('node'): pytest.skip('node is not installed')
    script = asked.get('page') or REPO/'rrn'/'assets'/'web'
    done = subprocess.run(['node', REPO/'tests'/'look.mjs', f'{script}/rrn.js'], input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sentences_are_cut_alike():
    typed = ["The man's LEFT, zebra!", 'man\u2019s \u2018dog\u2019', "''a'' b' 'c", 'ﬁre ½ Ⅷ x²', 'ÉCOLE naïve straße İstanbul ΣΑΣ', '', '?! .,', 'a\tb\nc\u00a0d\u3000e',
             '日本 の 猫', 'e\u0301te\u0301', 'under_score co-op 3.5', '🦓 left 👍🏽 one', "o'clock rock'n'roll", 'नमस्ते دنیا', '\u200bzero\u200dwidth', 'a' * 50]
    assert ask(sentences=typed)['words'] == [split_words(sentence) for sentence in typed]


SIZES = [(90, 127), (127, 90), (1, 1), (1, 300), (300, 7), (128, 128), (500, 333), (64, 63), (33, 128)]


def test_pictures_are_placed_alike():
    "To a level of 255 here and there: PyTorch rounds its weights as well."
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SIZES]
    told = [dict(data=p.ravel().tolist(), height=p.shape[0], width=p.shape[1]) for p in pictures]
    found = ask(pictures=told, size=128, sizes=SIZES)
    for p, placed, place in zip(pictures, found['placed'], found['places']):
        ours = fit(*p.shape[:2], (128, 128))
        assert [place[k] for k in ('h', 'w', 'top', 'left')] == [ours.new_height, ours.new_width, ours.top, ours.left]
        off = np.abs(np.reshape(placed, (3, 128, 128)) - place_image(p, ours).transpose(2, 0, 1))
        assert off.max() <= 1 and (off > 0).mean() < .1


def test_maps_are_taken_back_alike():
    maps = np.random.default_rng(1).random((len(SIZES), 128, 128), dtype=np.float32)
    told = [dict(map=m.ravel().tolist(), height=h, width=w) for m, (h, w) in zip(maps, SIZES)]
    for m, back, (h, w) in zip(maps, ask(maps=told, size=128)['unplaced'], SIZES):
        np.testing.assert_allclose(np.reshape(back, (h, w)), unplace(torch.from_numpy(m), fit(h, w, (128, 128))), atol=1e-5)


# ---------------------------------------------------------------- the page

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Name -> predictor: the library's, and one of another kind, size and vocabulary."
    folder = tmp_path_factory.mktemp('runs')/'untrained'
    return {'shapes-unc': Predictor.from_pretrained('shapes-unc', device='cpu'), 'untrained': untrained(Vocabulary.build(['the left star']), folder)}


@pytest.fixture(scope='module')
def page(models, tmp_path_factory):
    try: return export_page(models.values(), tmp_path_factory.mktemp('site')/'page')
    except RRNError as e:
        if 'npm' in str(e): pytest.skip(str(e))
        raise


def test_the_page_is_all_there(page, models):
    "What it names is in its folder, and nothing is fetched from elsewhere."
    names = {path.name for path in page.iterdir()}
    assert {'index.html', 'page.js', 'rrn.js', 'models.json', 'scenes.json', *RUNTIME_FILES} <= names
    assert json.loads((page/'models.json').read_text()) == list(models)
    for name in models: assert {path.name for path in (page/'models'/name).iterdir()} == {'model.json', 'cnn.onnx', 'head.onnx'}
    for scene in json.loads((page/'scenes.json').read_text()): assert scene['picture'] in names and scene['sentences']
    for name in ('index.html', 'page.js', 'rrn.js'): assert 'http' not in (page/name).read_text()


@pytest.mark.parametrize('name', ['shapes-unc', 'untrained'])
def test_the_page_answers_as_the_library(page, models, name):
    "Masks to an IoU of 0.99, and everything that was inside; about scenes, and about a large picture that is none."
    predictor = models[name]
    box, large = boxes()['shapes-unc'], np.kron(draw_scene(7, 5).image, np.ones((3, 3, 1), np.uint8))
    pictures = [(read_image(box/'scene.jpg'), s) for s in scene_sentences(box)] + [(draw_scene(7, 3).image, 'left purplish thing'), (large, 'star')]
    told = [dict(data=p.ravel().tolist(), height=p.shape[0], width=p.shape[1], sentence=s) for p, s in pictures]
    for (picture, sentence), theirs in zip(pictures, ask(page=str(page), model=name, questions=told)['looks'], strict=True):
        ours, shape = look(predictor.set_image(picture), sentence), picture.shape[:2]
        mask = np.reshape(theirs['mask'], shape).astype(bool)
        assert (mask & ours.answer.mask).sum() >= .99 * (mask | ours.answer.mask).sum()
        assert theirs['unknown'] == list(ours.answer.unknown)
        near = dict(atol=.02)
        np.testing.assert_allclose(np.reshape(theirs['steps'], (-1, *shape)), ours.steps, **near)
        np.testing.assert_allclose(np.reshape(theirs['hidden'], (-1, *shape)), ours.hidden, **near)
        opened = [m for _, m in sorted(((t, 'ifo'.index(g)), m) for g, maps in ours.gates.items() for t, m in maps.items())]
        np.testing.assert_allclose(np.reshape(theirs['gates'], (-1, *shape)), np.reshape(opened, (-1, *shape)), **near)
        np.testing.assert_allclose(np.reshape(theirs['others'], (-1, *shape)), np.reshape([o.probability for o in ours.others], (-1, *shape)), **near)
