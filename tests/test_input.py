"""Small files that ask for hours or gigabytes; pictures as people have them; embedded scenes that are kept.
Each bomb is read in a process with little memory and an alarm."""
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import traceback
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
import bombs
from rrn.data import shapes
from rrn.common.core import derived_rng, read_json, RRNError, seed_everything
from rrn.common.pictures import read_image
from rrn.model import preset, RRN
from rrn.predict import as_rgb, Predictor
from rrn.common.untrusted import safe_load
from rrn.data.masks import CocoMask
from rrn.data.refer import read_instances, read_refer
from rrn.data.datasets import open_dataset
from rrn.data.referit import MatMask, read_table
from rrn.data.shapes import describe, draw_scene, ensure, KINDS, stamp_file, VERSION
from rrn.text import Vocabulary
from rrn.data.tf_checkpoint import block_entries, decompress_snappy
from rrn.data.weights import read_checkpoint
from test_fuzz import INSTANCES, refer_layout
from test_weights import write_v2

MORE, PATIENCE = 1 << 30, 60          # bytes that a process may claim, seconds; a refusal takes neither


def _in_process(read, end):
    "Send what came of `read` and by how many bytes the process grew."
    claimed = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (claimed + MORE, claimed + MORE))
    signal.alarm(PATIENCE)
    before, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 'read'
    try: read()
    except RRNError as e: what = 'MemoryError' if isinstance(e.__cause__ or e.__context__, MemoryError) else f'refused: {e}'
    except BaseException: what = traceback.format_exc()[-1500:]
    end.send((what, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10))
    os._exit(0)


def cost(read) -> tuple:
    "('read', 'refused: why' or a traceback, bytes by which a process grew that did it)."
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=_in_process, args=(read, there))
    process.start(); there.close()
    try: return here.recv()
    except EOFError: return f'the process ended with {process.exitcode}', 0
    finally: process.join()


def refuses(read, content, times=64, free=48 << 20, harmless=False):
    "Whether `read` refuses `content` (or reads it, if `harmless`), with no more memory than that many times its size and a little."
    what, grown = cost(read)
    assert what.startswith('refused') or harmless and what == 'read', what
    assert grown < times * len(content) + free, f'{grown:,} bytes for {len(content):,}'
    return what


@pytest.mark.parametrize('name', [*bombs.PICKLES, *bombs.PLAIN_PICKLES])
def test_a_pickle_cannot_make_more_than_its_allowance(tmp_path, name):
    content = (bombs.PICKLES | bombs.PLAIN_PICKLES)[name]()
    (tmp_path/'refs.p').write_bytes(content)
    refuses(lambda: safe_load(tmp_path/'refs.p'), content, harmless=name in bombs.PLAIN_PICKLES)


def test_the_quick_way_runs_what_was_looked_at(tmp_path):
    "A frame ends inside a number; of a file, the C interpreter skips the rest of the frame, and would take a text for instructions."
    (tmp_path/'refs.p').write_bytes(b'\x80\4\x95' + (3).to_bytes(8, 'little') + b'J\1\2' + b'..' + b'U\2\x8f.' + b'.')
    assert safe_load(tmp_path/'refs.p') == '\x8f.'


def test_an_honest_pickle_spends_a_part_of_its_allowance(tmp_path):
    said = [dict(sent_id=n, sent=f'the zebra number {n}', raw=f'Zebra, {n}.', tokens=['the', 'zebra', f'{n}']) for n in range(20_000)]
    refs = [bombs.FEW | dict(ref_id=n, sentences=said[n:n + 3]) for n in range(0, len(said), 3)]
    for protocol in range(6):
        (tmp_path/'refs.p').write_bytes(pickle.dumps(refs, protocol))
        assert safe_load(tmp_path/'refs.p') == refs


@pytest.mark.parametrize('name', bombs.REFERENCES)
def test_references_do_not_multiply(tmp_path, name):
    refer_layout(tmp_path)
    content = bombs.REFERENCES[name]()
    (tmp_path/'refcoco'/'refs(unc).p').write_bytes(content)
    refuses(lambda: read_refer(tmp_path, 'refcoco', 'unc'), content)


