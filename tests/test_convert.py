"Made sentences read back by a reader of its own, own data in all its shapes, and the way there and back."
import json, os, pickle, random, re, stat
from collections import Counter, defaultdict
import numpy as np
import pycocotools.mask as coco
import pytest
from PIL import Image
from rrn.data import convert as c
from rrn.data.convert import (convert, generate, main, Object, open_own, Phrase, read_sentences, referent, speakable,
                              split_images, View, views_of)
from rrn.common.core import read_json, RRNError, write_json
from rrn.data.doctor import examine
from rrn.common.untrusted import safe_load
from rrn.data.refer import IMAGE_FOLDER, Instances, open_refer, read_instances, read_refer
from rrn.data.datasets import open_dataset

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')

# ---- a reader of its own ---------------------------------------------------------------------------------------------------

class Seen:
    "An object as the reader sees it: drawn by pycocotools, measured in pixels."
    def __init__(self, annotation, image, name):
        H, W = image['height'], image['width']
        rle = coco.frPyObjects(annotation['segmentation'], H, W)
        rle = coco.merge(rle) if isinstance(rle, list) else rle
        rows, columns = np.nonzero(coco.decode(rle))
        x, y, w, h = coco.toBbox(rle)
        self.id, self.name, self.crowd, self.side = annotation['id'], name, annotation.get('iscrowd'), max(H, W)
        self.area, self.points = len(rows), ()
        if len(rows): self.points = ((columns.mean() + .5, rows.mean() + .5, len(rows)), (x + w/2, y + h/2, w*h))     # (x, y, size) of mask and of box

def only(found):
    assert len(found) == 1, [f.id for f in found]
    return found[0]

def nearest(things, measure, apart):
    "The thing with the smallest measure by mask and by box, which has to be `apart` from the next by both."
    picks = set()
    for v in (0, 1):
        a, b, *_ = sorted(things, key=lambda t: measure(t.points[v]))
        assert apart(measure(a.points[v]), measure(b.points[v]), a.side)
        picks.add(a.id)
    assert len(picks) == 1
    return next(t for t in things if t.id in picks)

def stands(t, anchor, relation, v):
    dx, dy = t.points[v][0] - anchor.points[v][0], t.points[v][1] - anchor.points[v][1]
    return {'left of': -dx >= abs(dy), 'right of': dx >= abs(dy), 'above': -dy >= abs(dx), 'below': dy >= abs(dx)}[relation] and (dx or dy)

MEASURES = {'left': lambda p: p[0], 'right': lambda p: -p[0], 'top': lambda p: p[1], 'bottom': lambda p: -p[1]}

def understood(sentence, seen):
    "The object that a sentence means, from its English; every doubt is an AssertionError."
    names = sorted({s.name for s in seen}, key=len, reverse=True)
    noun = '(' + '|'.join(map(re.escape, names)) + ')'
    def of_class(name):
        assert not any(s.name == name and s.crowd for s in seen), f'{name} has a crowd'
        assert not any(s.name.endswith(' ' + name) for s in seen), f'{name} is the end of another name'
        return [s for s in seen if s.name == name and s.points]
    if m := re.fullmatch(rf'(?:the )?(?:only )?{noun}', sentence): return only(of_class(m[1]))
    if m := re.fullmatch(rf'(?:the )?{noun} (?:that is )?(?:to the )?(left of|right of|above|below) the {noun}', sentence):
        anchor = only(of_class(m[3]))
        found = [{t.id for t in of_class(m[1]) if stands(t, anchor, m[2], v)} for v in (0, 1)]
        assert found[0] == found[1] and m[1] != m[3]
        return only([t for t in of_class(m[1]) if t.id in found[0]])
    if m := re.fullmatch(rf'(?:the )?(large|largest|small|smallest) {noun}', sentence):
        sign = -1 if m[1].startswith('large') else 1
        return nearest(of_class(m[2]), lambda p: float(p[2]) ** sign, lambda a, b, side: b >= 1.6 * a * (1 - 1e-9))
    m = re.fullmatch(rf'(left|right|top|bottom) {noun}', sentence) or re.fullmatch(rf'{noun} (?:on|at) the (left|right|top|bottom)', sentence) \
        or re.fullmatch(rf'the (left|right|top|bottom)most {noun}', sentence)
    assert m, f'not understood: {sentence}'
    side, name = m.groups() if m[1] in MEASURES else m.groups()[::-1]
    return nearest(of_class(name), MEASURES[side], lambda a, b, length: b - a >= .1 * length - 1e-6)

