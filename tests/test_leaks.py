"""Planted overlaps are found exactly: by number in every kind of list, and by look; and what scores are without them."""
import gzip, json, pickle, signal, subprocess, sys
import numpy as np
import pytest
from PIL import Image
from rrn.common.core import RRNError
from rrn.data.datasets import open_dataset
from rrn.experiments.leaks import all_splits, find_leaks, near_pairs, picture_named, PictureId, read_training
from rrn.experiments.score import score_predictions

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

FOLDERS = {'unc': ('refcoco', 'unc'), 'unc+': ('refcoco+', 'unc'), 'gref': ('refcocog', 'google'), 'gref-umd': ('refcocog', 'umd')}
SPLITS = {   # data set -> split -> pictures
    'unc': dict(train=range(0, 20), val=range(20, 28), testA=range(28, 32)),
    'unc+': dict(train=range(0, 18), val=range(20, 28), testB=range(32, 36)),
    'gref': dict(train=[*range(10, 30), 50, 51], val=[50, 51, 52, 25]),
    'gref-umd': dict(train=range(10, 24), val=range(50, 53), test=range(60, 64))}
NUMBERS = np.random.default_rng(0).permutation(600_000)[:64].tolist()      # of the pictures, as COCO would give them


def write_set(root, dataset, sentences):
    "A data set in the layout of REFER, with `sentences(picture)` sentences about each picture."
    folder, by = FOLDERS[dataset]
    refs = []
    for split, pictures in SPLITS[dataset].items():
        for p in pictures:
            said = [dict(sent_id=100*len(refs) + k, sent='left cat', raw='', tokens=[]) for k in range(sentences(p))]
            refs.append(dict(ref_id=len(refs), ann_id=p, image_id=NUMBERS[p], split=split, category_id=1, sentences=said))
    (root/folder).mkdir(exist_ok=True)
    (root/folder/f'refs({by}).p').write_bytes(pickle.dumps(refs))
    images = [dict(id=n, file_name=f'COCO_train2014_{n:012d}.jpg', height=40, width=60) for n in NUMBERS]
    annotations = [dict(id=p, image_id=n, category_id=1, iscrowd=0, area=1., segmentation=[[5, 5, 30, 5, 30, 30, 5, 30]]) for p, n in enumerate(NUMBERS)]
    (root/folder/'instances.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "The three sets of COCO, four splittings, and a part of ReferIt whose pictures have some of the same numbers."
    root = tmp_path_factory.mktemp('data')
    for dataset in FOLDERS: write_set(root, dataset, lambda p: 1 + p % 3)
    (root/'referit').mkdir()
    names = [str(n) for n in NUMBERS[20:24]]
    write = lambda name, value: (root/'referit'/f'referit_{name}.json').write_text(json.dumps(value))
    write('imsize', {f'{n}.jpg': [60, 40] for n in names}), write('imcrop', {f'{n}.jpg': [f'{n}_1'] for n in names})
    for split, some in (('train', names[:1]), ('val', names[1:2]), ('test', names[2:])): write(f'query_{split}', {f'{n}_1': ['sky'] for n in some})
    return root


PLANTED = [21, 27, 29, 33, 51, 61, 3]      # pictures of val and test splits, and one of train


def found_by(root, training, out, **how):
    "{split: which pictures were found}"
    find_leaks((str(training),), data_root=str(root), out=str(out), **how)
    found = json.loads((out/'leaks.json').read_text())['pictures']
    return {split: sorted(NUMBERS.index(n) for n in numbers) for split, numbers in found.items()}


EXACTLY = {'unc val': [21, 27], 'unc testA': [29], 'unc+ val': [21, 27], 'unc+ testB': [33], 'gref val': [51],
           'gref-umd val': [51], 'gref-umd test': [61], 'referit val': [], 'referit test': []}


def coco_names(): return [f'COCO_train2014_{NUMBERS[p]:012d}' for p in PLANTED]
def more(names): return [*names, 'COCO_train2014_000000999999.jpg', 'cats.jpg']


LISTS = {
    'a.txt': lambda: '\n'.join(str(NUMBERS[p]) for p in PLANTED) + '\n999999\n',
    'b.txt': lambda: '\n'.join(more(f'{n}.jpg' for n in coco_names())),
    'c.csv': lambda: 'row,picture,width\n' + '\n'.join(f'{k},/data/{n}.jpg,640' for k, n in enumerate(coco_names())),
    'd.json': lambda: json.dumps([NUMBERS[p] for p in PLANTED]),
    'e.json': lambda: json.dumps([dict(image_id=NUMBERS[p], sentence='a cat') for p in PLANTED]),
    'f.json': lambda: json.dumps(dict(images=[dict(id=NUMBERS[p], file_name=f'{NUMBERS[p]:012d}.jpg') for p in PLANTED], annotations=[])),
    'g.jsonl': lambda: '\n'.join(json.dumps(dict(image=f'train2017/{NUMBERS[p]:012d}.jpg')) for p in PLANTED),
    'h.txt': lambda: '\n'.join(f'https://images.example/train2017/{NUMBERS[p]:012d}.jpg' for p in PLANTED),
    'j.json': lambda: json.dumps([dict(image_id=n, split='train' if n in [NUMBERS[p] for p in PLANTED] else 'val') for n in NUMBERS]),
    'k.json': lambda: '\ufeff' + json.dumps(dict(info=dict(year=2014), images=[dict(id=NUMBERS[p]) for p in PLANTED], annotations=[])),
    'i.txt': lambda: '\n'.join(f'{n}_{k}.jpg' for k, n in enumerate(coco_names()))}


@pytest.mark.parametrize('name', LISTS)
def test_planted_pictures_are_found_exactly(root, name, tmp_path):
    (tmp_path/name).write_text(LISTS[name]())
    assert found_by(root, tmp_path/name, tmp_path) == EXACTLY


@pytest.mark.parametrize('indent', [None, 1])
def test_annotations_of_coco_may_be_large(root, tmp_path, monkeypatch, indent):
    "COCO's instances_train2017.json has 448 MB. Of such a file the images are read, and what follows them is not even looked at."
    monkeypatch.setattr('rrn.experiments.leaks.MAX_OBJECT', 500)
    images = [dict(id=NUMBERS[p], file_name=f'{NUMBERS[p]:012d}.jpg', license=3) for p in PLANTED]
    text = json.dumps(dict(info=dict(year=2017), licenses=[dict(id=3)], images=images, annotations=[dict(id=1, image_id=NUMBERS[22])]), indent=indent)
    (tmp_path/'a.json').write_text(text[:-9] + 'no JSON')
    assert len(text) > 500 and found_by(root, tmp_path/'a.json', tmp_path) == EXACTLY
    (tmp_path/'a.json').write_text(text[:text.index('annotations') - 9])
    with pytest.raises(RRNError, match='not valid JSON'): read_training(tmp_path/'a.json')
    lines = '\n'.join(json.dumps(dict(images=['a.jpg'], image_id=NUMBERS[p])) for p in PLANTED * 9)
    (tmp_path/'a.jsonl').write_text(lines)
    assert len(lines) > 500 and found_by(root, tmp_path/'a.jsonl', tmp_path) == EXACTLY


def test_numbers_of_referit_are_another_count(root, tmp_path):
    "A list of plain numbers is COCO's, or ReferIt's if it is said so; both have pictures of these numbers."
    (tmp_path/'a.txt').write_text('\n'.join(f'{NUMBERS[p]}.jpg' for p in (21, 22)))
    assert found_by(root, tmp_path/'a.txt', tmp_path)['unc val'] == [21, 22]
    found = found_by(root, tmp_path/'a.txt', tmp_path, numbers='referit')
    assert found == dict.fromkeys(EXACTLY, []) | {'referit val': [21], 'referit test': [22]}


def test_share_of_sentences_by_hand(root, tmp_path):
    "Val of unc has pictures 20..27 with 1 + p % 3 sentences each, 17 in all; pictures 21 and 27 have 1 each. gref val: 51 has 1 of 3 + 1 + 2 + 2."
    (tmp_path/'a.txt').write_text(LISTS['a.txt']())
    page = find_leaks((str(tmp_path/'a.txt'),), data_root=str(root))
    counts = [1 + p % 3 for p in range(20, 28)]
    assert f'| unc val | 2 | 8 | 2 | {sum(counts)} | {100 * 2 / sum(counts):.1f} |' in page
    assert f'| gref val | 1 | 4 | 1 | 8 | {100 / 8:.1f} |' in page and '| referit test | 0 | 2 | 0 | 2 | 0.0 |' in page


def test_the_sets_among_themselves(root):
    "Google's split of RefCOCOg shares pictures with itself, and with val and test of the others; the others' own splits do not."
    page = find_leaks(data_root=str(root))
    own = page[page.index('own training splits'):]
    for line in ('| gref train | gref val | 3 | 4 |', '| gref train | unc val | 8 | 8 |', '| gref train | unc testA | 2 | 4 |', '| gref train | gref-umd val | 2 | 3 |',
                 '| gref-umd train | unc val | 4 | 8 |', '| gref-umd train | unc+ val | 4 | 8 |'):
        assert line in own, line
    assert '| referit trainval |' not in own, 'val is a part of it'
    assert '| unc train |' not in own and '| unc+ train |' not in own, 'these two share no picture with any val or test'
    assert 'Trained on' not in page


def test_a_split_by_name(root, tmp_path):
    assert found_by(root, 'gref:train', tmp_path)['unc testA'] == [28, 29]
    with pytest.raises(RRNError, match='unc:train, unc:val'): read_training('unc:trian', splits=all_splits(root)[0])


def test_what_is_not_here_is_said(root, tmp_path):
    (tmp_path/'refcoco').mkdir()
    for name in ('refs(unc).p', 'instances.json'): (tmp_path/'refcoco'/name).write_bytes((root/'refcoco'/name).read_bytes())
    page = find_leaks(data_root=str(tmp_path))
    assert 'Nothing is said of these: unc+ is not here; gref is not here; ' in page and 'unc is a subset' in page
    with pytest.raises(RRNError, match='no folder'): find_leaks(data_root=str(tmp_path/'nowhere'))
    (tmp_path/'empty').mkdir()
    with pytest.raises(RRNError, match='none of unc, .* is in .*unc is not here'): find_leaks(data_root=str(tmp_path/'empty'))
    (tmp_path/'refcoco+').mkdir()
    (tmp_path/'refcoco+'/'refs(unc).p').write_bytes(b'no pickle')
    assert 'unc+ cannot be read: ' in find_leaks(data_root=str(tmp_path)), 'damage in one set does not hide the others'
    with pytest.raises(RRNError, match='refcoco[+]'): find_leaks(data_root=str(tmp_path), datasets=('unc', 'unc+'))
    (tmp_path/'a.txt').write_text('cats\ndogs\n')
    with pytest.raises(RRNError, match=r"names no picture; its first lines are \['cats', 'dogs'\]"): find_leaks((str(tmp_path/'a.txt'),), data_root=str(tmp_path))


# ---- by look ----------------------------------------------------------------------------------------------------------

def scene(seed, size=(40, 60)):
    "A picture of soft colours."
    small = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def test_renamed_pictures_are_found_exactly(root, tmp_path):
    "Copies of other names, sizes, formats and qualities; turned by Exif; beside strangers and a broken file."
    place = root/'images'/'mscoco'/'images'/'train2014'
    place.mkdir(parents=True)
    for p in range(20, 64): scene(p, (200, 300)).save(place/f'COCO_train2014_{NUMBERS[p]:012d}.jpg', quality=92)
    mine = tmp_path/'mine'
    (mine/'deep').mkdir(parents=True)
    original = lambda p: Image.open(place/f'COCO_train2014_{NUMBERS[p]:012d}.jpg')
    original(21).save(mine/'a.png')
    original(27).resize((150, 100)).save(mine/'b.jpg', quality=50)
    original(29).resize((224, 224)).save(mine/'c.webp', quality=80)
    original(33).convert('L').save(mine/'deep'/'d.jpg')
    exif = Image.Exif(); exif[274] = 6
    original(51).transpose(Image.Transpose.ROTATE_90).save(mine/'e.jpg', exif=exif)
    original(61).point(lambda v: int(v * .9)).save(mine/'f.jpg')
    for seed in range(100, 108): scene(seed).save(mine/f'{seed}.jpg')
    (mine/'broken.jpg').write_bytes(b'nothing')
    assert found_by(root, mine, tmp_path) == EXACTLY
    pairs = json.loads((tmp_path/'leaks.json').read_text())['alike']
    assert sorted(p['file'] for p in pairs) == ['a.png', 'b.jpg', 'c.webp', 'd.jpg', 'e.jpg', 'f.jpg']
    assert 'By look: 14 of 15 pictures in mine and 23 of 26 ' in (tmp_path/'leaks.md').read_text()


def test_pairs_are_all_that_are_near():
    "Against counting bit by bit, over more rows than a batch."
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, (n, 4), dtype=np.uint64) for n in (700, 30))
    a[300] = b[7]
    a[650] = b[9] ^ np.array([1, 0, 2**62, 0], np.uint64)
    assert near_pairs(a, b, 2) == [(300, 7, 0), (650, 9, 2)]