def test_annotations_whose_numbers_collide(tmp_path):
    content = bombs.colliding(INSTANCES['annotations'][0])
    (tmp_path/'instances.json').write_bytes(content)
    refuses(lambda: read_instances(tmp_path/'instances.json'), content)


def test_annotations_whose_pairs_of_numbers_collide(tmp_path):
    pairs = bombs.pairs(500)
    assert len(set(map(hash, pairs))) == 1
    entries = [INSTANCES['annotations'][0] | dict(id=n, image_id=a, category_id=b) for n, (a, b) in enumerate(pairs)]
    (tmp_path/'instances.json').write_text(json.dumps(dict(images=[], categories=[], annotations=entries)))
    assert len({hash(key) for key in read_instances(tmp_path/'instances.json').same}) == 500


@pytest.mark.parametrize('name', bombs.SEGMENTATIONS)
def test_an_outline_costs_no_more_than_a_picture(name):
    segmentation = bombs.SEGMENTATIONS[name]()
    refuses(CocoMask(segmentation, 37, 64).decode, str(segmentation))


@pytest.mark.parametrize('name', bombs.PICTURES)
def test_a_picture_is_refused_before_it_is_decoded(tmp_path, name):
    content = bombs.PICTURES[name]()
    assert len(content) < 400_000
    (tmp_path/'a.jpg').write_bytes(content)
    assert 'a.jpg' in refuses(lambda: read_image(tmp_path/'a.jpg'), content, times=1, free=30 << 20)


@pytest.mark.parametrize('name', bombs.CHUNKS)
def test_chunks_beside_the_pixels_take_no_room(tmp_path, name):
    content = bombs.CHUNKS[name]()
    (tmp_path/'a.png').write_bytes(content)
    refuses(lambda: read_image(tmp_path/'a.png'), content, free=30 << 20, harmless=True)


def test_the_largest_picture_is_decoded_without_copies(tmp_path):
    "16 million pixels: 64 MB inside Pillow, 48 MB as an array."
    (tmp_path/'a.png').write_bytes(bombs.png(4000, 4000))
    what, grown = cost(lambda: read_image(tmp_path/'a.png'))
    assert what == 'read' and grown < 180 << 20


@pytest.mark.parametrize('name', bombs.MATRICES)
def test_a_mask_unpacks_to_no_more_than_a_mask(tmp_path, name):
    content = bombs.MATRICES[name]()
    (tmp_path/'7_1.mat').write_bytes(content)
    refuses(MatMask(tmp_path/'7_1.mat', 4000, 4000).decode, content, times=100, free=150 << 20)


@pytest.mark.parametrize('name', bombs.NPY)
def test_arrays_of_a_pickle_are_paid_for(tmp_path, name):
    content = bombs.NPY[name]()
    (tmp_path/'m.npy').write_bytes(content)
    refuses(lambda: read_checkpoint(tmp_path/'m.npy'), content, free=80 << 20)


def test_a_packed_block_copies_no_more_than_it_needs():
    content = bombs.snappy()
    assert cost(lambda: decompress_snappy(content))[0] == 'read'


@pytest.mark.parametrize('claims', [64 << 20, 1 << 32, 1 << 60])
def test_a_packed_block_gets_no_more_room_than_it_can_fill(claims):
    content = bytes([*((claims >> shift & 127) | 128 for shift in range(0, 63, 7)), 0]) + bytes(1 << 20)
    assert 'claims to hold' in refuses(lambda: decompress_snappy(content), content, times=1, free=8 << 20)


def test_keys_of_a_table_do_not_grow():
    content = bombs.long_keys()
    refuses(lambda: dict(block_entries(content)), content)


def test_arrays_of_a_checkpoint_do_not_share_their_bytes(tmp_path):
    again = lambda e: e.update({b'n%d' % i: e[b'a'] for i in range(3000)})
    write_v2(tmp_path/'m', {'a': np.zeros(1 << 19, np.float32)}, change=again)
    refuses(lambda: read_checkpoint(tmp_path/'m'), bytes(2 << 20))


# ---- photographs as people have them ---------------------------------------------------------------------------------------

