"""Looking into an answer: what is shown is what the model computed, for every kind of model; the widgets, without a browser."""
import io
from datetime import datetime
import numpy as np
import pytest
import torch
from PIL import Image
from rrn.common.core import RRNError, seed_everything
from rrn.common.viz import grid
from rrn.data.shapes import draw_scene
from rrn.experiments import explore, explorer
from rrn.experiments.explore import at_pixel, for_the_screen, look, page_of_pictures, recurrence, table_of_steps, without_words
from rrn.model import preset, RRN
from rrn.predict import Predictor
from rrn.text import Vocabulary

TINY = dict(weights='random', image_size=64, D_I=12, D_S=12, D_Q=12, embed_dim=12)
VOCABULARY = Vocabulary.build(['the red ring on the right', 'left star', 'heart'])
RGB = draw_scene(7, 3).image[:90]                                  # not square: the network sees it with margins


def new(**how):
    seed_everything(how.pop('of', 0))
    return Predictor(RRN(preset('small', **TINY, **how), len(VOCABULARY)), VOCABULARY)


KINDS = {'lstm': (dict(), 'ifo'), 'normalised, with peepholes': (dict(normalise='gates,cell', peepholes=True), 'ifo'),
         'released': (dict(update='released_lstm', start='zero'), 'ifo'), 'rnn': (dict(update='rnn'), ''), 'plain': (dict(update='plain'), ''),
         'no pyramid': (dict(pyramid=''), ''), 'rmi': (dict(system='rmi', pyramid=''), '')}


@pytest.mark.parametrize('how, letters', KINDS.values(), ids=KINDS)
def test_the_last_step_is_the_answer(how, letters):
    predictor = new(**how).set_image(RGB)
    plain = predictor.predict('left star')
    seen = look(predictor, 'left star')
    np.testing.assert_allclose(seen.answer.probability, plain.probability, atol=1e-6)
    np.testing.assert_allclose(seen.steps[-1], plain.probability, atol=1e-6)
    maps = [*seen.steps, *seen.hidden, *(m for steps in seen.gates.values() for m in steps.values())]
    assert all(m.shape == RGB.shape[:2] and 0 <= m.min() and m.max() <= 1 for m in maps)
    assert ''.join(seen.gates) == letters and len(seen.names) == len(seen.steps) == len(seen.hidden)
    assert grid(table_of_steps(seen, RGB)) and list(at_pixel(seen, 3, 2).index) == seen.names


def test_names_say_what_was_read():
    assert look(new().set_image(RGB), 'heart').names == ['h_0', 'h_1: C5', 'h_2: C4', 'h_3: C3']
    assert look(new(start='zero', pyramid='C4').set_image(RGB), 'heart').names == ['h_0', 'h_1: q', 'h_2: C4']


@torch.inference_mode()
def test_gates_are_those_of_the_step():
    "Put into equation (2), the gates that are shown give the next cell and state."
    predictor = new().set_image(RGB)
    states, gates = recurrence(predictor, 'left star')
    head = predictor.model.head
    update, (z, *_) = head.refine.updates[0], head.refine.projected(head.refine.inputs(predictor.maps, states[0].shape[-2:]))
    h, c = update(z, states[0])
    torch.testing.assert_close(h, states[1])
    torch.testing.assert_close(gates[0]['o'] * torch.tanh(c), states[1])
    assert list(gates[0]) == ['i', 'o'], 'at the first step there is no cell to forget'
    assert not any(u._forward_pre_hooks for u in head.refine.updates), 'nobody watches any more'


def test_a_word_less():
    predictor = new().set_image(RGB)
    seen = look(predictor, 'the red  heart!')
    assert seen.words == ['the', 'red', 'heart']
    for words, other in zip(('red heart', 'the heart', 'the red'), seen.others):
        np.testing.assert_allclose(other.probability, predictor.predict(words).probability, atol=1e-6)
    assert [title.split(':')[0] for title, _ in without_words(seen, RGB)] == ['without "the"', 'without "red"', 'without "heart"']
    assert look(predictor, 'heart').others == []


def test_words_never_seen_are_named_once_and_not_warned_of(recwarn):
    assert look(new().set_image(RGB), 'left zebra').answer.unknown == ('zebra',) and not recwarn.list