# ---- scores -----------------------------------------------------------------------------------------------------------

def test_scores_with_and_without(root, tmp_path):
    "A system that is right only where it was trained on the picture: 100 on the leaked ones, 0 without."
    samples = open_dataset('unc', root, check_images=False).samples('val')
    (tmp_path/'masks').mkdir()
    known = {NUMBERS[21], NUMBERS[27]}
    for s in samples:
        mask = s.mask.decode() if s.image_id in known else ~s.mask.decode()
        Image.fromarray(mask).save(tmp_path/'masks'/f'{s.sent_id}.png')
    page = score_predictions((str(tmp_path/'masks'),), dataset='unc', data_root=str(root), key='sent_id', folder=str(tmp_path), draws=50)
    (tmp_path/'a.txt').write_text(LISTS['a.txt']())
    text = find_leaks((str(tmp_path/'a.txt'),), data_root=str(root), scores=str(page.with_suffix('.json')))
    lines = [line.split(' | ') for line in text.splitlines() if line.startswith('| paper | ')]
    assert [line[1] for line in lines] == ['all', 'without', 'trained on']
    assert [line[3].split()[0] for line in lines] == [f'{100 * 2 / len(samples):.1f}', '0.0', '100.0']
    assert [line[-1].strip(' |') for line in lines] == [str(len(samples)), str(len(samples) - 2), '2']
    with pytest.raises(RRNError, match='is no score file'): find_leaks(data_root=str(root), scores=str(root/'refcoco'/'instances.json'))


