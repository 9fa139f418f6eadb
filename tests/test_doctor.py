"Planted faults, each of which the doctor has to name, and a data set of real photographs."
import pickle, shutil
import numpy as np
import pytest
import scipy.io
from PIL import Image
from rrn.common.core import read_json, repo_root, RRNError, write_json
from rrn.data.doctor import check_words, examine, EXAMPLES_SHOWN, Findings, main, data_folder
from rrn.data.datasets import READERS, register_dataset
from rrn.data.refer import IMAGE_FOLDER, ReferringDataset

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

W, H = 127, 90

def box(x, y, w, h): return [[x, y, x + w, y, x + w, y + h, x, y + h]]

class Toy:
    "A healthy set of 12 pictures (6 train, 3 val, 3 testA), two objects each, that a test spoils before it is written."
    def __init__(self, root):
        self.root, self.folder = root, root/IMAGE_FOLDER
        self.images = [dict(id=i, height=H, width=W, file_name=f'COCO_train2014_{i:012d}.jpg') for i in range(1, 13)]
        self.annotations = [dict(id=10*i + k, image_id=i, category_id=1, iscrowd=0, segmentation=box(5 + 60*k, 10, 40, 30 + i)) for i in range(1, 13) for k in (0, 1)]
        self.refs = [dict(ref_id=n, ann_id=a['id'], image_id=a['image_id'], split='train' if a['image_id'] <= 6 else 'val' if a['image_id'] <= 9 else 'testA',
                          sentences=[dict(sent_id=2*n + j, sent=s) for j, s in enumerate((f"{'left' if n % 2 == 0 else 'right'} dog", f"dog {'left' if n % 2 == 0 else 'right'}"))])
                     for n, a in enumerate(self.annotations)]
        self.folder.mkdir(parents=True)
        for image in self.images:
            noise = np.random.default_rng(image['id']).integers(0, 255, (H, W, 3), dtype=np.uint8)
            Image.fromarray(noise).save(self.folder/image['file_name'])

    def written(self, name='refcoco', by='unc'):
        write_json(self.root/name/'instances.json', dict(images=self.images, annotations=self.annotations, categories=[dict(id=1, name='dog')]))
        (self.root/name/f'refs({by}).p').write_bytes(pickle.dumps(self.refs, protocol=2))
        return self

    def examined(self, dataset='unc', **more):
        report = examine(dataset, self.root, progress=False, **more)
        return {f.what: f for f in report.findings}

@pytest.fixture
def toy(tmp_path): return Toy(tmp_path/'data')

PART = 'split is only a part of the published one'     # said of every toy set under a published name

def expect(found, what, severity, count=1, example=''):
    "The findings must be `what` (besides that the set is a part) and nothing else."
    assert set(found) - {PART} == {what}, list(found)
    f = found[what]
    assert (f.severity, f.count) == (severity, count), f
    assert len(f.examples) == min(count, EXAMPLES_SHOWN) and example in f.examples[0], f

def test_a_healthy_set_has_nothing_to_remark(toy):
    found = toy.written().examined()
    assert set(found) == {PART} and found[PART].count == 4
    report = examine('unc', toy.root, progress=False)
    assert report.status == 0 and (report.looked, report.pictures) == (12, 12)
    assert report.counts.loc['train'].tolist() == [12, 24, 6] and 'testB' not in report.counts.index

# ---- files -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('file', ['refcoco/refs(unc).p', 'refcoco/instances.json'])
def test_a_missing_file(toy, file):
    (toy.written().root/file).unlink()
    found = toy.examined()
    assert found['file or folder is missing'].examples == [file] and found['file or folder is missing'].severity == 'error'

@pytest.mark.parametrize('file, junk', [('refcoco/refs(unc).p', b'junk'), ('refcoco/refs(unc).p', pickle.dumps({'a': 1})), ('refcoco/instances.json', b'{"images": 3'),
                                        ('refcoco/instances.json', b'{"images": 3}')])
def test_a_damaged_file(toy, file, junk):
    (toy.written().root/file).write_bytes(junk)
    found = toy.examined()
    assert found['the set cannot be read'].severity == 'error' and found['the set cannot be read'].count == 1

def test_no_pictures_at_all(toy):
    shutil.rmtree(toy.written().folder)
    found = toy.examined()
    assert found['picture is missing'].count == 12 and len(found['picture is missing'].examples) == 5
    assert found['file or folder is missing'].examples == [str(IMAGE_FOLDER)]

def test_nothing_to_examine(tmp_path):
    with pytest.raises(RRNError, match='no folder'): examine('unc', tmp_path/'nowhere')
    with pytest.raises(RRNError, match="Did you mean 'unc"): examine('umc+', tmp_path)
    assert examine('referit', tmp_path, progress=False).status == 1
    assert data_folder('unc', '') == repo_root()/'data' and 'shapes' in str(data_folder('shapes-unc', '')) and data_folder('unc', tmp_path) == tmp_path

