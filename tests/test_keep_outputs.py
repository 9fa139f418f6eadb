"""tools/keep_outputs.py: what is committed of an executed notebook."""
import base64
import importlib.util
import io
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('keep_outputs', REPO/'tools'/'keep_outputs.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def png() -> str:
    "A picture with many colours, as base64."
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(out, format='png')
    return base64.b64encode(out.getvalue()).decode()


def stream(text, name='stdout'): return dict(output_type='stream', name=name, text=[text])


def display(**data): return dict(output_type='display_data', metadata={'x': 1}, data={k.replace('_', '/'): v for k, v in data.items()})


def kept(*outputs, source='f()', ran='f()'):
    "What is kept of the outputs of one cell."
    book = dict(cells=[dict(cell_type='markdown', id='m', source='text'), dict(cell_type='code', id='a', source=source, outputs=[])])
    tool.keep(dict(cells=[dict(cell_type='code', id='a', source=[ran], outputs=list(outputs))]), book)
    return book['cells'][1]['outputs']


def test_progress_and_stderr_are_left_out():
    bar = 'training: 100%|█████████| 31/31 [00:05<00:00,  5.47it/s]'
    assert kept(display(text_plain=[bar]), stream('a warning', 'stderr'), stream('61.4 % | of what\n')) == [stream('61.4 % | of what\n')]
    table = display(text_plain=['  share\n0  50 %|'], text_html=['<table>'])
    assert kept(table) == [table | dict(metadata={})], 'a table is no bar'


def test_widgets_live_as_long_as_their_kernel():
    widget = dict(output_type='execute_result', metadata={}, data={'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': ['VBox()']})
    assert kept(widget, stream('said\n')) == [stream('said\n')]


def test_pictures_become_smaller():
    made, = kept(display(image_png=png(), text_plain=['<Picture>']))
    picture = Image.open(io.BytesIO(base64.b64decode(made['data']['image/png'])))
    assert picture.size == (90, 60) and len(made['data']['image/png']) < len(png()) / 2


def test_places_of_a_machine():
    assert kept(stream('wrote /tmp/tmpabc_1/x/y\n')) == [stream('wrote x/y\n')]
    for place in ('/home/somebody/x', '/root/x', '/tmp/x'):
        with pytest.raises(SystemExit, match='a place of this machine'): kept(stream(f'wrote {place}'))


def test_only_what_was_executed():
    with pytest.raises(SystemExit, match='was not executed as it stands'): kept(source='g()')