# ---- real numbers -----------------------------------------------------------------------------------------------------

def test_real_lists(shared, tmp_path):
    "RefCOCO's testA and RefCOCO+'s testA are about the same pictures, and RefCOCOg's test about others of them."
    read = lambda name: [x['image_id'] for x in json.loads(gzip.open(shared/'text'/f'{name}.json.gz').read())['items']]
    (tmp_path/'a.json').write_text(json.dumps(read('refcoco_unc_testA')))
    training = read_training(tmp_path/'a.json')
    assert len(training.known) == 750 and not training.unread
    assert {PictureId('coco', n) for n in read('refcoco+_unc_testA')} == training.known
    assert picture_named('COCO_train2014_000000580957_4.jpg') == PictureId('coco', 580957)
    page = find_leaks((str(tmp_path/'a.json'),), data_root=str(shared/'data'/'refcoco-real-mini'))
    assert '| unc testA | 2 | 2 | 18 | 18 | 100.0 |' in page and '| unc val | 0 | 5 | 0 | 45 | 0.0 |' in page


def test_real_photographs_under_other_names(shared, tmp_path):
    "Smaller copies of photographs of val and test splits, renamed, among others: each is found as what it is, and nothing else."
    names = sorted((shared/'data'/'coco-mini'/'images'/'mscoco'/'images'/'train2014').iterdir())
    root = shared/'data'/'refcoco-real-mini'
    evaluated = {p.id for s in all_splits(root)[0] for p in s.pictures}
    mine = {f'photo{n}.jpg': path for n, path in enumerate(names) if n < 60 or picture_named(path.name).id in evaluated}
    (tmp_path/'mine').mkdir()
    for name, path in mine.items(): (tmp_path/'mine'/name).write_bytes(path.read_bytes())
    find_leaks((str(tmp_path/'mine'),), data_root=str(root), out=str(tmp_path), workers=1)
    found = {(a['file'], a['picture']) for a in json.loads((tmp_path/'leaks.json').read_text())['alike']}
    assert found == {(name, picture_named(path.name).id) for name, path in mine.items() if picture_named(path.name).id in evaluated}
    assert len(found) == 38 and len(mine) > 80


