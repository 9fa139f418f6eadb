"Real pictures and masks in the REFER layout, hostile pickles, and hostile annotations."
import os, pickle, random, re, struct, tracemalloc
import numpy as np
import pycocotools.mask as coco
import pytest
from rrn.common.core import read_json, RRNError, write_json
from rrn.common.untrusted import safe_load
from rrn.data.masks import CocoMask, decode_run_lengths, polygon_fault
from rrn.data.refer import check_published_counts, EXPECTED, open_refer, read_instances, read_refer, ref_samples

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

SETS = {'unc': 'refcoco (unc)', 'unc+': 'refcoco+ (unc)', 'gref': 'refcocog (google)', 'gref-umd': 'refcocog (umd)'}

# ---- coco-mini: real photographs and masks -------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def mini(shared): return shared/'data'/'coco-mini'

@pytest.mark.parametrize('name', SETS)
def test_counts_are_those_of_its_readme(mini, name, capsys):
    rows = re.findall(r'^\| (.+?) \| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$', (mini/'README.md').read_text(), re.M)
    written = {split: [int(refs), int(sentences), int(images)] for set_, split, images, refs, sentences in rows
               if set_ == SETS[name] and split != 'all'}
    dataset = check_published_counts(open_refer(name, mini))
    found = {split: row.tolist() for split, row in dataset.counts().iterrows()}
    assert found == written and list(found) == list(EXPECTED[name])
    assert capsys.readouterr().out.count('is a subset') == 1

def test_every_object_decodes_as_pycocotools_does(mini):
    index = read_instances(mini/'refcoco'/'instances.json')
    raw = {a['id']: a['segmentation'] for a in read_json(mini/'refcoco'/'instances.json')['annotations']}
    crowds = 0
    for id, a in index.annotations.items():
        image = index.images[a['image_id']]
        mask = CocoMask(a['segmentation'], image['height'], image['width'], f'annotation {id}').decode()
        assert mask.shape == (image['height'], image['width']) and mask.dtype == bool
        rles = coco.frPyObjects(raw[id], image['height'], image['width'])
        expected = coco.area(coco.merge(rles) if isinstance(rles, list) else rles)
        assert mask.sum() == expected, id
        crowds += a['iscrowd']
    assert len(index.annotations) == 6234 and crowds == 63

def test_samples_agree_with_their_annotations(mini):
    data, samples = read_json(mini/'refcoco+'/'instances.json'), read_refer(mini, 'refcoco+', 'unc')
    names, by_id = {c['id']: c['name'] for c in data['categories']}, {i['id']: i for i in data['images']}
    for s in random.Random(0).sample(samples, 60):
        own = [a for a in data['annotations'] if a['image_id'] == s.image_id and names[a['category_id']] == s.category and not a['iscrowd']]
        assert s.distractors == len(own) - 1 and s.image.is_file() and s.image.name == by_id[s.image_id]['file_name']
        target = next(a for a in own if s.mask.name == f"annotation {a['id']}")
        assert s.mask.segmentation.read('') == target['segmentation'] and s.mask.decode().any()
    assert len({s.sent_id for s in samples}) == len(samples)

# ---- hostile pickles -----------------------------------------------------------------------------------------------------

def op(name): return getattr(pickle, name)
def text(value): return op('SHORT_BINUNICODE') + bytes([len(value)]) + value.encode()

class Calls:
    "Pickles as a call of `function` with `args`."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call

class Own: pass

@pytest.fixture
def load(tmp_path):
    "A function that writes bytes to a file and reads it with `safe_load`."
    def run(data):
        (tmp_path/'refs(unc).p').write_bytes(data)
        return safe_load(tmp_path/'refs(unc).p')
    return run

@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_survives(load, protocol):
    value = [{'ref_id': 1, 'sent': 'café 左', 'box': (1.5, -7, 2**40, 2**70), 'ok': [True, False, None]}, {'a', 'b'}, frozenset([1]),
             b'\x00\xff', bytes(300), 'x'*70_000, (), (1,), (1, 2), (1, 2, 3, 4), [], {}, set(), {1: 'x', b'k': 2, None: 3}]
    same = ['shared']
    loaded = load(pickle.dumps([value, same, same], protocol=protocol))
    assert loaded == [value, same, same] and loaded[1] is loaded[2]