def test_one_pixel():
    seen = look(new().set_image(RGB), 'left star')
    there = at_pixel(seen, 100, 80)
    assert there.p.tolist() == [float(p) for p in seen.steps[:, 80, 100]]
    assert there.loc['h_2: C4', 'f'] == seen.gates['f'][2][80, 100] and np.isnan(there.loc['h_1: C5', 'f'])
    for x, y in ((RGB.shape[1], 0), (0, 90), (-1, 0)):
        with pytest.raises(RRNError, match='outside'): at_pixel(seen, x, y)


def test_what_is_typed_is_text():
    assert '<img src=x' not in page_of_pictures([[('<img src=x>', RGB)]], '<script>')


def test_large_pictures_are_made_smaller():
    assert for_the_screen(Image.new('RGB', (1000, 10))).shape == (3, 320, 3) and for_the_screen(RGB).shape == RGB.shape
    with pytest.raises(RRNError): for_the_screen('/nowhere.jpg')


# ---- the widgets -----------------------------------------------------------------------------------------------------

@pytest.fixture
def trained(monkeypatch):
    "Two models to choose from."
    there = {'one': new(), 'two': new(of=1, update='rnn')}
    monkeypatch.setattr(explorer, 'models', lambda: list(there))
    monkeypatch.setattr(explorer, 'open_model', there.__getitem__)
    return there


def shown(view): return view.picture.url, view.inside.value


def test_typing_changes_what_is_shown(trained):
    e = explorer.Explorer()
    assert e.sentence.value == e.others.options[0]
    before = shown(e.views[0])
    e.others.value = e.others.options[1]
    assert e.sentence.value == e.others.options[1] and shown(e.views[0])[1] != before[1]
    e.sentence.value = 'left zebra'
    assert 'never seen: zebra' in e.said.value and e.others.value is None
    e.sentence.value = ' .'
    assert 'has no words' in e.said.value
    e.choice.value = 5
    assert e.sentence.value in explore.scene_and_sentences(5)[1] and 'words' not in e.said.value


def test_a_click_shows_its_pixel(trained):
    e = explorer.Explorer()
    assert e.views[0].pixel.value == ''
    e.views[0].picture.at = [1., 0.]
    assert f'pixel ({e.image.shape[1] - 1}, 0)' in e.views[0].pixel.value and 'h_3: C3' in e.views[0].pixel.value
    before = e.views[0].pixel.value
    e.sentence.value = 'left star'
    assert e.views[0].pixel.value != before, 'it follows the sentence'


def test_two_models_side_by_side(trained):
    e = explorer.Explorer()
    assert e.between.value == '' and shown(e.views[1]) == ('', '')
    e.views[1].model.value = 'two'
    assert 'pixels differ' in e.between.value and '>i_1' in e.views[0].inside.value and '>i_1' not in e.views[1].inside.value
    e.sentence.value = 'left zebra'
    assert 'never seen by one: zebra; never seen by two: zebra' in e.said.value
    e.views[1].model.value = None
    assert e.between.value == '' and shown(e.views[1]) == ('', '')


def test_two_explorers_of_one_model_have_a_picture_each(trained):
    one, two = explorer.Explorer(scene=1), explorer.Explorer(scene=2)
    one.sentence.value = 'left star'
    np.testing.assert_allclose(one.views[0].seen.steps[-1], new().set_image(one.image).predict('left star').probability, atol=1e-6)


def uploaded(name, content): return (dict(name=name, type='', size=len(content), content=memoryview(content), last_modified=datetime.now()),)


def test_a_picture_of_ones_own(trained):
    e, png = explorer.Explorer(), io.BytesIO()
    Image.new('RGB', (600, 900), (200, 30, 30)).save(png, 'PNG')
    e.choice.value = explorer.OWN_PICTURE
    assert 'upload one' in e.said.value
    e.upload.value = uploaded('a.png', png.getvalue())
    assert e.image.shape == (320, 213, 3) and e.views[0].seen.answer.mask.shape == (320, 213)
    e.choice.value = 1
    for name, content in (('b.png', b'none'), ('c.png', png.getvalue()[:60])):
        e.upload.value = uploaded(name, content)
        assert 'picture' in e.said.value and e.choice.value == explorer.OWN_PICTURE
