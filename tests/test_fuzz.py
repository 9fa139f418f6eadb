"""Hostile input for every reader: whatever it is given, the answer is sound data or one `RRNError` that names the file.

Half of the inputs are valid files damaged in ways that know their structure, half are drawn by hypothesis. Each reader runs in a
process of its own with little memory, an alarm for every input, and an audit hook that notices code, processes, connections, and
files outside of the test's folder. `pytest tests/test_fuzz.py --fuzz 20000 -s` is the nightly size; figures are printed."""
import contextlib
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import traceback
import tracemalloc
import zipfile
from collections import namedtuple
from dataclasses import asdict
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import scipy.io
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from PIL import Image
import bombs
from rrn.data import download
from rrn.data.convert import convert, read_sentences
from rrn.common.core import RRNError
from rrn.common.pictures import read_image
from rrn.data.doctor import examine
from rrn.metrics import METRICS
from rrn.model import preset, RRN
from rrn.predict import as_rgb
from rrn.common.untrusted import safe_load
from rrn.data.masks import CocoMask
from rrn.data.refer import check_published_counts, EXPECTED, read_refer, ReferringDataset, Sample
from rrn.data.referit import MatMask, read_referit
from rrn.experiments.report import read_records, results_table
from rrn.data.shapes import draw_scene
from rrn.text import SPECIALS, split_released, Vocabulary
from rrn.common.checkpoints import resume_from, save_checkpoint
from rrn.train import make_optimiser, read_log
from rrn.experiments.record import read_rows, rows_file, Run, write_rows
from rrn.data.weights import read_checkpoint
from test_weights import write_v1, write_v2

MEMORY, PATIENCE = 1500 << 20, 60       # bytes that an input may claim beyond what Python has; seconds

# ---- damage ----------------------------------------------------------------------------------------------------------------

LENGTHS = [0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def flip(rng, d): i = rng.randrange(len(d)); d[i] ^= 1 << rng.randrange(8)
def put(rng, d): d[rng.randrange(len(d))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
def cut(rng, d): del d[rng.randrange(len(d)):]
def drop(rng, d): i = rng.randrange(len(d)); del d[i:i + rng.choice([1, 2, 8, 100])]
def insert(rng, d): i = rng.randrange(len(d)); d[i:i] = rng.randbytes(rng.choice([1, 4, 50]))
def repeat(rng, d): i = rng.randrange(len(d)); d[i:i] = d[i:i + rng.choice([4, 40, 400])] * rng.choice([1, 30])
def absurd(rng, d): i, n = rng.randrange(len(d)), rng.choice([2, 4, 8]); d[i:i + n] = (rng.choice(LENGTHS) % 2**(8*n)).to_bytes(n, rng.choice(['little', 'big']))
def blank(rng, d): i = rng.randrange(len(d)); n = len(d[i:i + 64]); d[i:i + n] = bytes(n)


def damaged(rng, data, others=(b'',)):
    "Bytes with one to four kinds of damage; sometimes the end of another file."
    d = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if d: rng.choice([flip, flip, put, put, cut, drop, insert, repeat, absurd, absurd, blank])(rng, d)
    if rng.random() < .1: d = d[:rng.randrange(len(d) + 1)] + rng.choice(others)[rng.randrange(100):]
    return bytes(d)


TEXTS = ['', ' ', '\0', '\x1b[2J', '\ud800', '..', '../canary', '/etc/passwd', 'c:\\x', 'a' * 300, 'left ' * 10_000, '左の犬', 'ﷺ' * 500, 'é\u0301\u202e', 'NaN', '7', 'train']
NUMBERS = [-1, 0, 1, 2**31, 2**63, -2**63, 10**30, 10**4000, .5, 1e308, float('nan'), float('inf'), -0.]
ODD = [None, True, False, [], {}, [[]], [None], {'a': 1}, '@deep', '@digits', *TEXTS, *NUMBERS]


def nodes(value, path=()):
    "The places in a JSON value."
    yield path
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else (): yield from nodes(v, (*path, k))


def at(value, path):
    for k in path: value = value[k]
    return value


def swapped(rng, value):
    "A JSON value with one to three nodes exchanged, dropped, doubled or renamed."
    box = [json.loads(json.dumps(value))]
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = [p for p in nodes(box) if p]
        place = rng.choice(places)
        holder, key, kind = at(box, place[:-1]), place[-1], rng.random()
        if kind < .6: holder[key] = rng.choice(ODD)
        elif kind < .7: holder[key] = json.loads(json.dumps(at(box, rng.choice(places))))
        elif kind < .85 and len(place) > 1: del holder[key]
        elif isinstance(holder, dict): holder[rng.choice(['id', 'ID', '', 'x'])] = holder.pop(key)
        elif len(holder) < 50: holder.insert(key, holder[key])
    return box[0]


def json_bytes(rng, value):
    "A damaged JSON file: in its values, or in its bytes."
    if rng.random() < .25: return damaged(rng, json.dumps(value).encode())
    text = json.dumps(swapped(rng, value), ensure_ascii=rng.random() < .5)
    n = rng.choice([50, 900, 5000])
    return text.replace('"@deep"', '[' * n + ']' * n).replace('"@digits"', '9' * 5000).encode('utf-8', 'surrogatepass')


KEYS = st.sampled_from(['id', 'image_id', 'ann_id', 'ref_id', 'sent_id', 'category_id', 'images', 'annotations', 'categories', 'segmentation', 'size', 'counts', 'height',
                        'width', 'file_name', 'name', 'split', 'sentences', 'sent', 'raw', 'sentence', 'annotation_id', 'iscrowd', 'sha256', 'step', 'config', 'words', 'tokenizer'])
WORDS = st.text(max_size=20) | st.sampled_from(TEXTS)
PLAIN = st.none() | st.booleans() | st.integers() | st.integers(-1, 30) | st.floats() | WORDS
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=7), max_leaves=30)
JSON_BYTES = JSON.map(lambda v: json.dumps(v).encode())