def read_back(data, said):
    "Every sentence has to mean its object; the number of sentences of each first and last word's kind."
    names, images, seen = {k['id']: ' '.join(k['name'].lower().split()) for k in data['categories']}, {i['id']: i for i in data['images']}, {}
    by_image, image_of = defaultdict(list), {a['id']: a['image_id'] for a in data['annotations']}
    for a in data['annotations']: by_image[a['image_id']].append(a)
    for s in said:
        image = image_of[s.annotation]
        if image not in seen: seen[image] = [Seen(a, images[image], names[a['category_id']]) for a in by_image[image]]
        found = understood(s.sentence, seen[image])
        assert found.id == s.annotation, (image, s.sentence)
        assert not found.crowd and found.area >= .01 * images[image]['height'] * images[image]['width']

def part_of(data, images):
    return data | dict(images=[i for i in data['images'] if i['id'] in images], annotations=[a for a in data['annotations'] if a['image_id'] in images])

def indexed(data):
    by_id = lambda key: {e['id']: e for e in data[key]}
    return Instances(by_id('images'), by_id('annotations'), {k['id']: k['name'] for k in data['categories']}, Counter())

def rectangle(x, y, w, h): return [[x, y, x + w, y, x + w, y + h, x, y + h]]

def random_scene(rng, id, W=127, H=90):
    "A picture with up to nine rectangles and crowds of six classes, two of them called alike."
    image = dict(id=id, height=H, width=W, file_name=f'{id}.png')
    sizes = [rng.randint(2, 40) for _ in range(rng.randint(1, 9))]
    return image, [dict(id=100*id + k, image_id=id, category_id=rng.choice([1, 1, 2, 2, 3, 4, 5, 6]), iscrowd=int(rng.random() < .05),
                        segmentation=rectangle(rng.uniform(-9, W - 9), rng.uniform(-9, H - 9), s, s * rng.uniform(.5, 2))) for k, s in enumerate(sizes)]

CATEGORIES = [dict(id=i, name=n) for i, n in enumerate(['zebra', 'Ball', 'bear', 'teddy bear', 'traffic light', 'person'], 1)]

def synthetic(n, seed=0):
    rng, images, annotations = random.Random(seed), [], []
    for id in range(1, n + 1):
        image, objects = random_scene(rng, id)
        images.append(image); annotations += objects
    return dict(images=images, annotations=annotations, categories=CATEGORIES)

# ---- made sentences --------------------------------------------------------------------------------------------------------

def test_every_sentence_about_synthetic_pictures_is_understood():
    data = synthetic(500)
    said = generate(indexed(data), most=9, progress=False)
    read_back(data, said)
    text = ' | '.join(s.sentence for s in said)
    for word in ('only', 'left', 'right', 'top', 'bottom', 'large', 'small', 'left of', 'right of', 'above', 'below', 'teddy bear', 'traffic light'): assert word in text, word
    assert len(said) > 1000 and max(Counter(s.annotation for s in said).values()) > 3

def test_every_sentence_about_photographs_is_understood(shared):
    data = read_json(shared/'data'/'coco-mini'/'refcoco'/'instances.json')
    chosen = set(random.Random(3).sample([i['id'] for i in data['images']], 90)) | {a['image_id'] for a in data['annotations'] if a['iscrowd']}
    data = part_of(data, chosen)
    said = generate(indexed(data), seed=3, progress=False)
    read_back(data, said)
    assert len(said) > 300 and len({s.sentence for s in said}) > 100