RAMP = np.arange(6 * 4, dtype=np.uint8).reshape(4, 6) * 10


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_a_photograph_lies_as_its_exif_data_say(tmp_path, orientation, kind):
    exif = Image.Exif(); exif[0x0112] = orientation
    colours = np.stack([RAMP, RAMP, 255 - RAMP], 2).repeat(16, 0).repeat(16, 1)
    Image.fromarray(colours).save(tmp_path/'a', kind, exif=exif)
    with Image.open(tmp_path/'a') as image: stored, seen = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(as_rgb(tmp_path/'a'), seen) and np.array_equal(as_rgb(Image.open(tmp_path/'a')), seen)
    assert np.array_equal(read_image(tmp_path/'a'), stored)                         # data sets: as COCO's masks lie
    assert (orientation == 1) == np.array_equal(seen, stored)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_exif_data_that_nobody_can_read_say_nothing(tmp_path):
    Image.fromarray(RAMP).save(tmp_path/'a.jpg', exif=b'Exif\0\0MM\0*' + b'\xff' * 40)
    assert as_rgb(tmp_path/'a.jpg').shape == (4, 6, 3)


def test_grey_of_sixteen_bits_is_scaled(tmp_path):
    wide = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(wide).save(tmp_path/'a.png')
    opened = Image.open(tmp_path/'a.png')
    for found in (read_image(tmp_path/'a.png'), as_rgb(tmp_path/'a.png'), as_rgb(opened), as_rgb(Image.fromarray(wide))):
        assert np.array_equal(found, np.stack([wide >> 8] * 3, 2)) and found.max() == 255 and found.min() == 0


def test_true_is_white():
    for image in (RAMP > 99, np.stack([RAMP > 99] * 3, 2), torch.from_numpy(RAMP > 99)):
        assert set(np.unique(as_rgb(image))) == {0, 255} and np.array_equal(as_rgb(image)[..., 0] > 0, RAMP > 99)


def test_alpha_is_dropped_from_files_and_arrays_alike(tmp_path):
    rgba = np.stack([RAMP, RAMP + 1, RAMP + 2, 230 - RAMP], 2)
    Image.fromarray(rgba).save(tmp_path/'a.png')
    for image in (tmp_path/'a.png', Image.fromarray(rgba), rgba, rgba / 255, torch.from_numpy(rgba).permute(2, 0, 1)):
        assert np.array_equal(as_rgb(image), rgba[..., :3])


@pytest.mark.parametrize('image', [np.zeros((4, 6, 2), np.uint8), np.full((4, 6), 256), np.full((4, 6, 4), -1.),
                                   np.broadcast_to(np.uint8(1), (9000, 9000)), Image.new('F', (6, 4), 7), Image.new('I', (6, 4), 256)], ids=range(6))
def test_what_is_no_picture(image):
    with pytest.raises(RRNError, match='picture'): as_rgb(image)


def test_new_words_are_named_once():
    seed_everything(0)
    predictor = Predictor(RRN(preset('small', weights=''), 8), Vocabulary.build(['left star ring red']))
    predictor.set_image(np.zeros((30, 40, 3), np.uint8))
    with pytest.warns(UserWarning) as seen: found = predictor.predict(['purple star', 'left zorb', 'purple zorb'])
    assert len(seen) == 1 and "'purple', 'zorb'" in str(seen[0].message) and seen[0].filename == __file__
    assert [p.unknown for p in found] == [('purple',), ('zorb',), ('purple', 'zorb')]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert predictor.predict('zorb').unknown == ('zorb',)
        predictor.predict('red ring')
    with pytest.warns(UserWarning, match="'green'"): predictor.predict('green zorb')


# ---- embedded scenes that are kept -----------------------------------------------------------------------------------------

TINY = dict(sizes={'train': 1, 'val': 1, 'testA': 1, 'testB': 1}, workers=1)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.name != '.lock'}