@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('function, args, named', [(os.system, ('touch {}',), 'system'), (eval, ("open('{}', 'w')",), 'eval'),
                                                   (exec, ("open('{}', 'w')",), 'exec'), (getattr, ('a', 'upper'), 'getattr'),
                                                   (open, ('{}', 'w'), 'open'), (__import__, ('antigravity',), '__import__')])
def test_no_function_is_called(load, tmp_path, protocol, function, args, named):
    marker = tmp_path/'was-run'
    with pytest.raises(RRNError, match=named):
        load(pickle.dumps([1, Calls(function, *(a.format(marker) for a in args))], protocol=protocol))
    assert not marker.exists()

@pytest.mark.parametrize('value, named', [(np.arange(3), 'numpy'), (np.float64(1), 'numpy'), (Own(), 'Own|copyreg|copy_reg'), (range(3), 'range'),
                                          (1j, 'complex'), (bytearray(b'x'), 'bytearray|BYTEARRAY8'), (len, 'len'), (pickle.Unpickler, 'Unpickler')])
@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
def test_other_objects_are_refused_by_name(load, value, named, protocol):
    with pytest.raises(RRNError, match=named): load(pickle.dumps([value], protocol=protocol))

@pytest.mark.parametrize('data, named', [
    (b"cposix\nsystem\n(S'echo'\ntR.", 'posix.system'), (b"(S'echo'\nios\nsystem\n.", 'INST'),
    (op('PROTO') + b'\x04' + text('builtins') + text('eval') + op('STACK_GLOBAL') + b'.', 'builtins.eval'),
    (op('PROTO') + b'\x04' + text('builtins') + text('set.__class__.mro') + op('STACK_GLOBAL') + b'.', 'set.__class__'),
    (b'cbuiltins\nset\n)R}b.', 'BUILD'), (b'cbuiltins\nset\n)\x81.', 'NEWOBJ'), (b'(cbuiltins\nset\no.', 'OBJ'),
    (b'Pid\n.', 'PERSID'), (b'K\x01Q.', 'BINPERSID'), (b'\x82\x01.', 'EXT1'), (b'\x97.', 'NEXT_BUFFER'), (b'\xff.', 'byte 255'),
    (b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.", 'unexpected')])
def test_handwritten_programs_are_refused(load, data, named):
    with pytest.raises(RRNError, match=named): load(data)

@pytest.mark.parametrize('data', [
    b'', b'.', b'not a pickle', b'<html>404</html>', b'\x80\x63.', b'N', b'h\x05.', b'0.', b'a.', b'(.', b'R.', b'NNR.', b't.', b'}NNs', b'u.',
    b'I' + b'9'*10_000 + b'\n.', b"S'a\n.", b'\x8a\x05ab', b'G12.', b'\x95' + b'\xff'*8 + b'N.', b'N\x93.'])
def test_files_that_are_no_pickles(load, data):
    with pytest.raises(RRNError, match=r'refs\(unc\)\.p'): load(data)

def test_every_truncation_is_noticed(load):
    data = pickle.dumps([{'sent': 'left zebra', 'ids': [1, 300, 70_000, 2**40]}], protocol=4)
    for end in range(len(data)):
        with pytest.raises(RRNError): load(data[:end])

def test_damaged_bytes_never_escape_as_another_error(load):
    data = pickle.dumps([{'sent': 'left zebra', 'ids': (1, 2.5, {'a'})}] * 3, protocol=2)
    rng = random.Random(7)
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)): broken[rng.randrange(len(data))] = rng.randrange(256)
        try: load(bytes(broken))
        except RRNError: pass

@pytest.mark.parametrize('data', [
    op('BINUNICODE') + struct.pack('<I', 2**32 - 1) + b'abc.', op('BINUNICODE8') + struct.pack('<Q', 2**62) + b'abc.',
    op('BINBYTES8') + struct.pack('<Q', 2**40) + b'abc.', op('BINBYTES') + struct.pack('<I', 2**32 - 1) + b'abc.',
    op('BYTEARRAY8') + struct.pack('<Q', 2**40) + b'abc.', op('LONG4') + struct.pack('<i', 2**31 - 1) + b'abc.',
    op('BINSTRING') + struct.pack('<i', -5) + b'abc.', op('FRAME') + struct.pack('<Q', 2**45) + b'N',
    b']' + op('LONG_BINPUT') + struct.pack('<I', 2**32 - 1) + b'N', b']p99999999999\nN'])
def test_claimed_lengths_reserve_no_memory(load, data):
    tracemalloc.start()
    with pytest.raises(RRNError): load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6

def test_deep_nesting_does_not_end_the_process(load):
    deep = 300_000
    for data in (b'('*deep + b'.', b')' + op('TUPLE1')*deep + b'.', b']'*deep + b'a'*(deep - 1) + b'.'):
        try: load(data)
        except RRNError: pass
    for key in (b'}' + b')' + op('TUPLE1')*deep + b'Ns.', b'\x8f(' + b')' + op('TUPLE1')*deep + b'\x90.', b'(' + b')' + op('TUPLE1')*deep + b'\x91.',
                b'(' + b')' + op('TUPLE1')*deep + b'Nd.', b'cbuiltins\nset\n(](' + b')' + op('TUPLE1')*deep + b'etR.'):
        with pytest.raises(RRNError, match='tuple as a key'): load(key)

def test_a_pickle_of_something_else_than_references(tmp_path):
    write_json(tmp_path/'refcoco'/'instances.json', dict(images=[], annotations=[], categories=[]))
    for value, why in ((7, 'expected a list'), ({'a': 1}, 'expected a list'), ([7], "no usable 'ann_id'"), ([[]], "no usable 'ann_id'"),
                       ([dict(ann_id=1, image_id=1)], 'does not have')):
        (tmp_path/'refcoco'/'refs(unc).p').write_bytes(pickle.dumps(value))
        with pytest.raises(RRNError, match=why): read_refer(tmp_path, 'refcoco', 'unc')

def test_missing_files_are_named(tmp_path):
    with pytest.raises(RRNError, match=r'refs\(google\)\.p is missing; data set refcocog \(google\).*data/README'): open_refer('gref', tmp_path)
    (tmp_path/'refcocog').mkdir()
    (tmp_path/'refcocog'/'refs(google).p').write_bytes(pickle.dumps([]))
    with pytest.raises(RRNError, match='instances.json is missing'): open_refer('gref', tmp_path)

# ---- hostile annotations -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change, why', [
    (dict(images=None), "no usable 'images'"), (dict(images=[dict(id=1, file_name='../../a.jpg', height=5, width=5)]), 'leads out'),
    (dict(images=[dict(id=1, file_name='a.jpg', height=10**9, width=5)]), 'expected 1 to'), (dict(images=[7]), "no usable 'id'"),
    (dict(images=[dict(id=1, height=5, width=5)]), "no usable 'file_name'"), (dict(annotations=[dict(id=1, image_id=[1])]), "no usable 'image_id'"),
    (dict(annotations=[dict(id=1, image_id=1, category_id=None)]), "no usable 'category_id'"), (dict(categories=[dict(id=1)]), "no usable 'name'")])