def starting(*magics):
    "Bytes that begin like a certain kind of file."
    return st.builds(bytes.__add__, st.sampled_from([b'', *magics]), st.binary(max_size=300))


# ---- readers ---------------------------------------------------------------------------------------------------------------
# A reader is set up in a folder and gives: how an input is made from a random generator, how hypothesis draws one, how it is read,
# the words of which one has to be in a refusal, and inputs that once ran code, crashed, hung or filled the memory, or escaped as
# another error: they come first, and have to be refused.

Fuzzed = namedtuple('Fuzzed', 'made drawn read named known', defaults=[()])
FUZZED = {}


def fuzzed(function):
    "Register a function of a folder that returns a `Fuzzed`."
    FUZZED[function.__name__] = function
    return function


def in_file(path, read):
    "A reader of bytes that are put into a file."
    def put_and_read(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)
    return put_and_read


def square(x, y, side): return [x, y, x + side, y, x + side, y + side, x, y + side]


IMAGES = [dict(id=9, height=37, width=64, file_name='COCO_train2014_000000000009.jpg'), dict(id=25, height=90, width=127, file_name='COCO_train2014_000000000025.jpg')]
RUNS = dict(size=[37, 64], counts=[37*60, 37*4])
INSTANCES = dict(images=IMAGES, categories=[dict(id=24, name='zebra'), dict(id=18, name='dog')], annotations=[
    dict(id=1, image_id=9, category_id=24, iscrowd=0, segmentation=[square(2, 2, 10), square(8, 8, 10)]), dict(id=2, image_id=9, category_id=24, iscrowd=0, segmentation=[square(40, 5, 12)]),
    dict(id=3, image_id=9, category_id=24, iscrowd=1, segmentation=RUNS), dict(id=4, image_id=25, category_id=18, iscrowd=0, segmentation=[square(100, 60, 60)])])
REFS = [dict(ref_id=n, ann_id=a, image_id=i, category_id=24, split=s, file_name='x', sent_ids=[n], sentences=[dict(sent_id=n, sent=t, raw=t, tokens=t.split())])
        for n, (a, i, s, t) in enumerate([(1, 9, 'train', 'left zebra'), (2, 9, 'val', 'zebra at the right'), (4, 25, 'testA', 'dog'), (3, 9, 'testB', 'zebras')])]


def refer_layout(folder):
    "The small set in the REFER layout, with pictures."
    place = folder/'images/mscoco/images/train2014'; place.mkdir(parents=True); (folder/'refcoco').mkdir()
    for i in IMAGES: Image.fromarray(draw_scene(3, i['id']).image).resize((i['width'], i['height'])).save(place/i['file_name'])
    (folder/'refcoco'/'instances.json').write_text(json.dumps(INSTANCES))
    (folder/'refcoco'/'refs(unc).p').write_bytes(pickle.dumps(REFS, protocol=2))


def read_samples(folder):
    "All samples with their masks."
    samples = read_refer(folder, 'refcoco', 'unc')
    for s in samples:
        mask = s.mask.decode()
        assert mask.dtype == bool and mask.shape == (s.height, s.width) and isinstance(s.sentence, str)
    return check_published_counts(ReferringDataset('unc', folder, {'train': samples}))


PICKLES = [pickle.dumps(REFS, p) for p in (0, 1, 2, 3, 4, 5)] + [b"\x80\x02]q\x00U\x04caf\xe9q\x01a.", b"cposix\nsystem\n(S'touch canary'\ntR."]
FEW = [pickle.dumps([1, 'a', {'b': (2., {3})}], p) for p in (0, 2, 4)]


PARTS = [b'](', b'e', b'}(', b'u', b'(', b't', b'\x85', b'\x86', b'2', b'0', b'N', b'K\1', b'\x8f', b'\x90', b'\x91', b'\x94', b'X\2\0\0\0ab', b'q\0', b'h\0', b'q\1', b'h\1', b'q\2', b'h\2', b'R',
         b'c__builtin__\nset\n', b'c_codecs\nencode\n', b'X\6\0\0\0latin1', b'X\xe8\3\0\0' + b'a' * 1000, b'1', b'a', b's', b'd', b'l', b'\x95\7\0\0\0\0\0\0\0', b'I7\n', b'p9\n']


def program(rng):
    "A pickle of instructions in a random order, with a loop."
    pick = lambda n: b''.join(rng.choices(PARTS, k=rng.randrange(1, n)))
    return b'\x80\2](' + pick(9) + pick(6) * rng.choice([1, 50, 5000, 50_000]) + pick(4) + b'e.'


