"""rrn.predict: pictures of every kind, what is none, and a predictor without a picture or without words."""
import numpy as np
import pytest
import torch
from PIL import Image
from rrn.common.core import RRNError, seed_everything
from rrn.data.shapes import draw_scene, save_jpeg
from rrn.model import preset, RRN
from rrn.predict import as_rgb, Predictor
from rrn.text import Vocabulary

RGB = draw_scene(7, 3).image


def test_every_kind_of_picture(tmp_path):
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    forms = [Image.fromarray(RGB), RGB, RGB.astype(np.int64), RGB / 255, tensor, torch.from_numpy(RGB / 255).permute(2, 0, 1)]
    assert all(np.array_equal(as_rgb(f), RGB) for f in forms)
    save_jpeg(tmp_path/'a.jpg', RGB)
    assert as_rgb(tmp_path/'a.jpg').shape == as_rgb(str(tmp_path/'a.jpg')).shape == RGB.shape == as_rgb(RGB[..., 0]).shape
    see_through = np.dstack([RGB, RGB[..., :1]])
    assert np.array_equal(as_rgb(see_through), RGB) and np.array_equal(as_rgb(Image.fromarray(see_through)), RGB)
    assert np.array_equal(as_rgb(RGB[..., 0] > 99), as_rgb(Image.fromarray(RGB[..., 0] > 99)))


@pytest.mark.parametrize('bad', [RGB.astype(float), RGB[..., :2], RGB / 255 - .5, np.zeros((0, 4, 3)), '/nowhere/none.jpg'])
def test_what_is_no_picture(bad):
    with pytest.raises(RRNError): as_rgb(bad)


@pytest.fixture(scope='module')
def predictor():
    seed_everything(0)
    vocabulary = Vocabulary.build(['left star', 'the red ring on the right'])
    return Predictor(RRN(preset('small', weights='random'), len(vocabulary)), vocabulary)


def test_no_picture_yet(predictor):
    with pytest.raises(RRNError, match='set_image'): Predictor(predictor.model, predictor.vocabulary).predict('left star')


def test_lists_single_sentences_and_words_never_seen(predictor):
    mask, probability = predictor.set_image(RGB).predict('left star')
    with pytest.warns(UserWarning, match="'purple'"): both = predictor.predict(['left star', 'purple ring'])
    assert mask.shape == RGB.shape[:2] and both[1].unknown == ('purple',) and both[0].unknown == ()
    np.testing.assert_allclose(both[0].probability, probability, atol=1e-6)
    assert predictor.predict([]) == [] and np.array_equal(mask, probability >= .5)


@pytest.mark.parametrize('nothing', ['', ' .,'])
def test_nothing_said(predictor, nothing):
    with pytest.raises(RRNError, match='words'): predictor.set_image(RGB).predict(nothing)


def test_no_run(tmp_path):
    with pytest.raises(RRNError, match='missing'): Predictor.from_run(tmp_path/'nowhere')