def test_bad_instances(tmp_path, change, why):
    write_json(tmp_path/'instances.json', dict(images=[], annotations=[], categories=[]) | change)
    with pytest.raises(RRNError, match=why): read_instances(tmp_path/'instances.json')

def test_points_outside_are_cut_at_the_edge():
    full = CocoMask([[-50, -50, 300, -50, 300, 200, -50, 200]], 90, 127).decode()
    assert full.all() and full.shape == (90, 127)
    assert not CocoMask([[200, 10, 300, 10, 300, 50]], 90, 127).decode()[:, :-1].any()

def test_compressed_runs_in_both_directions():
    rng = np.random.default_rng(5)
    for height, width in ((1, 1), (127, 90), (3, 400)):
        for fill in (0, .01, .5, 1):
            mask = np.asfortranarray(rng.random((height, width)) < fill, dtype=np.uint8)
            rle = coco.encode(mask)
            assert (CocoMask({'size': [height, width], 'counts': rle['counts']}, height, width).decode() == mask).all()
            assert (CocoMask({'size': [height, width], 'counts': decode_run_lengths(rle['counts'])}, height, width).decode() == mask).all()

@pytest.mark.parametrize('counts', ['', 'zzzz', '\x00', 'é', '0'*50, 'o'*5000, b'P'*9, [2**40, -2**40 + 35], [35.0], [True]*35, [None], None, 35])
def test_damaged_runs(counts):
    with pytest.raises(RRNError, match='annotation 4'): CocoMask({'size': [5, 7], 'counts': counts}, 5, 7, 'annotation 4').decode()