# ---- pictures --------------------------------------------------------------------------------------------------------------

def test_a_missing_picture(toy):
    (toy.written().folder/toy.images[6]['file_name']).unlink()
    expect(toy.examined(), 'picture is missing', 'error', 1, 'COCO_train2014_000000000007.jpg')

def test_a_missing_picture_is_named_even_if_it_is_not_among_those_looked_at(toy):
    (toy.written().folder/toy.images[6]['file_name']).unlink()
    expect(toy.examined(limit=2), 'picture is missing', 'error')

@pytest.mark.parametrize('spoil', [lambda raw: raw[:len(raw) // 2], lambda raw: b'', lambda raw: b'<html>', lambda raw: raw[:20] + bytes(len(raw) - 20)])
def test_a_picture_that_cannot_be_decoded(toy, spoil):
    path = toy.written().folder/toy.images[2]['file_name']
    path.write_bytes(spoil(path.read_bytes()))
    expect(toy.examined(), 'picture cannot be decoded', 'error', 1, path.name)

def test_a_picture_of_another_size(toy):
    Image.new('RGB', (H, W)).save(toy.folder/toy.images[0]['file_name'])
    expect(toy.written().examined(), 'picture has another size than its annotations say', 'error', 1, '(127, 90)')

def test_the_same_photograph_twice(toy):
    shutil.copy(toy.folder/toy.images[0]['file_name'], toy.folder/toy.images[1]['file_name'])
    expect(toy.written().examined(), 'the same photograph has several names', 'warning', 1, '000001.jpg = COCO')

def test_the_same_photograph_in_train_and_test(toy):
    shutil.copy(toy.folder/toy.images[0]['file_name'], toy.folder/toy.images[11]['file_name'])
    expect(toy.written().examined(), 'the same photograph has several names, in train and in another split', 'error')

# ---- masks -----------------------------------------------------------------------------------------------------------------

def test_a_mask_that_cannot_be_drawn(toy):
    toy.annotations[5]['segmentation'] = [[1, 2, 3]]; toy.annotations[6]['segmentation'] = {'size': [9, 9], 'counts': [81]}
    expect(toy.written().examined(), 'mask cannot be drawn', 'error', 2, 'annotation 31')

def test_an_empty_mask(toy):
    toy.annotations[5]['segmentation'] = {'size': [H, W], 'counts': [H*W]}
    toy.annotations[7]['segmentation'] = box(300, 300, 20, 20)
    expect(toy.written().examined(), 'mask is empty', 'error', 2, 'ref 5')

def test_a_tiny_mask(toy):
    toy.annotations[5]['segmentation'] = box(70, 10, 4, 2)                # 8 of 11,430 pixels
    expect(toy.written().examined(), 'mask covers less than 0.1% of the picture', 'warning', 1, '8 pixels')

def test_the_limit_of_tiny(toy):
    toy.annotations[5]['segmentation'] = box(70, 10, 4, 3)                # 12 pixels are just more than 0.1 %
    assert set(toy.written().examined()) == {PART}

def test_two_references_to_one_object(toy):
    toy.refs[1]['ann_id'] = toy.refs[0]['ann_id']
    expect(toy.written().examined(), 'two references mean the same pixels', 'warning', 1, 'refs 0 and 1')

def test_masks_that_overlap_by_much_and_by_little(toy):
    toy.annotations[1]['segmentation'] = box(20, 10, 25, 31)              # all of it lies in the first object
    toy.annotations[3]['segmentation'] = box(43, 10, 25, 30)              # 2 of 25 columns do
    expect(toy.written().examined(), 'masks of two references overlap by more than 50% of the smaller', 'note', 1, 'refs 0 and 1')

# ---- references and sentences ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrong', [dict(ann_id=999), dict(image_id=12), dict(sentences=None), dict(split=3), dict(sentences=[dict(sent_id=1)])])
def test_a_reference_that_does_not_fit(toy, wrong):
    toy.refs[4] |= wrong
    expect(toy.written().examined(), 'reference does not fit instances.json', 'error', 1, 'ref 4')

def test_numbers_used_twice(toy):
    toy.refs[4]['ref_id'] = 20
    found = toy.written().examined()
    assert found['reference number is used twice'].severity == 'error' and found['reference number is used twice'].examples == ['ref_id 20']
    toy.refs[4]['ref_id'] = 4; toy.refs[4]['sentences'][1]['sent_id'] = 0
    expect(toy.written().examined(), 'sentence number is used twice', 'error', 1, 'sent_id 0')

def test_a_reference_without_sentences(toy):
    toy.refs[4]['sentences'] = []
    expect(toy.written().examined(), 'reference without a sentence', 'warning', 1, 'ref_id 4')

@pytest.mark.parametrize('text', [' ', '?!', '...', '\x00'])
def test_an_empty_sentence(toy, text):
    toy.refs[4]['sentences'][1]['sent'] = text
    expect(toy.written().examined(), 'sentence has no words', 'warning', 1, 'sent_id 9')

def test_the_same_sentence_twice(toy):
    toy.refs[4]['sentences'][1]['sent'] = 'LEFT dog!'
    expect(toy.written().examined(), 'sentence is said twice of one object', 'note', 1, 'sent_id 9')

def test_one_sentence_for_two_objects(toy):
    toy.refs[5]['sentences'][1]['sent'] = 'Left dog'
    expect(toy.written().examined(), 'sentence is said of several objects of a picture', 'warning', 1, "image 3 'left dog' refs [4, 5]")

def test_a_long_sentence(toy):
    toy.refs[4]['sentences'][1]['sent'] = 'dog ' * 20; assert set(toy.written().examined()) == {PART}
    toy.refs[4]['sentences'][1]['sent'] = 'dog ' * 21
    expect(toy.written().examined(), 'sentence has more than 20 words; the rest is not read', 'note')

def test_words_outside_the_vocabulary(toy):
    toy.refs[20]['sentences'][1]['sent'] = 'ocelot ocelot puma'; toy.refs[1]['sentences'][0]['sent'] = 'the unusual dog'
    found = toy.written().examined()
    f = found['words of testA that training never saw']
    assert (f.severity, f.count, f.examples) == ('note', 3, ['ocelot puma']) and set(found) == {PART, f.what}
    row = examine('unc', toy.root, progress=False).vocabulary.loc['testA']
    assert row['words'] == 25 and row['sentences with unknown'] == 1

# ---- splits ----------------------------------------------------------------------------------------------------------------

def test_a_training_picture_in_the_test(toy):
    toy.refs[1]['split'] = 'testA'; toy.refs[3]['split'] = 'testA'
    expect(toy.written().examined(), 'pictures are in train and in testA', 'error', 2, 'image 1')

def test_validation_and_test_share_a_picture(toy):
    toy.refs[13]['split'] = 'testA'
    expect(toy.written().examined(), 'pictures are in val and in testA', 'warning', 1, 'image 7')

def test_people_and_things_may_share_a_picture(toy):
    toy.refs[23]['split'] = 'testB'
    expect(toy.written().examined(), 'pictures are in testA and in testB', 'note')

def test_gref_is_split_by_object(toy):
    for n, ref in enumerate(toy.refs): ref['split'] = 'train' if (n + n//2) % 2 else 'val'
    found = toy.written('refcocog', 'google').examined('gref')
    expect(found, 'pictures are in train and in val (this set is split by object)', 'note', 12)
    assert examine('gref', toy.root, progress=False).status == 0

def test_but_one_object_may_not_be_in_both_splits(toy):
    for n, ref in enumerate(toy.refs): ref['split'] = 'train' if n % 2 else 'val'
    toy.refs[0]['ann_id'] = toy.refs[1]['ann_id']
    found = toy.written('refcocog', 'google').examined('gref')
    assert found['the same pixels are a target in train and in another split'].severity == 'error'

def test_a_split_nobody_published_and_none_to_train_on(toy):
    for ref in toy.refs[:12]: ref['split'] = 'minival'
    found = toy.written().examined()
    assert found['split that was not published'].examples == ['minival'] and found['there is no split to train on'].severity == 'warning'

def test_more_than_was_published(toy, monkeypatch):
    import rrn.data.doctor as doctor
    monkeypatch.setitem(doctor.EXPECTED, 'unc', {'train': (12, 24, 6), 'val': (6, 12, 3), 'testA': (5, 12, 3)})
    expect(toy.written().examined(), 'split is not the published one', 'error', 1, 'testA: (refs, sentences, images) are (6, 12, 3)')

# ---- ReferIt ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def referit(tmp_path):
    "A healthy ReferIt of 4 pictures with two regions each."
    folder = tmp_path/'data'/'referit'
    for part in ('images', 'mask'): (folder/part).mkdir(parents=True)
    write_json(folder/'referit_imsize.json', {f'{i}.jpg': [W, H] for i in (7, 8, 9, 10)})
    write_json(folder/'referit_imcrop.json', {f'{i}.jpg': [f'{i}_1', f'{i}_2'] for i in (7, 8, 9, 10)})
    for split, pictures in {'train': (7, 8), 'val': (9,), 'test': (10,)}.items():
        write_json(folder/f'referit_query_{split}.json', {f'{i}_{k}': [f"{'left' if k == 1 else 'right'} sky"] for i in pictures for k in (1, 2)})
    for i in (7, 8, 9, 10):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (H, W, 3), dtype=np.uint8)).save(folder/'images'/f'{i}.jpg')
        for k in (1, 2):
            mask = np.ones((H, W), np.uint8); mask[10:60, 60*k - 50:60*k] = 0
            scipy.io.savemat(folder/'mask'/f'{i}_{k}.mat', {'segimg_t': mask})
    return tmp_path/'data'

def referit_findings(root, dataset='shapes-referit'): return {f.what: f for f in examine(dataset, root, progress=False).findings}

def test_referit_healthy_with_and_without_trainval(referit):
    assert referit_findings(referit) == {} and set(referit_findings(referit, 'referit')) == {PART}
    folder = referit/'referit'
    write_json(folder/'referit_query_trainval.json', read_json(folder/'referit_query_train.json') | read_json(folder/'referit_query_val.json'))
    assert referit_findings(referit) == {}

def test_referit_faults_are_all_named(referit):
    folder = referit/'referit'
    (folder/'mask'/'7_1.mat').unlink(); (folder/'mask'/'8_1.mat').write_bytes(b'junk')
    scipy.io.savemat(folder/'mask'/'9_1.mat', {'segimg_t': np.ones((H, W), np.uint8)})
    scipy.io.savemat(folder/'mask'/'9_2.mat', {'segimg_t': np.zeros((W, H), np.uint8)})
    write_json(folder/'referit_query_test.json', {'10_1': ['sky'], '10_9': ['ground'], '../7_1': ['x'], '7_2': ['left grass']})
    found = referit_findings(referit)
    assert found['mask cannot be drawn'].count == 3 and found['mask is empty'].examples[0].startswith('ref 90001')
    assert found['region does not fit the index files'].count == 2 and found['pictures are in train and in test'].severity == 'error'
    (folder/'referit_imcrop.json').unlink()
    assert referit_findings(referit)['file or folder is missing'].examples == ['referit/referit_imcrop.json']

# ---- any other set, the report, the command line ---------------------------------------------------------------------------

def test_a_registered_set_and_own_data(toy):
    from rrn.data.refer import open_refer
    toy.written()
    register_dataset('toy', lambda root: ReferringDataset('toy', root, open_refer('unc', root).samples_by_split))
    try: assert toy.examined('toy') == {}
    finally: del READERS['toy']
    assert set(toy.examined('own')) == {'the set cannot be read'}
    for wrong in ([], {}, dict(name='../..', by='unc'), dict(name='refcoco', by=['unc'])):
        write_json(toy.root/'convert.json', wrong)
        assert set(toy.examined('own')) == {'the set cannot be read'}
    write_json(toy.root/'convert.json', dict(name='refcoco', by='unc'))
    assert toy.examined('own') == {}

def test_workers_find_the_same(toy):
    (toy.folder/toy.images[6]['file_name']).write_bytes(b'junk'); toy.annotations[5]['segmentation'] = box(300, 300, 20, 20)
    one, two = (examine('unc', toy.written().root, workers=w, progress=False).to_dict() for w in (0, 2))
    assert one == two and one['status'] == 1

def test_nothing_is_changed_on_disk(toy):
    (toy.written().folder/toy.images[6]['file_name']).write_bytes(b'junk')
    state = lambda: {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in toy.root.rglob('*')}
    before = state(); toy.examined()
    assert state() == before

def test_report_and_exit_status(toy, tmp_path, capsys):
    toy.refs[4]['sentences'][1]['sent'] = '?!'
    assert main(['unc', str(toy.written().root), '--quiet', '--json', str(tmp_path/'report.json')]) == 0
    said = capsys.readouterr().out
    assert 'WARNING sentence has no words: 1' in said and str(tmp_path) not in said
    written = read_json(tmp_path/'report.json')
    assert written['status'] == 0 and written['looked_at'] == written['pictures'] == 12 and written['counts']['val'] == dict(refs=6, sentences=12, images=3)
    assert {'severity': 'warning', 'what': 'sentence has no words', 'count': 1, 'examples': ["sent_id 9 '?!'"]} in written['findings']
    (toy.folder/toy.images[6]['file_name']).unlink()
    assert main(['unc', str(toy.root), '--quiet']) == 1 and main(['unc', str(tmp_path/'nowhere')]) == 1

def test_findings_refuse_an_unknown_severity():
    with pytest.raises(RRNError, match='Allowed: error, warning, note'): Findings().add('fatal', 'x')
    empty = Findings(); check_words({}, empty); assert empty == {}

# ---- coco-mini -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dataset', ['unc', 'unc+', 'gref', 'gref-umd'])
def test_real_photographs(shared, dataset):
    report = examine(dataset, shared/'data'/'coco-mini', limit=25, progress=False)
    found = {f.what: f for f in report.findings}
    assert report.status == 0 and report.looked == 25 and PART in found
    assert ('pictures are in train and in val (this set is split by object)' in found) == (dataset == 'gref')