def test_who_stops_reading_gets_no_traceback():
    "As in `rrn leaks | head -1`: one mechanism for all commands, so any command will do."
    script = "from rrn.common.command import as_command\n@as_command('x')\ndef main():\n    'x'\n    for n in range(200_000): print(n)\nraise SystemExit(main([]))"
    with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == '0\n'
        p.stdout.close()
        assert p.stderr.read() == '' and p.wait() == 128 + signal.SIGPIPE


def test_a_short_page_that_nobody_reads():
    "It breaks only where it is flushed."
    script = "import sys, time\nfrom rrn.common.command import as_command\n@as_command('x')\ndef main():\n    'x'\n    time.sleep(.5)\n    print('a page')\nraise SystemExit(main([]))"
    with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.close()
        assert p.stderr.read() == '' and p.wait() == 128 + signal.SIGPIPE


def test_without_a_folder_the_projects_data_are_meant(monkeypatch, tmp_path):
    "Wherever one stands, as with the other commands."
    from rrn.common.core import repo_root
    from rrn.data.doctor import data_folder
    monkeypatch.chdir(tmp_path)
    (tmp_path/'data').mkdir()
    looked = []
    monkeypatch.setattr('rrn.experiments.leaks.all_splits', lambda root, datasets: looked.append(root) or ([], {}))
    with pytest.raises(RRNError, match='none of'): find_leaks()
    assert looked == [repo_root()/'data'] == [data_folder('unc', '')]
