"The real ReferIt index files (texts only), and opening by name."
import dataclasses, gzip, random
import numpy as np
import pytest
import scipy.io
from rrn.common.core import RRNError, write_json
from rrn.data.datasets import open_dataset, READERS
from rrn.data.refer import check_published_counts
from rrn.data.referit import MatMask, read_referit, region_samples
from rrn.data.refer import EXPECTED

@pytest.fixture(scope='module')
def real(shared, tmp_path_factory):
    "The real index files unpacked into the layout, without pictures and masks."
    root = tmp_path_factory.mktemp('data')
    (root/'referit').mkdir()
    for name in ('query_train', 'query_val', 'query_test', 'imcrop', 'imsize'):
        packed = shared/'text'/f'referit_{name}.json.gz'
        (root/'referit'/f'referit_{name}.json').write_bytes(gzip.decompress(packed.read_bytes()))
    return root

@pytest.fixture
def dataset(real_dataset):
    "The real data set, with a table of splits that a test may change."
    return dataclasses.replace(real_dataset, samples_by_split=dict(real_dataset.samples_by_split))

@pytest.fixture(scope='module')
def real_dataset(real): return read_referit(real)

def test_real_counts_are_the_published_ones(dataset, capsys):
    check_published_counts(dataset)
    assert dataset.note == 'complete' and capsys.readouterr().out == ''
    counts = dataset.counts()
    assert counts['sentences'].to_dict() == {split: row[1] for split, row in EXPECTED['referit'].items()}
    assert counts['refs'].to_dict() == {'train': 44_649, 'val': 4_866, 'trainval': 49_515, 'test': 49_730}
    assert counts['images'].to_dict() == {'train': 8_995, 'val': 1_000, 'trainval': 9_995, 'test': 9_994}

def test_real_records(dataset, real):
    train, test = dataset.samples('train'), dataset.samples('test')
    assert not {s.image_id for s in dataset.samples('trainval')} & {s.image_id for s in test}
    assert len({s.sent_id for s in train + test}) == len(train) + len(test)
    assert all((s.category, s.distractors) == ('', 0) for s in test)
    sky = next(s for s in test if s.sentence == 'tallest bldng')
    assert sky.image == real/'referit'/'images'/'30993.jpg' and sky.mask.path == real/'referit'/'mask'/'30993_2.mat'
    assert sum(s.width > s.height for s in test) > len(test)/2                 # most photographs are landscape

def test_one_sentence_too_few_is_noticed(dataset):
    dataset.samples_by_split['test'] = dataset.samples('test')[:-1]
    assert check_published_counts(dataset).note.startswith('a subset')
    dataset.samples_by_split['val'] = dataset.samples('val') * 2
    with pytest.raises(RRNError, match='referit val'): check_published_counts(dataset)

def test_missing_pictures_and_masks_are_named(real, dataset):
    with pytest.raises(RRNError, match='images does not exist'): open_dataset('referit', real)
    with pytest.raises(RRNError, match=r'mask.*\.mat is missing'): dataset.samples('val')[0].mask.decode()

def test_real_pictures_open(shared):
    for name in ('unc', 'unc+', 'gref', 'gref-umd'):
        dataset = open_dataset(name, shared/'data'/'coco-mini')
        assert dataset.name == name and dataset.note.startswith('a subset')

def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(RRNError, match='Allowed: unc, unc\\+, gref, gref-umd, referit'): open_dataset('refcoco', tmp_path)
    for name in ('unc', 'unc+', 'gref', 'gref-umd', 'referit'):
        with pytest.raises(RRNError, match='missing.*data/README.md'): open_dataset(name, tmp_path)
    assert set(EXPECTED) <= set(READERS)