@pytest.mark.parametrize('kind', ['unc', 'referit'])
def test_scenes_are_those_that_are_asked_for(tmp_path, kind, monkeypatch):
    root = tmp_path/'set'
    first = content(ensure(kind, root, seed=1, **TINY))
    monkeypatch.setattr(shapes, 'in_workers', lambda *a: pytest.fail('drawn again'))
    for how in ({}, TINY, dict(seed=1), dict(seed=1, **TINY)): assert ensure(kind, root, **how) == root
    monkeypatch.undo()
    second = content(ensure(kind, root, seed=2, **TINY))
    assert second.keys() != first.keys() or second != first
    assert content(ensure(kind, root, seed=1, **TINY)) == first                                 # and nothing of the other is left
    monkeypatch.setattr(shapes, 'VERSION', 99)
    assert read_json(stamp_file(ensure(kind, root, workers=1), PARTS_OF[kind]))['version'] == 99      # by its own seed and sizes
    monkeypatch.undo()
    assert content(ensure(kind, root, workers=1)) == first


PARTS_OF = {'unc': 'refer', 'referit': 'referit'}


@pytest.mark.parametrize('kind', ['unc', 'referit'])
def test_a_half_drawn_set_is_drawn_anew(tmp_path, kind, monkeypatch):
    root, real = tmp_path/'set', shapes.write_json
    def die(path, value):
        if getattr(value, 'get', lambda *_: None)('whole'): raise KeyboardInterrupt
        real(path, value)
    monkeypatch.setattr(shapes, 'write_json', die)
    with pytest.raises(KeyboardInterrupt): ensure(kind, root, seed=1, **TINY)
    monkeypatch.undo()
    (root/('images' if kind == 'unc' else 'referit')/'left over').write_text('')
    assert content(ensure(kind, root, seed=1, **TINY)) == content(ensure(kind, tmp_path/'whole', seed=1, **TINY))


@pytest.mark.parametrize('kind, place', [('gref', 'refcocog/refs(umd).p'), ('unc', 'images/mine.jpg'),
                                         ('referit', 'referit/referit_imcrop.json')])
@pytest.mark.parametrize('mark', [None, b'{}', b'not json', b'{"drawn by": "rrn.shapes"}'])
def test_a_folder_of_somebody_else_is_neither_used_nor_touched(tmp_path, kind, place, mark):
    (tmp_path/place).parent.mkdir(parents=True)
    (tmp_path/place).write_bytes(b'mine')
    if mark is not None: stamp_file(tmp_path, 'referit' if kind == 'referit' else 'refer').write_bytes(mark)
    before = content(tmp_path)
    with pytest.raises(RRNError, match='not embedded scenes'): open_dataset(f'shapes-{kind}', tmp_path)
    assert content(tmp_path) == before


def test_scenes_of_old_without_a_stamp_in_our_own_folder_are_drawn_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, 'default_root', lambda: tmp_path/'data')
    whole = content(ensure('unc', seed=1, **TINY))
    stamp_file(tmp_path/'data', 'refer').unlink()
    (tmp_path/'data'/'refcocog'/'refs(umd).p').write_bytes(b'old')
    assert content(ensure('unc', seed=1, **TINY)) == whole


def test_scenes_keep_their_stamp_wherever_the_code_moves(tmp_path):
    "A set that was drawn by an earlier release is used as it is."
    ensure('unc', tmp_path, seed=1, **TINY)
    assert read_json(stamp_file(tmp_path, 'refer')) == {'drawn by': 'rrn.shapes', 'version': 1, 'seed': 1, 'sizes': TINY['sizes'], 'whole': True}


def test_the_version_stands_for_what_is_said():
    "Whoever changes what is drawn or said raises VERSION, and writes the new sum down here."
    scenes = [draw_scene(5, i) for i in range(4)]
    said = [(t.cls, t.colour, t.texture, describe(derived_rng(5, i, k), t, scene.things, kind)) for i, scene in enumerate(scenes)
            for k, kind in enumerate(KINDS) for t in scene.things]
    text = repr([(a, b, c, [s for s, _ in d]) for a, b, c, d in said])
    assert (VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (1, 'da8056c811328e40')


def test_paths_that_no_file_can_have():
    for read in (safe_load, read_image, read_instances, as_rgb, Vocabulary.from_file, read_checkpoint, read_table,
                 lambda p: ensure('unc', p), lambda p: read_refer(p, 'refcoco', 'unc'), lambda p: MatMask(Path(p), 7, 16).decode(),
                 Predictor.from_run, Vocabulary.build(['a']).save):
        for name in ('a\0b.npy', 'a\ud800b'):
            with pytest.raises(RRNError): read(name)