@fuzzed
def pickles(folder):
    plain = st.recursive(PLAIN | st.binary(max_size=9), lambda v: st.lists(v, max_size=4) | st.tuples(v, v) | st.dictionaries(st.text(max_size=4) | st.tuples(st.integers()), v, max_size=4), max_leaves=20)
    drawn = st.builds(pickle.dumps, plain, st.integers(0, 5)) | starting(b'\x80\x02', b'\x80\x04\x95', b'(', b'c__builtin__\neval\n')
    made = lambda rng: program(rng) if rng.random() < .3 else damaged(rng, rng.choice(PICKLES + 3*FEW), PICKLES)
    return Fuzzed(made, drawn, in_file(folder/'a.p', safe_load), ['a.p'],
                  [b'}' + b')' + b'\x85'*300_000 + b'Ns.', b"cposix\nsystem\n(S'touch canary'\ntR.", *(bomb() for bomb in bombs.PICKLES.values())])


@fuzzed
def refs(folder):
    refer_layout(folder)
    made = lambda rng: pickle.dumps(swapped(rng, REFS), rng.choice([0, 2, 4]))
    entry = st.fixed_dictionaries({}, optional={k: st.just(v) | JSON for k, v in REFS[0].items()})
    return Fuzzed(made, st.lists(entry, max_size=3).map(pickle.dumps), in_file(folder/'refcoco'/'refs(unc).p', lambda path: read_samples(folder)), ['refs(unc).p', 'annotation', str(folder)],
                  [pickle.dumps([REFS[0] | change]) for change in (dict(ann_id=10**5000), dict(sentences=['left']), dict(ann_id=4))] + [bomb() for bomb in bombs.REFERENCES.values()])


@fuzzed
def instances(folder):
    refer_layout(folder)
    entries = {k: st.lists(st.fixed_dictionaries({}, optional={n: st.just(x) | JSON for n, x in v[0].items()}), max_size=3) for k, v in INSTANCES.items()}
    drawn = st.fixed_dictionaries(entries).map(lambda v: json.dumps(v).encode()) | JSON_BYTES
    return Fuzzed(lambda rng: json_bytes(rng, INSTANCES), drawn, in_file(folder/'refcoco'/'instances.json', lambda path: read_samples(folder)), ['instances.json', 'annotation', str(folder)],
                  [json.dumps(INSTANCES | dict(images=[i | change for i in IMAGES])).encode() for change in (dict(height=20_000, width=20_000), dict(file_name='../canary'), dict(file_name='a' * 300))] + [bombs.colliding(INSTANCES['annotations'][0])])


@fuzzed
def masks(folder):
    number = st.floats() | st.integers() | st.floats(-20, 90) | st.integers(-5, 70)
    polygons = st.lists(st.lists(number, max_size=12), max_size=4)
    runs = st.fixed_dictionaries(dict(size=st.just([37, 64]) | JSON, counts=st.lists(st.integers(0, 3000), max_size=9) | st.binary(max_size=50) | WORDS | st.text('0PXo5', max_size=40)))
    whole = st.lists(st.integers(0, 37*64), max_size=20).map(lambda cuts: dict(size=[37, 64], counts=np.diff([0, *sorted(cuts), 37*64]).tolist()))
    made = lambda rng: swapped(rng, rng.choice([[square(2, 2, 10), square(8, 8, 10)], RUNS, dict(size=[37, 64], counts='`b1ok000000002N2Noo0OO1N2O0000')]))
    def read(segmentation):
        mask = CocoMask(segmentation, 37, 64, 'annotation 4').decode()
        assert mask.dtype == bool and mask.shape == (37, 64)
    known = [*(bomb() for bomb in bombs.SEGMENTATIONS.values()), [[0, 0, float('nan'), 0, 1, 1]], [[0, 0, 5, 0, 5]], []]
    return Fuzzed(made, polygons | runs | whole | JSON, read, ['annotation 4'], known)


REFERIT = dict(imsize={f'{i}.jpg': [16, 7] for i in (7, 8, 9)}, imcrop={f'{i}.jpg': [f'{i}_1', f'{i}_2'] for i in (7, 8, 9)}, query_train={'7_1': ['white box', 'box'], '7_2': ['sky']},
               query_val={'8_2': ['ground']}, query_test={'9_1': ['anywhere']}, query_trainval={'7_1': ['box'], '8_2': ['ground']})


@fuzzed
def referit(folder):
    (folder/'referit'/'mask').mkdir(parents=True)
    for region in ('7_1', '7_2', '8_2', '9_1'): scipy.io.savemat(folder/'referit'/'mask'/f'{region}.mat', {'segimg_t': np.eye(7, 16, dtype=np.uint8)})
    def read(content):
        name, data = content
        for n, v in REFERIT.items(): (folder/'referit'/f'referit_{n}.json').write_bytes(data if n == name else json.dumps(v).encode())
        for split, samples in read_referit(folder).samples_by_split.items():
            for s in samples: assert s.mask.decode().shape == (s.height, s.width) and isinstance(s.sentence, str)
    made = lambda rng: (lambda n: (n, json_bytes(rng, REFERIT[n])))(rng.choice(list(REFERIT)))
    table = st.dictionaries(st.sampled_from(['7.jpg', '8.jpg', '7_1', '8_2', '9_1']) | WORDS, JSON | st.lists(st.integers(0, 30)) | st.lists(WORDS), max_size=4)
    drawn = st.tuples(st.sampled_from(list(REFERIT)), table.map(lambda v: json.dumps(v).encode()) | JSON_BYTES)
    return Fuzzed(made, drawn, read, ['referit_', '.mat'], [('imcrop', b'{"7.jpg": 7}'), ('query_val', b'{"../../canary_1": ["x"]}'), ('imsize', b'{"7.jpg": [20000, 20000]}')])