@pytest.mark.parametrize('file, value, why', [
    ('query_val', [], 'expected an object'), ('imsize', 7, 'expected an object'), ('imsize', {'8.jpg': [16, 10**9]}, 'expected 1 to'),
    ('imsize', {'8.jpg': ['16', '7']}, 'expected 1 to'), ('imsize', {}, 'no width and height'), ('imcrop', {}, 'not in referit_imcrop'),
    ('query_val', {'../../etc/passwd': ['x']}, 'expected <image>_<number>'), ('query_val', {'8_1': None}, 'list of sentences')])
def test_damaged_index_files(tmp_path, file, value, why):
    files = {'query_train': {}, 'query_val': {'8_1': ['ground']}, 'query_test': {}, 'imsize': {'8.jpg': [16, 7]}, 'imcrop': {'8.jpg': ['8_1']}}
    for name, content in (files | {file: value}).items(): write_json(tmp_path/'referit'/f'referit_{name}.json', content)
    with pytest.raises(RRNError, match=why): read_referit(tmp_path)

def test_masks_of_every_numeric_kind(tmp_path):
    values = np.ones((127, 90)); values[3:50, 7:20] = 0
    for kind in ('uint8', 'int16', 'uint32', 'float32', 'float64', 'bool'):
        for compressed in (False, True):
            scipy.io.savemat(tmp_path/'1_1.mat', {'segimg_t': values.astype(kind), 'other': np.arange(4)}, do_compression=compressed)
            mask = MatMask(tmp_path/'1_1.mat', 127, 90).decode()
            assert mask.dtype == bool and mask.sum() == 47*13 and mask[3, 7] and not mask[2, 7], kind

def test_damaged_masks_never_escape_as_another_error(tmp_path):
    values = np.full((40, 33), 255, np.uint8); values[5:9] = 0
    rng = random.Random(11)
    for compressed in (False, True):
        scipy.io.savemat(tmp_path/'good.mat', {'segimg_t': values}, do_compression=compressed)
        good = (tmp_path/'good.mat').read_bytes()
        for _ in range(300):
            broken = bytearray(good[:rng.randint(100, len(good))] if rng.random() < .3 else good)
            for _ in range(rng.randint(1, 6)): broken[rng.randrange(len(broken))] = rng.randrange(256)
            (tmp_path/'bad.mat').write_bytes(bytes(broken))
            try: assert MatMask(tmp_path/'bad.mat', 40, 33).decode().shape == (40, 33)
            except RRNError as e: assert 'bad.mat' in str(e)

def test_files_that_are_no_masks(tmp_path):
    values = np.full((7, 16), 255, np.uint8)
    for name, held in dict(good=values, key=values, shape=values.T, text=np.array(['left'], object), cell=np.full((7, 16), 'x', object)).items():
        scipy.io.savemat(tmp_path/f'{name}.mat', {'segimg' if name == 'key' else 'segimg_t': held})
    (tmp_path/'cut.mat').write_bytes((tmp_path/'good.mat').read_bytes()[:150])
    (tmp_path/'html.mat').write_text('<html>not found</html>' * 20)
    (tmp_path/'new.mat').write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM' + bytes(400))
    (tmp_path/'empty.mat').write_bytes(b'')
    assert not MatMask(tmp_path/'good.mat', 7, 16).decode().any()
    for bad in ('key', 'shape', 'text', 'cell', 'cut', 'html', 'new', 'empty', 'nowhere'):
        with pytest.raises(RRNError, match=f'{bad}.mat'): MatMask(tmp_path/f'{bad}.mat', 7, 16).decode()

@pytest.mark.parametrize('region, queries', [('6_1', ['x']), ('7_3', ['x']), ('9_1', ['x']), ('8_1', ['x']), ('7_2', 'x'), ('7_1', [3])])
def test_regions_that_do_not_fit(region, queries, tmp_path):
    sizes, regions = {'7.jpg': [16, 7], '8.jpg': [16]}, {'7.jpg': ['7_1', '7_2'], '8.jpg': ['8_1'], '6.jpg': 6}
    with pytest.raises(RRNError, match='query'): region_samples(region, queries, 'train', tmp_path, sizes, regions, 'query')