def test_the_reader_notices_a_wrong_target():
    data = synthetic(40)
    said = generate(indexed(data), progress=False)
    noticed = 0
    for s in said:
        others = [a['id'] for a in data['annotations'] if a['image_id'] == s.annotation // 100 and a['id'] != s.annotation]
        for other in others:
            with pytest.raises(AssertionError): read_back(data, [c.Expression(other, s.sentence)])
            noticed += 1
    assert noticed > 100

def thing(id, name, x, y, area=.1, box=None):
    view = View(x, y, area)
    return Object(id, name, view, box or view)

@pytest.mark.parametrize('gap, named', [(.099, False), (.101, True)])
def test_the_margin_of_a_side(gap, named):
    pair = [thing(1, 'zebra', .5, .5), thing(2, 'zebra', .5 + gap, .5)]
    assert (referent(Phrase('zebra', 'side', 'left'), pair) is pair[0]) == named and (referent(Phrase('zebra', 'side', 'right'), pair) is pair[1]) == named
    assert referent(Phrase('zebra', 'side', 'top'), pair) is None

@pytest.mark.parametrize('area, named', [(.159, False), (.161, True)])
def test_the_ratio_of_sizes(area, named):
    pair = [thing(1, 'zebra', .2, .5, .1), thing(2, 'zebra', .8, .5, area)]
    assert (referent(Phrase('zebra', 'size', 'large'), pair) is pair[1]) == named and (referent(Phrase('zebra', 'size', 'small'), pair) is pair[0]) == named

def test_mask_and_box_have_to_agree():
    odd = thing(1, 'zebra', .2, .5, .1, View(.7, .5, .1))
    pair = [odd, thing(2, 'zebra', .5, .5)]
    assert referent(Phrase('zebra', 'side', 'left'), pair) is None and referent(Phrase('zebra', 'side', 'right'), pair) is None

def test_a_rival_of_three_pixels_is_a_rival():
    image = dict(id=1, height=90, width=127, file_name='1.png')
    data = dict(images=[image], categories=CATEGORIES, annotations=[dict(id=1, image_id=1, category_id=1, iscrowd=0, segmentation=rectangle(40, 20, 40, 40)),
                                                                    dict(id=2, image_id=1, category_id=1, iscrowd=0, segmentation=rectangle(2, 35, 3, 1))])
    said = generate(indexed(data), most=9, progress=False)
    assert said and {s.annotation for s in said} == {1} and not any('left' in s.sentence or s.sentence in ('zebra', 'the zebra', 'the only zebra') for s in said)

def test_no_target_and_no_anchor_from_a_crowd():
    image = dict(id=1, height=90, width=127, file_name='1.png')
    make = lambda crowd: dict(images=[image], categories=CATEGORIES, annotations=[
        dict(id=1, image_id=1, category_id=1, iscrowd=0, segmentation=rectangle(5, 20, 20, 20)), dict(id=2, image_id=1, category_id=1, iscrowd=0, segmentation=rectangle(95, 20, 20, 20)),
        dict(id=3, image_id=1, category_id=2, iscrowd=0, segmentation=rectangle(50, 20, 20, 20)),
        dict(id=4, image_id=1, category_id=crowd, iscrowd=1, segmentation={'size': [90, 127], 'counts': [90*120, 90*7]})])
    said = {s.sentence for s in generate(indexed(make(2)), most=9, progress=False)}
    assert said and not any('ball' in s for s in said)
    assert not any(s.annotation in (1, 2) for s in generate(indexed(make(1)), most=9, progress=False))
    assert any('left of the ball' in s.sentence for s in generate(indexed(make(3)), most=9, progress=False))

def test_names_that_end_in_another():
    make = lambda *ids: [dict(category_id=i) for i in ids]
    names = {1: 'dog', 2: 'hot dog', 3: 'bulldog', 4: ''}
    assert speakable(make(1, 2, 3, 4), names) == {'hot dog', 'bulldog'} and speakable(make(1, 3), names) == {'dog', 'bulldog'}

def test_two_categories_of_one_name_are_rivals():
    data = synthetic(60, seed=4)
    data['categories'] = [k | dict(name='zebra') if k['id'] == 2 else k for k in CATEGORIES]
    read_back(data, generate(indexed(data), progress=False))

def test_an_annotation_that_cannot_be_drawn_is_named():
    data = synthetic(3); data['annotations'][1]['segmentation'] = [[1, 2]]
    with pytest.raises(RRNError, match=f"annotation {data['annotations'][1]['id']}"): generate(indexed(data), progress=False)

def test_views_are_measured_in_longer_sides():
    mask = np.zeros((200, 100), bool); mask[100:150, 50:70] = True
    m, b = views_of(mask)
    assert m == b == View(.3, .625, .05)

# ---- the whole way ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def own(tmp_path):
    "A folder with labels.json and photos of 30 synthetic pictures."
    data = synthetic(30)
    (tmp_path/'photos').mkdir()
    for i in data['images']:
        Image.fromarray(np.random.default_rng(i['id']).integers(0, 255, (i['height'], i['width'], 3), dtype=np.uint8)).save(tmp_path/'photos'/i['file_name'])
    write_json(tmp_path/'labels.json', data)
    return tmp_path

def converted(own, out='out', **more): return convert(own/'labels.json', own/'photos', own/out, progress=False, **more)

def change(own, function):
    data = read_json(own/'labels.json'); function(data); write_json(own/'labels.json', data)

def all_samples(dataset): return [s for split in dataset.splits for s in dataset.samples(split)]

def clean(own, *allowed):
    assert sorted(p.name for p in own.iterdir()) == sorted(['labels.json', 'photos', *allowed])

def test_there_and_back(own):
    dataset, data = converted(own), read_json(own/'labels.json')
    samples, annotations = all_samples(dataset), {a['id']: a for a in data['annotations']}
    assert sorted((s.sent_id, s.sentence) for s in samples) == [(s.sent_id, s.sentence) for s in read_refer(own/'out', 'refcocog', 'umd')]
    for s in samples:
        a = annotations[int(s.mask.name.split()[1])]
        expected = coco.decode(coco.merge(coco.frPyObjects(a['segmentation'], 90, 127))).astype(bool)
        assert (s.mask.decode() == expected).all() and s.image.name == f"COCO_train2014_{a['image_id']:012d}.png"
        with Image.open(s.image) as picture, Image.open(own/'photos'/f"{a['image_id']}.png") as original: assert (np.asarray(picture) == np.asarray(original)).all()
        rivals = [b for b in data['annotations'] if b['image_id'] == a['image_id'] and b['category_id'] == a['category_id'] and not b['iscrowd']]
        assert s.distractors == len(rivals) - 1
    read_back(data, [c.Expression(int(s.mask.name.split()[1]), s.sentence) for s in samples])
    splits = {split: {s.image_id for s in dataset.samples(split)} for split in dataset.splits}
    assert not splits['train'] & splits['val'] and not splits['train'] & splits['test'] and not splits['val'] & splits['test']
    clean(own, 'out')

def test_the_doctor_and_the_published_names_accept_it(own):
    converted(own)
    assert examine('own', own/'out', progress=False).status == 0
    assert examine('gref-umd', own/'out', progress=False).status == 0
    assert open_dataset('own', own/'out').note == 'converted'
    assert open_refer('gref-umd', own/'out').splits == ['train', 'val', 'test']

def test_the_pickle_is_of_protocol_2_and_plain(own):
    converted(own)
    raw = (own/'out'/'refcocog'/'refs(umd).p').read_bytes()
    assert raw[:2] == b'\x80\x02' and safe_load(own/'out'/'refcocog'/'refs(umd).p') == pickle.loads(raw)
    entry = safe_load(own/'out'/'refcocog'/'refs(umd).p')[0]
    assert set(entry) == {'ref_id', 'ann_id', 'image_id', 'category_id', 'split', 'file_name', 'sentences', 'sent_ids'}
    assert set(entry['sentences'][0]) == {'raw', 'sent', 'tokens', 'sent_id'} and (own/'out'/IMAGE_FOLDER/entry['file_name']).is_file()

def test_the_same_seed_gives_the_same_set(own):
    texts = lambda d: [(s.split, s.image_id, s.ref_id, s.sentence) for s in all_samples(d)]
    assert texts(converted(own)) == texts(converted(own, 'again')) != texts(converted(own, 'other', seed=1))

def test_real_photographs_there_and_back(shared, tmp_path):
    mini = shared/'data'/'coco-mini'
    data = read_json(mini/'refcoco'/'instances.json')
    write_json(tmp_path/'labels.json', part_of(data, set(random.Random(5).sample([i['id'] for i in data['images']], 12))))
    dataset = convert(tmp_path/'labels.json', mini/IMAGE_FOLDER, tmp_path/'out', progress=False)
    original = read_instances(mini/'refcoco'/'instances.json')
    for s in all_samples(dataset):
        a = original.annotations[int(s.mask.name.split()[1])]
        rle = coco.frPyObjects(a['segmentation'].read('the original'), s.height, s.width)
        assert (s.mask.decode() == coco.decode(coco.merge(rle) if isinstance(rle, list) else rle).astype(bool)).all()
        assert s.image.read_bytes() == (mini/IMAGE_FOLDER/original.images[a['image_id']]['file_name']).read_bytes()
    assert examine('own', tmp_path/'out', progress=False).status == 0

# ---- own sentences ---------------------------------------------------------------------------------------------------------

def written(own, text, name='said.csv'):
    (own/name).write_text(text, encoding='utf-8')
    return own/name

def test_own_sentences(own):
    file = written(own, 'annotation_id,sentence\n100,"Left  one, please!"\n100,NA\n200,null\n')
    samples = all_samples(converted(own, sentences=file))
    assert sorted(s.sentence for s in samples) == ['left one, please!', 'na', 'null'] and len({s.ref_id for s in samples}) == 2
    assert {s.image_id for s in samples} == {1, 2} and len(list((own/'out'/IMAGE_FOLDER).iterdir())) == 2
    refs = safe_load(own/'out'/'refcocog'/'refs(umd).p')
    assert refs[0]['sentences'][0]['raw'] == 'Left one, please!' and refs[0]['sentences'][0]['tokens'] == ['left', 'one', 'please']
    assert {a['image_id'] for a in read_json(own/'out'/'refcocog'/'instances.json')['annotations']} == {1, 2}      # with all rivals

def test_own_splits(own):
    file = written(own, 'ann_id,sentence,split\n100,a,train\n200,b,testA\n300,c,train\n')
    dataset = converted(own, sentences=file, layout='refcoco', by='unc')
    assert {split: len(dataset.samples(split)) for split in dataset.splits} == {'train': 2, 'testA': 1} and (own/'out/refcoco/refs(unc).p').is_file()
    file = written(own, 'ann_id,sentence,split\n100,a,train\n101,b,val\n')
    with pytest.raises(RRNError, match='Picture 1 is in split train and in val'): converted(own, 'leak', sentences=file)
    clean(own, 'out', 'said.csv')

def test_sentences_as_json(own):
    write_json(own/'said.json', [dict(annotation_id=100, sentence='a b'), dict(ann_id='200', sentence='c')])
    assert len(all_samples(converted(own, sentences=own/'said.json'))) == 2
    for bad in ([], {}, ['x'], [dict(ann_id=True, sentence='a')], [dict(ann_id=1.5, sentence='a')], [dict(ann_id=100)], [dict(ann_id=100, sentence=7)], [dict(ann_id=1, sentence='a', split=3)]):
        write_json(own/'said.json', bad)
        with pytest.raises(RRNError, match='said.json'): read_sentences(own/'said.json')

@pytest.mark.parametrize('raw', [b'', b'\xff\xfe\x00', b'ann_id,sentence\n"unclosed', b'ann_id,sentence\n1,a,b,c\n1,a\n', b'ann_id\n7\n', b'ann_id,sentence\n-1,a\n', 'ann_id,sentence\n１,a\n'.encode()])
def test_sentences_that_are_none(own, raw):
    (own/'said.csv').write_bytes(raw)
    with pytest.raises(RRNError, match='said.csv'): read_sentences(own/'said.csv')

def test_a_sentence_about_nothing(own):
    with pytest.raises(RRNError, match='annotation 77777'): converted(own, sentences=written(own, 'ann_id,sentence\n100,a\n77777,b\n'))
    with pytest.raises(RRNError, match='are missing'): converted(own, sentences=own/'nowhere.csv')
    clean(own, 'said.csv')

# ---- own pictures and annotations ------------------------------------------------------------------------------------------

def test_links_share_and_copies_do_not(own):
    converted(own); converted(own, 'linked', link=True)
    name = 'COCO_train2014_000000000001.png'
    assert (own/'linked'/IMAGE_FOLDER/name).samefile(own/'photos'/'1.png') and not (own/'out'/IMAGE_FOLDER/name).samefile(own/'photos'/'1.png')

def test_where_links_are_not_possible_it_copies(own, monkeypatch):
    def refuse(*a, **k): raise OSError('other disk')
    monkeypatch.setattr(os, 'link', refuse)
    converted(own, link=True)
    assert (own/'out'/IMAGE_FOLDER/'COCO_train2014_000000000001.png').read_bytes() == (own/'photos'/'1.png').read_bytes()

def test_a_linked_picture_that_is_a_symbolic_link_becomes_a_file(own):
    (own/'photos'/'1.png').rename(own/'photos'/'real.png'); (own/'photos'/'1.png').symlink_to('real.png')
    converted(own, link=True)
    assert not (own/'out'/IMAGE_FOLDER/'COCO_train2014_000000000001.png').is_symlink()

def test_names_may_be_kept(own):
    converted(own, keep_names=True)
    assert (own/'out'/IMAGE_FOLDER/'1.png').is_file() and examine('own', own/'out', progress=False).status == 0

def test_subfolders_disappear_or_are_refused_if_names_are_kept(own):
    (own/'photos'/'a').mkdir(); (own/'photos'/'1.png').rename(own/'photos'/'a'/'1.png')
    change(own, lambda d: d['images'][0].update(file_name='a/1.png'))
    converted(own)
    with pytest.raises(RRNError, match='leads out of its folder'): converted(own, 'kept', keep_names=True)

def test_missing_sizes_and_marks_are_made_good(own):
    before = converted(own)
    def forget(data):
        for i in data['images']: del i['height'], i['width']
        for a in data['annotations']:
            if not a['iscrowd']: del a['iscrowd']
    change(own, forget)
    texts = lambda d: [(s.sentence, s.height, s.width) for s in all_samples(d)]
    assert texts(converted(own, 'again')) == texts(before)

FAULTS = {
    'image 1: .* is for|annotations are for 127 x 90': lambda d: d['images'][0].update(height=127, width=90),
    'image 1 has file name': lambda d: d['images'][0].update(file_name='../labels.json'),
    'has file name': lambda d: d['images'][0].update(file_name='/etc/passwd'),
    'is missing': lambda d: d['images'][0].update(file_name='none.png'),
    'no usable .file_name': lambda d: d['images'][0].pop('file_name'),
    'id 1 is used 2 times in images': lambda d: d['images'].append(d['images'][0]),
    'id 100 is used 2 times in annotations': lambda d: d['annotations'].append(d['annotations'][0]),
    'id 2 is used 2 times in categories': lambda d: d['categories'].append(dict(id=2, name='x')),
    'about image 1, which is not in images': lambda d: d['images'].pop(0),
    'category_id=77': lambda d: d['annotations'][0].update(category_id=77),
    'category_id=None': lambda d: d['annotations'][0].pop('category_id'),
    "no usable 'image_id'": lambda d: d['annotations'][0].update(image_id='1'),
    "no usable 'id'": lambda d: d['annotations'][0].update(id=None),
    'has no polygons': lambda d: d['annotations'][0].update(segmentation=[]),
    'category 1 has no usable': lambda d: d['categories'][0].pop('name'),
    "no usable 'images'": lambda d: d.pop('images'),
    'cannot be part of a file name': lambda d: [d['images'][0].update(id=-1), [a.update(image_id=-1) for a in d['annotations'] if a['image_id'] == 1]],
    'No object can be named': lambda d: [a.update(iscrowd=1) for a in d['annotations']]}

@pytest.mark.parametrize('message', FAULTS)
def test_annotations_that_do_not_fit(own, message):
    change(own, FAULTS[message])
    with pytest.raises(RRNError, match=message): converted(own)
    clean(own)

@pytest.mark.parametrize('content', [b'', b'junk', b'\x89PNG\r\n\x1a\n'])
def test_pictures_that_are_none(own, content):
    (own/'photos'/'1.png').write_bytes(content)
    with pytest.raises(RRNError, match='1.png cannot be decoded'): converted(own)
    clean(own)

@pytest.mark.parametrize('content', ['', '[]', '{', '3', 'null', '{"images": [3], "annotations": [], "categories": []}'])
def test_annotations_that_are_none(own, content):
    (own/'labels.json').write_text(content)
    with pytest.raises(RRNError, match='labels.json'): converted(own)
    clean(own)

def test_numbers_that_json_does_not_have(own):
    text = json.dumps(read_json(own/'labels.json') | {'info': float('nan')})
    (own/'labels.json').write_text(text)
    with pytest.raises(RRNError, match='NaN'): converted(own)
    clean(own)

def test_two_pictures_of_one_name(own):
    (own/'photos'/'a').mkdir()
    change(own, lambda d: d['images'][1].update(file_name='1.png'))
    with pytest.raises(RRNError, match='the same name 1.png'): converted(own, keep_names=True)
    assert len({s.image.name for s in all_samples(converted(own))}) > 10            # in COCO's style their numbers tell them apart

# ---- all or nothing --------------------------------------------------------------------------------------------------------

def test_an_existing_folder_is_left_alone(own):
    (own/'out').mkdir(); (own/'out'/'mine.txt').write_text('mine')
    with pytest.raises(RRNError, match='is there already'): converted(own)
    assert [p.name for p in (own/'out').iterdir()] == ['mine.txt']
    (own/'empty').mkdir(); converted(own, 'empty')

@pytest.mark.parametrize('where', ['place_picture', 'dump_json', 'write_json', 'read_refer'])
def test_a_killed_conversion_leaves_nothing(own, monkeypatch, where):
    class Killed(BaseException): pass
    def die(*a, **k): raise Killed
    monkeypatch.setattr(c, where, die)
    with pytest.raises(Killed): converted(own)
    clean(own)

def test_a_full_disk(own, monkeypatch):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(c.shutil, 'copyfile', full)
    with pytest.raises(RRNError, match='No space left'): converted(own)
    clean(own)

def test_the_source_is_not_changed(own):
    state = lambda: {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [own/'labels.json', *(own/'photos').iterdir()]}
    before = state(); converted(own)
    assert state() == before
    assert stat.S_IMODE((own/'out').stat().st_mode) == stat.S_IMODE((own/'photos').stat().st_mode)       # no private rights left over

def test_names_of_the_layout(own):
    for wrong in (dict(layout='mine'), dict(by='me'), dict(fractions=(.5, .5)), dict(name='a/b'), dict(name=''), dict(name='unc'), dict(name='shapes-unc')):
        with pytest.raises(RRNError): converted(own, **wrong)
    clean(own)

@pytest.mark.parametrize('n', [0, 1, 2, 3, 7, 1000])
def test_splits_are_as_near_as_can_be(n):
    drawn = Counter(split_images(range(n)).values())
    assert sum(drawn.values()) == n and all(abs(drawn[s] - f * n) <= 1 for s, f in zip(('train', 'val', 'test'), (.8, .1, .1)))

@pytest.mark.parametrize('n', range(2, 12))
def test_some_pictures_are_kept_to_validate_on(n):
    drawn = Counter(split_images(range(n)).values())
    assert drawn['val'] >= 1 and drawn['train'] >= 1 and drawn['train'] >= drawn['val'] >= drawn['test'] - 1

def test_a_set_has_its_own_name(own):
    assert converted(own, name='zebras').name == open_dataset('own', own/'out').name == 'zebras' and converted(own, 'other').name == 'own'
    record = read_json(own/'out'/'convert.json')
    write_json(own/'out'/'convert.json', record | dict(dataset='unc'))
    with pytest.raises(RRNError, match="another data set's"): open_own(own/'out')

def test_command_line(own, capsys):
    assert main([str(own/'labels.json'), str(own/'photos'), str(own/'out'), '--quiet', '--seed', '3', '--link']) == 0
    assert 'train' in capsys.readouterr().out and open_own(own/'out').splits == ['train', 'val', 'test']
    assert read_json(own/'out'/'convert.json')['seed'] == 3
    assert main([str(own/'labels.json'), str(own/'photos'), str(own/'out'), '--quiet']) == 1
    assert 'is there already' in capsys.readouterr().err