@fuzzed
def matlab(folder):
    seeds, values = [], np.arange(7*16).reshape(7, 16) % 3
    for kind in ('uint8', 'float64', 'int16'):
        for packed in (False, True):
            file = io.BytesIO(); scipy.io.savemat(file, {'segimg_t': values.astype(kind), 'b': 'text'}, do_compression=packed); seeds.append(file.getvalue())
    def read(path):
        mask = MatMask(path, 7, 16).decode()
        assert mask.dtype == bool and mask.shape == (7, 16)
    return Fuzzed(lambda rng: damaged(rng, rng.choice(seeds), seeds), starting(seeds[0][:128], seeds[0][:160], seeds[1][:136]), in_file(folder/'7_1.mat', read), ['7_1.mat'],
                  [bomb() for bomb in bombs.MATRICES.values()])


def sound(arrays):
    "Arrays whose numbers are really there."
    assert all(isinstance(n, str) and isinstance(a, np.ndarray) and a.size < 10**6 for n, a in arrays.items())
    for a in arrays.values(): a.sum()


ARRAYS = {'text_objseg/a/DW': np.arange(6, dtype=np.float32).reshape(2, 3), 'text_objseg/a/biases': np.ones(3, np.float32), 'step': np.int64([7])}


@fuzzed
def npy(folder):
    seeds = []
    for value in ({'conv1': {'weights': ARRAYS['text_objseg/a/DW'], 'biases': np.ones(3)}}, {'fc': [np.arange(3), np.bool_([1])]}, np.arange(4.)):
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO(); np.lib.format.write_array(file, np.asanyarray(value), version, allow_pickle=True); seeds.append(file.getvalue())
    def made(rng):
        good = rng.choice(seeds)
        start = good.index(b'\n') + 1
        return good[:start] + damaged(rng, good[start:], seeds) if rng.random() < .7 else damaged(rng, good, seeds)
    return Fuzzed(made, starting(b'\x93NUMPY\x01\x00', seeds[0][:128]), in_file(folder/'m.npy', lambda p: sound(read_checkpoint(p))), ['m.npy'],
                  [seeds[0][:128] + b"cposix\nsystem\n(S'touch canary'\ntR.", *(bomb() for bomb in bombs.NPY.values())])


@fuzzed
def npz(folder):
    file = io.BytesIO(); np.savez_compressed(file, **{k.replace('/', '_'): v for k, v in ARRAYS.items()}, evil=np.array([{}], object))
    return Fuzzed(lambda rng: damaged(rng, file.getvalue()), starting(b'PK\3\4'), in_file(folder/'m.npz', lambda p: sound(read_checkpoint(p))), ['m.npz'])


@fuzzed
def tensorflow_2(folder):
    "Either bytes of the two files, or of an entry under a right checksum."
    write_v2(folder/'m', ARRAYS)
    good = {n: (folder/n).read_bytes() for n in ('m.index', 'm.data-00000-of-00001')}
    entries = {}; write_v2(folder/'other', ARRAYS, change=entries.update)
    def entry(key, value):
        write_v2(folder/'m', ARRAYS, change=lambda e: e.update({key: value}))
        return {n: (folder/n).read_bytes() for n in good}
    def change(rng): e = {}; write_v2(folder/'m', ARRAYS, packed=rng.random() < .5, change=lambda found: e.update(found)); k = rng.choice(list(e)); return entry(k, damaged(rng, e[k]))
    def made(rng):
        if rng.random() < .6: return change(rng)
        n = rng.choice(list(good)); return good | {n: damaged(rng, good[n])}
    def read(files):
        for n, content in files.items(): (folder/n).write_bytes(content)
        sound(read_checkpoint(folder/'m'))
    return Fuzzed(made, st.builds(entry, st.sampled_from([b'', b'step', b'x']), st.binary(max_size=40)), read, [str(folder/'m')])


@fuzzed
def tensorflow_1(folder):
    path = folder/'m.ckpt'
    def rewritten(change): write_v1(path, ARRAYS, halves=('text_objseg/a/DW',), change=change); return path.read_bytes()
    def in_record(i, alter): return rewritten(lambda r: [(k, alter(v)) if n == i % len(r) else (k, v) for n, (k, v) in enumerate(r)])
    made = lambda rng: in_record(rng.randrange(9), partial(damaged, rng)) if rng.random() < .6 else damaged(rng, rewritten(None))
    return Fuzzed(made, st.builds(lambda i, b: in_record(i, lambda _: b), st.integers(0, 5), st.binary(max_size=40)), in_file(path, lambda p: sound(read_checkpoint(p))), ['m.ckpt'])


def rezipped(data, change, packing=zipfile.ZIP_STORED):
    "A zip with `change(name, content)` applied to its members and the checksums made right."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, 'w', packing) as w:
        for m in z.infolist(): w.writestr(m.filename, change(m.filename, z.read(m)))
    return out.getvalue()


def repacked(data, change):
    "PyTorch's zip with `change` applied to its pickle."
    return rezipped(data, lambda name, content: change(content) if name.endswith('.pkl') else content)


def saved(value, zipped=True):
    file = io.BytesIO(); torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


STATE = {'conv.weight': torch.arange(6.).reshape(2, 3), 'conv.bias': torch.ones(3)}