@pytest.mark.parametrize('segmentation', [[], [[]], [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5]], [[0, 0, float('inf'), 0, 1, 1]], [[0, 0, 10**400, 0, 1, 1]],
                                          [[0, 0, 4, 0, 4, 4], [1, 2]], 'abc', 7, [['0']*6], [[[0]]*6], [[True]*6]])
def test_damaged_polygons(segmentation):
    with pytest.raises(RRNError, match='annotation 4'): CocoMask(segmentation, 5, 7, 'annotation 4').decode()

# ---- counts --------------------------------------------------------------------------------------------------------------

def test_a_set_with_too_much_is_refused(mini, capsys):
    dataset = open_refer('unc', mini)
    dataset.samples_by_split['testC'] = dataset.samples('testB')
    with pytest.raises(RRNError, match='testC.*no such split'): check_published_counts(dataset)

def test_published_table_agrees_with_the_real_texts(shared):
    import gzip, json
    for split in ('val', 'testA', 'testB'):
        items = json.loads(gzip.decompress((shared/'text'/f'refcoco_{split}.json.gz').read_bytes()))['items']
        refs = {tuple(item['mask'].split('/')[-1].split('_')[:2]) for item in items}
        assert (len(refs), len(items), len({item['image'] for item in items})) == EXPECTED['unc'][split]

# ---- cases of the notebooks ----------------------------------------------------------------------------------------------

TINY = dict(images=[dict(id=9, height=37, width=64, file_name='COCO_train2014_000000000009.jpg'),
                    dict(id=25, height=90, width=127, file_name='COCO_train2014_000000000025.jpg')],
            categories=[dict(id=24, name='zebra')],
            annotations=[dict(id=1, image_id=9, category_id=24, iscrowd=0, segmentation=[[2, 2, 12, 2, 12, 12]])])
REF = dict(ref_id=0, ann_id=1, image_id=9, split='val', sentences=[dict(sent_id=5, sent='left zebra', raw='Left zebra!')])

@pytest.mark.parametrize('wrong', [dict(ann_id=77), dict(image_id=25), dict(split=None), dict(sentences='left'),
                                   dict(sentences=['left']), dict(sentences=[dict(sent_id=1)])])
def test_references_that_do_not_fit(wrong, tmp_path):
    write_json(tmp_path/'instances.json', TINY)
    instances = read_instances(tmp_path/'instances.json')
    assert ref_samples(REF, instances, tmp_path, 'ref 0')[0].sentence == 'left zebra'
    with pytest.raises(RRNError, match='ref 0'): ref_samples(REF | wrong, instances, tmp_path, 'ref 0')

@pytest.mark.parametrize('bad', [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [0, 0, 5, float('nan'), 5, 5], [0, 0, 1e9, 0, 5, 5], [], 'abcdef',
                                 [0, 0, '5', 0, 5, 5]])
def test_faults_of_polygons(bad): assert polygon_fault(bad, 100)

OUTLINE = [[2, 1, 9, 1, 9, 5, 2, 5], [6, 3, 30, 3, 30, 6, 6, 6]]
RUNS = CocoMask(OUTLINE, 7, 16).rle()['counts']

@pytest.mark.parametrize('bad', [[], None, [[1, 2, 3, 4]], [[0, 0, 16, 7] * 200], {'size': [16, 7], 'counts': decode_run_lengths(RUNS)},
                                 {'size': [7, 16], 'counts': [3, 5]}, {'size': [7, 16], 'counts': RUNS.decode()[:-2]}, {'size': [7, 16]},
                                 {'size': [7, 16], 'counts': [200, -88]}])
def test_masks_that_cannot_be_drawn(bad):
    with pytest.raises(RRNError, match='annotation 38'): CocoMask(bad, 7, 16, 'annotation 38').decode()
