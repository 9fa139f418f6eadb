"""The comparison of screenshots can fail: a blank page, and another page, are no page that is expected."""
import pytest
from PIL import Image, ImageDraw
from screens import differing_bits, LIMIT, REFERENCES
import imagehash


@pytest.mark.parametrize('colour', ['white', 'black', '#14181e'])
@pytest.mark.parametrize('name', REFERENCES)
def test_a_blank_page_is_found(name, colour, tmp_path):
    Image.new('RGB', (1300, 900), colour).save(tmp_path/'blank.png')
    assert differing_bits(tmp_path/'blank.png', name) > LIMIT


@pytest.mark.parametrize('name', REFERENCES)
def test_an_error_in_place_of_a_page_is_found(name, tmp_path):
    picture = Image.new('RGB', (1300, 900), 'white')
    ImageDraw.Draw(picture).text((20, 20), 'Error response. Error code: 404', fill='black', font_size=32)
    picture.save(tmp_path/'error.png')
    assert differing_bits(tmp_path/'error.png', name) > LIMIT


def test_no_page_is_taken_for_another():
    hashes = {name: imagehash.hex_to_hash(text) for name, text in REFERENCES.items()}
    pairs = [(a, b) for a in hashes for b in hashes if a < b]
    assert min(hashes[a] - hashes[b] for a, b in pairs) > LIMIT