@fuzzed
def pytorch(folder):
    odd = [STATE, {'state_dict': STATE}, torch.nn.Linear(2, 3).state_dict(), {'a': torch.ones(1).expand(10**6, 10**6)}, {'a': torch.eye(2).to_sparse(), 'b': torch.ones(2, dtype=torch.complex64)},
           {1: torch.ones(2)}, {'a': torch.ones(2).to(torch.float8_e5m2), 'b': torch.nn.Parameter(torch.ones(2))}, [torch.ones(2)], {'a': 3}]
    seeds = [saved(v) for v in odd] + [saved(STATE, False), saved({'model': STATE}, False)]
    def made(rng):
        good = rng.choice(seeds[:3] * 3 + seeds)
        if good[:2] == b'PK' and rng.random() < .6: return repacked(good, partial(damaged, rng))
        return damaged(rng, good, seeds)
    drawn = starting(b'PK\3\4', seeds[0][:60], b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.') | st.builds(lambda b: repacked(seeds[0], lambda _: b), starting(b'\x80\x02}', b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'))
    bomb = rezipped(seeds[0], lambda name, content: bytes(100 << 20) if name.endswith('data/0') else content, zipfile.ZIP_DEFLATED)
    known = [*seeds[3:6], repacked(seeds[0], lambda d: b'\x80\x02})' + b'\x85'*300_000 + b'K\x01s.'), bomb]
    return Fuzzed(made, drawn, in_file(folder/'m.pth', lambda p: sound(read_checkpoint(p))), ['m.pth'], known)


def with_header(header, body): return struct.pack('<Q', len(header)) + header + body


@fuzzed
def safetensor(folder):
    good = safetensors.torch.save(STATE)
    n = struct.unpack('<Q', good[:8])[0]
    header = json.loads(good[8:8 + n])
    def made(rng): return with_header(json_bytes(rng, header), good[8 + n:]) if rng.random() < .6 else damaged(rng, good)
    entry = st.fixed_dictionaries({}, optional=dict(dtype=st.sampled_from(['F32', 'F8_E5M2', 'F4', 'C64', 'BOOL', 'X']), shape=st.lists(st.integers(0, 2**64), max_size=4) | st.just([2, 3]),
                                                    data_offsets=st.tuples(st.integers(0, 40), st.integers(0, 40)) | st.just([0, 24])))
    drawn = st.dictionaries(WORDS, entry | JSON, max_size=3).map(lambda h: with_header(json.dumps(h).encode(), bytes(24)))
    return Fuzzed(made, drawn, in_file(folder/'m.safetensors', lambda p: sound(read_checkpoint(p))), ['m.safetensors'])


TINY = preset('small', weights='random', embed_dim=6, D_I=6, D_S=6, D_Q=6, image_size=48, iterations=2)


@fuzzed
def checkpoint(folder):
    "A training's own checkpoint; its checksums are made right for what is damaged, except where the manifest itself is."
    model = RRN(TINY, 9); optimiser = make_optimiser(model)
    for p in model.head.parameters(): p.grad = torch.ones_like(p) if p.requires_grad else None
    optimiser.step()
    path = save_checkpoint(folder/'checkpoints', 1, model, optimiser)
    good = {n: (path/n).read_bytes() for n in ('weights.safetensors', 'state.pt', 'manifest.json')}
    other = saved(dict(optimiser={}, random={}, step='one'))
    def made(rng):
        name = rng.choice(list(good)); old = good[name]
        if name == 'manifest.json': return name, json_bytes(rng, json.loads(old))
        if name == 'state.pt' and rng.random() < .7: return name, repacked(rng.choice([old, old, other]), partial(damaged, rng))
        return name, damaged(rng, old)
    def read(content):
        name, data = content
        manifest = dict(step=1, sha256={n: hashlib.sha256(data if n == name else c).hexdigest() for n, c in good.items() if n != 'manifest.json'})
        for n, c in (good | {'manifest.json': json.dumps(manifest).encode(), name: data}).items(): (path/n).write_bytes(c)
        assert resume_from(folder/'checkpoints', model, optimiser) is not None
    return Fuzzed(made, st.tuples(st.sampled_from(list(good)), starting(b'PK\3\4', b'{"sha256": ')), read, [str(folder/'checkpoints')])


@fuzzed
def records(folder):
    "Configuration, vocabulary, metrics, log and counts of a run."
    run = Run(folder/'run')
    write_rows(run, 'unc val', pd.DataFrame(dict(sent_id=[1, 2], image_id=[3, 3], intersection=[5, 0], union=[9, 4])))
    counts = rows_file(run, 'unc val'); text = gzip.decompress(counts.read_bytes())
    log = b'step,loss,lr,grad_norm,sentences,seconds,val_overall_iou,val_mean_iou\n5,0.69,0.003,1.2,9,0.1,,\n10,0.5,0.003,1.2,9,0.2,3.1,4.5\n'
    values = {run.folder/'config.json': dict(config=asdict(TINY), preset='small'), run.folder/'vocabulary.json': dict(tokenizer='words', words=[*SPECIALS, 'left', 'dog']),
              run.folder/'metrics.json': {'unc val': dict.fromkeys([*METRICS, 'sentences'], 7.) | dict(protocol='rrn')}}
    good = {p: json.dumps(v).encode() for p, v in values.items()} | {run.log: log, counts: counts.read_bytes()}
    def made(rng):
        path = rng.choice(list(good))
        if path in values: return path, json_bytes(rng, values[path])
        return path, gzip.compress(damaged(rng, text)) if path == counts and rng.random() < .7 else damaged(rng, good[path])
    def read(content):
        for path, data in (good | dict([content])).items(): path.write_bytes(data)
        assert len(run.vocabulary()) > 3 and run.config().iterations > 0
        assert read_log(run).step.dtype == int and read_rows(run, 'unc val').sent_id is not None
        results_table(read_records(folder))
    drawn = st.tuples(st.sampled_from(list(good)), JSON_BYTES | starting(b'step,loss\n', b'\x1f\x8b\x08'))
    return Fuzzed(made, drawn, read, [str(run.folder)])


@fuzzed
def pictures(folder):
    image, seeds = Image.fromarray(draw_scene(3, 0).image).resize((61, 40)), []
    for kind, how in [('JPEG', {}), ('JPEG', dict(progressive=True)), ('PNG', {}), ('PNG', dict(interlace=1)), ('WEBP', {}), ('BMP', {})]:
        file = io.BytesIO(); image.save(file, kind, **how); seeds.append(file.getvalue())
    for mode in ('L', 'CMYK', '1', 'P', 'I;16', 'LA'):
        file = io.BytesIO(); (Image.new(mode, (61, 40)) if mode == 'I;16' else image.convert(mode)).save(file, 'JPEG' if mode == 'CMYK' else 'PNG'); seeds.append(file.getvalue())
    def read(path):
        rgb = read_image(path)
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    magics = [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', b'GIF89a', b'II*\0', b'8BPS', b'\0\0\1\0', seeds[0][:30], seeds[2][:33], b'RIFF\xff\xff\0\0WEBPVP8 ']
    vast = io.BytesIO(); Image.new('1', (12_000, 12_000)).save(vast, 'PNG')
    return Fuzzed(lambda rng: damaged(rng, rng.choice(seeds), seeds), starting(*magics), in_file(folder/'a.jpg', read), ['a.jpg'], [magics[0] + b'(x) run\n', vast.getvalue(), b'', *(bomb() for bomb in bombs.PICTURES.values())])


@fuzzed
def arrays(folder):
    "Pictures that are given as arrays, tensors or opened files."
    kinds = st.sampled_from(['u1', 'i4', 'f4', 'f8', 'bool', 'c8', 'O', 'U3', 'M8[s]'])
    drawn = st.builds(lambda shape, kind, fill: np.full(shape, fill, 'f8').astype(kind), st.lists(st.integers(0, 4), max_size=4), kinds, st.sampled_from([0., 1., 255., 256., -1., np.nan, np.inf, .5]))
    good = io.BytesIO(); Image.new('RGB', (30, 20)).save(good, 'JPEG')
    def read(value):
        rgb = as_rgb(Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value)
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    made = lambda rng: torch.full([rng.randrange(4) for _ in range(rng.randrange(5))], rng.choice([0., 1., 300., float('nan')])) if rng.random() < .5 else good.getvalue()[:rng.randrange(630, 700)]
    return Fuzzed(made, drawn, read, ['picture'])


@fuzzed
def sentences(folder):
    vocabularies = [Vocabulary((*SPECIALS, 'left', 'dog'), t) for t in ('words', 'released')]
    def read(sentence):
        for v in vocabularies:
            numbers = v.encode(sentence, 20)
            assert len(numbers) == 20 and all(0 <= n < len(v) for n in numbers) and any(numbers)
            v.decode(numbers), v.unknown(sentence), split_released(sentence)
    made = lambda rng: damaged(rng, rng.choice(TEXTS + ['the left dog, please']).encode('utf-8', 'surrogatepass')).decode('utf-8', 'replace')
    return Fuzzed(made, st.text(max_size=200) | WORDS | JSON, read, ['sentence'], ['', ' \0\u200b', None, b'left', 7])


@fuzzed
def vocabulary(folder):
    good = '\n'.join([*SPECIALS, 'left', '', 'dog', 'dog']).encode()
    read = lambda path: Vocabulary.from_file(path).encode('left dog', 4)
    return Fuzzed(lambda rng: damaged(rng, good), st.binary(max_size=80).map(lambda b: good + b) | st.binary(), in_file(folder/'v.txt', read), ['v.txt'])


SAID = [dict(annotation_id=1, sentence='left zebra', split='train'), dict(ann_id='2', sentence='zebra, right', split='train')]


@fuzzed
def said(folder):
    table = 'annotation_id,sentence,split\n1,"left, zebra",train\n2,right one,val\n'.encode()
    def read(content):
        name, data = content
        (folder/name).write_bytes(data)
        assert all(s.sentence.strip() and s.annotation >= 0 for s in read_sentences(folder/name))
    made = lambda rng: ('said.json', json_bytes(rng, SAID)) if rng.random() < .5 else ('said.csv', damaged(rng, table))
    rows = st.lists(st.lists(WORDS | st.integers().map(str), max_size=4).map(','.join), max_size=4).map(lambda r: '\n'.join(['ann_id,sentence,split', *r]).encode('utf-8', 'replace'))
    return Fuzzed(made, st.tuples(st.just('said.csv'), rows) | st.tuples(st.just('said.json'), JSON_BYTES), read, ['said.'])


@fuzzed
def own(folder):
    "A whole conversion: annotations, perhaps with sentences."
    refer_layout(folder)
    def read(content):
        data, sentences = content
        (folder/'labels.json').write_bytes(data); (folder/'said.json').write_bytes(sentences or b'')
        shutil.rmtree(folder/'out', ignore_errors=True)
        try: convert(folder/'labels.json', folder/'images/mscoco/images/train2014', folder/'out', folder/'said.json' if sentences else None, progress=False, smallest=0.)
        finally: assert not list(folder.glob('.out*'))
    made = lambda rng: (json_bytes(rng, INSTANCES), None if rng.random() < .7 else json.dumps(SAID).encode())
    return Fuzzed(made, st.tuples(JSON_BYTES, st.none() | JSON_BYTES), read, ['labels.json', 'said.json', 'annotation', 'image', 'Picture', 'No object', 'category', 'instances.json'])


@fuzzed
def doctor(folder):
    "A damaged set is examined to the end."
    refer_layout(folder)
    names = ['refcoco/refs(unc).p', 'refcoco/instances.json', f"images/mscoco/images/train2014/{IMAGES[0]['file_name']}"]
    good = {n: (folder/n).read_bytes() for n in names}
    def made(rng):
        n = rng.choice(names)
        return n, pickle.dumps(swapped(rng, REFS)) if n.endswith('.p') else json_bytes(rng, INSTANCES) if n.endswith('.json') else damaged(rng, good[n])
    def read(content):
        for n, data in (good | dict([content])).items(): (folder/n).write_bytes(data)
        report = examine('unc', folder, progress=False)
        assert report.text() and json.dumps(report.to_dict(), default=str)
    return Fuzzed(made, st.tuples(st.sampled_from(names), JSON_BYTES | JSON.map(pickle.dumps)), read, [])


@fuzzed
def archives(folder):
    rng = random.Random(5); files = {'refcoco/refs(unc).p': rng.randbytes(300), 'refcoco/deep/a.json': b'{}' * 50, '../canary': b'x', 'refcoco/é': b'1'}
    def packed(kind, names, packing=zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        if kind == 'zip':
            with zipfile.ZipFile(out, 'w', packing) as z:
                for n in names: z.writestr(n, files[n])
        else:
            with tarfile.open(fileobj=out, mode=kind) as t:
                for n in names: info = tarfile.TarInfo(n); info.size = len(files[n]); t.addfile(info, io.BytesIO(files[n]))
        return out.getvalue()
    honest = [n for n in files if 'canary' not in n]
    seeds = [packed(k, honest) for k in ('zip', 'w:gz', 'w')] + [packed('zip', files), packed('w', files)]
    def inside(rng, d): return gzip.compress(damaged(rng, gzip.decompress(d))) if d[:2] == b'\x1f\x8b' and rng.random() < .7 else damaged(rng, d, seeds)
    def read(path):
        shutil.rmtree(folder/'out', ignore_errors=True)
        with contextlib.suppress(RRNError): download.is_archive(path)
        try: download.unpack(path, folder/'out', progress=False)
        finally: assert sorted(p.name for p in folder.iterdir()) in (['a.zip'], ['a.zip', 'out'])
    return Fuzzed(lambda rng: inside(rng, rng.choice(seeds)), starting(b'PK\3\4', b'\x1f\x8b\x08', seeds[2][:512]), in_file(folder/'a.zip', read), ['a.zip'],
                  [packed('zip', honest, zipfile.ZIP_LZMA), *seeds[3:]])


@fuzzed
def answers(folder):
    "What a server says of a file."
    Response = namedtuple('Response', 'status headers chunked')
    numbers = st.integers(-3, 2**70).map(str) | WORDS
    headers = st.fixed_dictionaries({}, optional={'Content-Length': numbers, 'Content-Encoding': st.sampled_from(['gzip', 'identity']) | WORDS, 'ETag': WORDS, 'Last-Modified': WORDS,
                                                  'Content-Range': st.builds('bytes {}-{}/{}'.format, numbers, numbers, numbers) | WORDS | st.just('bytes 5-8/9')})
    drawn = st.builds(Response, st.sampled_from([200, 206, 206, 204, 999]), headers, st.booleans())
    def read(response):
        for start, about in ((0, {}), (5, {'total': 9, 'mark': 'x'}), (5, {'total': 'nine', 'mark': None})):
            first, total = download.check_response(response, start, about, download.FetchOptions(limit=1000, sha256='0' * 64))
            assert first in (0, start) and (total is None or 0 <= total <= 1000)
    made = lambda rng: Response(rng.choice([200, 206]), {'Content-Length': rng.choice(['4', '9', rng.choice(TEXTS)]), 'Content-Range': damaged(rng, b'bytes 5-8/9').decode('latin1')}, False)
    return Fuzzed(made, drawn, read, [], [Response(206, {'Content-Range': 'bytes 5-8/' + '9' * 5000}, False), Response(200, {'Content-Length': '-3'}, False)])


@fuzzed
def counts(folder):
    "Numbers of references, sentences and pictures against the published ones."
    sizes = st.dictionaries(st.sampled_from(['train', 'val', 'testA', 'testB', 'test', 'x']), st.integers(1, 40), max_size=5)
    def read(content):
        name, sizes = content
        make = lambda split, n: [Sample(Path('a'), None, 's', i // 3, i // 2, i, split, '', 0, 1, 1) for i in range(n)]
        assert 'subset' in check_published_counts(ReferringDataset(name, folder, {s: make(s, n) for s, n in sizes.items()})).note
    made = lambda rng: (rng.choice(list(EXPECTED)), {s: rng.choice([1, 30, 4000]) for s in rng.sample(['train', 'val', 'testA', 'testB', 'minival'], 3)})
    return Fuzzed(made, st.tuples(st.sampled_from(list(EXPECTED)), sizes), read, ['published'])


# ---- the process that reads ------------------------------------------------------------------------------------------------

FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'pty.spawn', 'subprocess.', 'socket.', 'pickle.find_class', 'webbrowser.', 'urllib.')
CHANGES = ('os.remove', 'os.rename', 'os.link', 'os.symlink', 'os.mkdir', 'os.rmdir', 'os.chmod', 'shutil.')
HEAVY = {'own': .3, 'doctor': .3, 'checkpoint': .3, 'tensorflow_1': .5, 'tensorflow_2': .5, 'records': .6, 'counts': .3, 'npz': .3}     # share of inputs, beside 1


class Hang(BaseException): pass


def ring(*_): raise Hang


class Watch:
    "Gives inputs to a reader and keeps figures and failures."
    def __init__(self, reader, folder):
        self.reader, self.folder, self.reading, self.faults = reader, folder, False, []
        self.figures = dict(inputs=0, accepted=0, refused=0, slowest=0., memory=0)
        signal.signal(signal.SIGALRM, ring)
        sys.addaudithook(self.audit)

    def audit(self, event, args):
        "Called by Python for whatever touches the world outside."
        if not self.reading: return
        path = str(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else ''
        writes = event == 'open' and args[2] and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        outside = os.path.isabs(path) and not path.startswith((str(self.folder), '/dev/'))      # names relative to an opened folder are seen at the end
        if event.startswith(FORBIDDEN) or (writes or event.startswith(CHANGES)) and outside or event == 'open' and 'canary' in path: self.faults.append(f'{event} {repr(args)[:200]}')

    def one(self, content):
        "Read one input; whatever is not sound data or one clear refusal is a fault."
        self.figures['inputs'] += 1
        (self.folder.parent/'last').write_text(f"input {self.figures['inputs']}: {repr(content)[:20000]}")
        memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        faults = len(self.faults)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.reading = True
                self.reader.read(content)
            self.figures['accepted'] += 1
        except RRNError as e: self.refused(e)
        except BaseException: self.faults.append(traceback.format_exc()[-900:])
        self.reading = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.figures['slowest'] = max(self.figures['slowest'], time.perf_counter() - start)
        self.figures['memory'] = max(self.figures['memory'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
        if len(self.faults) > faults: self.faults[-1] += f'\nof input {repr(content)[:600]}'
        if len(self.faults) > 5: raise SystemExit

    def refused(self, e):
        "A refusal is short, says where, and does not hide that memory ran out."
        self.figures['refused'] += 1
        text, cause = str(e), e
        if not text or len(text) > 6000 or self.reader.named and not any(n in text for n in self.reader.named): self.faults.append(f'unclear: {text:.500}')
        while cause is not None:
            if isinstance(cause, MemoryError): self.faults.append('memory ran out: ' + ''.join(traceback.format_exception(cause))[-1500:])
            cause = cause.__cause__ or cause.__context__


def read_all(name, n, start, folder):
    "In a process of its own: `n` inputs for a reader; figures and faults into a file."
    torch.set_num_threads(1)
    here = Path(folder)/'area'; here.mkdir()
    reader = FUZZED[name](here)
    watch = Watch(reader, here)
    claimed = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (claimed + MEMORY, claimed + MEMORY))
    try:
        for content in reader.known: watch.one(content)
        if watch.figures['accepted']: watch.faults.append('one of the known inputs was accepted')
        for i in range(n // 2): watch.one(reader.made(random.Random(f'{start}-{name}-{i}')))
        drawn = given(reader.drawn)(watch.one)
        drawn = settings(max_examples=n - n // 2, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])(drawn)
        seed(start)(drawn)()
    except SystemExit: pass
    except BaseException: watch.faults.append('the test itself failed: ' + traceback.format_exc()[-3000:])
    left = sorted(p.name for p in Path(folder).iterdir())
    if left != ['area', 'last']: watch.faults.append(f'files outside of the folder: {left}')
    (Path(folder)/'result.json').write_text(json.dumps(dict(figures=watch.figures, faults=watch.faults)))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize('name', FUZZED)
def test_hostile_input(name, tmp_path, request):
    total, start = request.config.getoption('--fuzz'), request.config.getoption('--fuzz-seed')
    n = max(2, round(total * HEAVY.get(name, 1) / sum(HEAVY.get(k, 1) for k in FUZZED)))
    process = multiprocessing.get_context('fork').Process(target=read_all, args=(name, n, start, tmp_path))
    process.start(); process.join()
    result = tmp_path/'result.json'
    assert result.exists(), f"the process ended with {process.exitcode} at {(tmp_path/'last').read_text()}"
    found = json.loads(result.read_text())
    print(f"{name:14}", ', '.join(f"{k} {v:.2f} s" if k == 'slowest' else f"{k} {v >> 10} MB" if k == 'memory' else f'{k} {v}' for k, v in found['figures'].items()))
    assert not found['faults'], '\n\n'.join(found['faults'])
    assert found['figures']['memory'] < 700 << 10


def test_a_chunk_that_claims_gigabytes(tmp_path):
    "A PNG whose only chunk of pixels says it has two of them: read without asking for that much memory, or refused."
    file = io.BytesIO(); Image.new('RGB', (61, 40)).save(file, 'PNG')
    content = file.getvalue(); at = content.index(b'IDAT')
    (tmp_path/'a.png').write_bytes(content[:at - 4] + (2**31 - 1).to_bytes(4, 'big') + content[at:])
    tracemalloc.start()
    with contextlib.suppress(RRNError): assert read_image(tmp_path/'a.png').shape == (40, 61, 3)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 10 << 20
