"""Anyone's masks: every form, against the libraries that define the numbers, by hand, by hostile files, and at full size."""
import io, json, os, pickle, random, time, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torchmetrics.classification import BinaryJaccardIndex
from rrn.common.core import RRNError
from rrn.data.datasets import open_dataset
from rrn.data.masks import CocoMask
from rrn.data.refer import Sample
from rrn.experiments.matrix import given_matrix
from rrn.experiments.predictions import open_predictions
from rrn.experiments.protocols import PROTOCOLS, Scores
from rrn.experiments.score import (all_scores, compare_systems, count_set, masks_of, placement_in, score_predictions, score_results,
                                   WARPED_SIZE)
from rrn.experiments.tables import as_markdown, printed_table, results, table2
from rrn.image import fit

SCENES = dict(train=2, val=14, testA=3, testB=3)

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')


def blob(rng, h, w):
    "A polygon somewhere in a picture."
    t = np.linspace(0, 2*np.pi, 16, endpoint=False)
    r = rng.uniform(.1, .3) * min(h, w) * rng.uniform(.8, 1.2, 16)
    x, y = rng.uniform(.3, .7) * w + r*np.cos(t), rng.uniform(.3, .7) * h + r*np.sin(t)
    return np.stack([x, y], 1).round(1).ravel().tolist()


def toy_samples(n=30, seed=0):
    "Sentences about objects of pictures of awkward sizes; three for each object."
    rng, sizes = np.random.default_rng(seed), [(90, 127), (48, 31), (64, 64), (75, 200)]
    found = []
    for i in range(n):
        ref = i // 3
        size = sizes[ref // 2 % 4]
        mask = CocoMask([blob(np.random.default_rng(ref), *size)], *size, f'annotation {ref}')
        found.append(Sample(Path('x.jpg'), mask, 'left cat ' * (1 + i % 4), 7 + ref // 2, 900 + ref, 100 + i, 'val', 'cat', ref % 3, *size))
    return found


def guesses(samples, seed=1):
    "{sent_id: mask} that are near the truth, one of them empty and one full."
    rng = np.random.default_rng(seed)
    found = {s.sent_id: np.roll(s.mask.decode(), rng.integers(-9, 9), 1) ^ (rng.random((s.height, s.width)) < .05) for s in samples}
    found[samples[4].sent_id][:] = False
    found[samples[5].sent_id][:] = True
    return found


def rle(mask):
    found = coco.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=found['size'], counts=found['counts'].decode())


def save_pngs(folder, masks, mode=None):
    folder.mkdir()
    for id, mask in masks.items():
        image = Image.fromarray(mask if mode == '1' else np.uint8(mask) * (1 if mode == '01' else 255))
        if mode == 'P': image = Image.fromarray(np.uint8(mask)).convert('P')
        if mode in ('RGB', 'LA'): image = image.convert(mode)
        image.save(folder/f'{id}.png')
    return folder


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def write_npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def write_table(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def encoded(mask):
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, 'PNG')
    return stream.getvalue()


FORMS = {
    'png': lambda p, m: save_pngs(p/'a', m), 'png, 1 bit': lambda p, m: save_pngs(p/'a', m, '1'),
    'png, 0 and 1': lambda p, m: save_pngs(p/'a', m, '01'), 'png, palette': lambda p, m: save_pngs(p/'a', m, 'P'),
    'png, RGB': lambda p, m: save_pngs(p/'a', m, 'RGB'), 'png, alpha': lambda p, m: save_pngs(p/'a', m, 'LA'),
    'json': lambda p, m: write(p/'a.json', [dict(sent_id=i, segmentation=rle(v)) for i, v in m.items()]),
    'json lines': lambda p, m: write(p/'a.jsonl', '\n'.join(json.dumps(dict(id=i, segmentation=rle(v))) for i, v in m.items())),
    'json, lists': lambda p, m: write(p/'a.json', {str(i): dict(size=list(v.shape), counts=runs(v)) for i, v in m.items()}),
    'npz': lambda p, m: write_npz(p/'a.npz', **{str(i): v for i, v in m.items()}),
    'npz, floats': lambda p, m: write_npz(p/'a.npz', **{f'sent_{i}': v.astype(np.float16) for i, v in m.items()}),
    'parquet': lambda p, m: write_table(p/'a.parquet', sent_id=list(m), segmentation=[rle(v) for v in m.values()]),
    'parquet, png': lambda p, m: write_table(p/'a.parquet', sent_id=list(m), png=[encoded(v) for v in m.values()]),
    'json, from Windows': lambda p, m: write(p/'a.json', '\ufeff' + json.dumps([dict(sent_id=i, segmentation=rle(v)) for i, v in m.items()])),
    'npz, with a channel': lambda p, m: write_npz(p/'a.npz', **{str(i): v[None] for i, v in m.items()}),
    'parquet, floats': lambda p, m: write_table(p/'a.parquet', sent_id=[float(i) for i in m], segmentation=[rle(v) for v in m.values()])}


def runs(mask):
    "Run lengths as numbers, counted here."
    flat = np.r_[False, mask.ravel('F')]
    edges = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]), mask.size]
    return np.diff(edges).tolist()


# ---- the numbers ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('form', FORMS)
def test_every_form_counts_what_pycocotools_and_torchmetrics_count(form, tmp_path):
    samples, jaccard = toy_samples(), BinaryJaccardIndex()
    masks = guesses(samples)
    scored = count_set(open_predictions(FORMS[form](tmp_path, masks)), samples)
    assert (scored.key, scored.kind, scored.faults) == ('sent_id', 'mask', [])
    both, union, predicted = scored.counts['paper'].T
    each = []
    for s in samples:
        a, b = (coco.encode(np.asfortranarray(m, np.uint8)) for m in (masks[s.sent_id], s.mask.decode()))
        each.append(coco.iou([a], [b], [0])[0, 0])
        jaccard.update(torch.tensor(masks[s.sent_id]).int(), torch.tensor(s.mask.decode()).int())
    assert predicted.tolist() == [masks[s.sent_id].sum() for s in samples]
    assert both / np.maximum(union, 1) == pytest.approx(np.array(each))
    scores = all_scores([scored], draws=20)
    assert scores['paper']['overall_iou'].value == scores['ciou']['overall_iou'].value == pytest.approx(100 * jaccard.compute().item(), rel=1e-6)
    assert scores['paper']['mean_iou'].value == pytest.approx(100 * np.mean(each))
    for t in (.5, .6, .7, .8, .9):
        assert scores['ciou'][f'prec@{t}'].value == pytest.approx(100 * np.mean(np.array(each) >= t))
    assert scored.rows.status.tolist() == ['empty' if i == 4 else 'scored' for i in range(30)]
    assert scored.rows.share.to_numpy() == pytest.approx([100 * s.mask.decode().mean() for s in samples])


@pytest.mark.parametrize('key', ['ref_id', 'sent_id'])
@pytest.mark.parametrize('form', ['png', 'json', 'npz', 'parquet'])
def test_one_mask_for_all_sentences_of_an_object(form, key, tmp_path):
    "Keyed by ref_id or by sent_id the same masks are the same counts; the key is found by itself."
    samples = toy_samples()
    by_ref = {s.ref_id: np.roll(s.mask.decode(), 3, 0) for s in samples}
    masks = by_ref if key == 'ref_id' else {s.sent_id: by_ref[s.ref_id] for s in samples}
    path = FORMS[form](tmp_path, masks)
    if key == 'ref_id' and form in ('json', 'parquet'):       # those say 'sent_id'
        path = write(tmp_path/'b.json', [dict(ref_id=i, segmentation=rle(v)) for i, v in masks.items()])
    scored = count_set(open_predictions(path), samples)
    assert scored.key == key and not scored.faults
    assert scored.counts['paper'][:, 0].tolist() == [(by_ref[s.ref_id] & s.mask.decode()).sum() for s in samples]


def test_probabilities_are_scored_as_our_own_model_is(tmp_path):
    "Maps of a padded 64 x 64 input, under each protocol, pixel for pixel as the notebook `protocols` counts them."
    samples, ours, rng = toy_samples(), Scores(), np.random.default_rng(3)
    maps = {s.sent_id: (rng.random((64, 64)) * .6 + .4 * (np.indices((64, 64))[1] < 30)).astype(np.float64) for s in samples}
    for s in samples: ours.add(torch.from_numpy(maps[s.sent_id]), fit(s.height, s.width, (64, 64)), s.mask.decode())
    path = write_npz(tmp_path/'p.npz', sent_id=np.array(list(maps)), probabilities=np.stack(list(maps.values())))
    scored = count_set(open_predictions(path), samples, placed='centred')
    assert scored.kind == 'probability'
    for name in ('paper', 'released', 'warp480', 'threshold0.35'):
        assert scored.counts[name][:, 0].tolist() == ours.found[name].intersections.tolist(), name
        assert scored.counts[name][:, 1].tolist() == ours.found[name].unions.tolist(), name
    table, found = ours.table(), all_scores([scored], draws=20)
    for name in PROTOCOLS:
        assert {m: found[name][m].value for m in found[name]} == pytest.approx(table.loc[name].to_dict()), name


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_grey_levels_are_probabilities(dtype, tmp_path):
    "128 of 255 is foreground, 127 is not; at 0.35, 90 is and 89 is not."
    samples = toy_samples(6)
    (tmp_path/'a').mkdir()
    levels, most = [255, 128, 127, 90, 89, 0], np.iinfo(dtype).max
    for s, level in zip(samples, levels):
        a = np.full((s.height, s.width), round(level / 255 * most), dtype)
        a[0, :2] = 1, most
        Image.fromarray(a).save(tmp_path/'a'/f'{s.sent_id}.png')
    scored = count_set(open_predictions(tmp_path/'a'), samples)
    size = samples[0].height * samples[0].width
    assert scored.kind == 'probability'
    assert (scored.counts['paper'][:, 2] > size / 2).tolist() == [True, True, False, False, False, False]
    assert (scored.counts['threshold0.35'][:, 2] > size / 2).tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize('placed', ['stretched', 'centred', 'corner'])
@pytest.mark.parametrize('size', [(90, 127), (127, 90), (33, 240)])
def test_a_good_mask_of_another_resolution_finds_its_place(placed, size):
    "A blob drawn into a network's input of 512 x 512 comes back to where it was, within a pixel or so."
    truth = CocoMask([blob(np.random.default_rng(5), *size)], *size).decode()
    place = placement_in((512, 512), *size, placed)
    inside = np.zeros((512, 512), bool)
    inside[place.box] = np.asarray(Image.fromarray(truth).resize((place.new_width, place.new_height), Image.Resampling.NEAREST))
    found = masks_of(inside, *size, placed)
    for name, least in (('paper', .97), ('released', .8)):
        iou = (found[name] & truth).sum() / (found[name] | truth).sum()
        assert iou > least, (name, iou)
    assert found['warp480'].shape == WARPED_SIZE and found['warp480'].mean() == pytest.approx(truth.mean(), abs=.01)


# ---- gRefCOCO ---------------------------------------------------------------------------------------------------------

def grefcoco(root):
    "A tiny gRefCOCO: six sentences with one target, with three, and with none."
    outline = lambda x: [[x, 2, x + 6, 2, x + 6, 8, x, 8]]
    annotations = [dict(id=i, image_id=1 + i // 4, category_id=1, iscrowd=0, area=36., segmentation=outline(8 * (i % 4))) for i in range(8)]
    refs = [dict(ref_id=10 + n, ann_id=ann, image_id=image, split='testA', no_target=ann == [-1], category_id=[1],
                 sentences=[dict(sent_id=100 + n, sent=f'sentence {n}', raw='', tokens=[])])
            for n, (image, ann) in enumerate([(1, [0]), (1, [0, 1, 2]), (1, [-1]), (2, [4, 5]), (2, [-1]), (2, [-1])])]
    images = [dict(id=i, file_name=f'{i}.jpg', height=12, width=40) for i in (1, 2)]
    (root/'grefcoco').mkdir()
    write(root/'grefcoco'/'instances.json', dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')]))
    write(root/'grefcoco'/'grefs(unc).json', refs)
    return root


def test_grefcoco_by_hand(tmp_path):
    """Truths of 36, 108, 0, 72, 0, 0 pixels. Predictions: the same; one of the three; nothing; nothing; 10 pixels; one pixel.
    gIoU (1 + 1/3 + 1 + 0 + 0 + 0) / 6, cIoU (36 + 36) / (36 + 108 + 72 + 10 + 1), N-acc 1/3, T-acc 2/3; with fewer than 5 pixels cleared N-acc 2/3."""
    samples = open_dataset('grefcoco', grefcoco(tmp_path), check_images=False).samples('testA')
    assert [int(s.mask.decode().sum()) for s in samples] == [36, 108, 0, 72, 0, 0] and [s.distractors for s in samples] == [3, 1, 0, 2, 0, 0]
    first, dot, ten = samples[0].mask.decode(), np.zeros((12, 40), bool), np.zeros((12, 40), bool)
    dot[0, 0] = ten[11, :10] = True
    items = [dict(sent_id=100 + n, segmentation=rle(m)) for n, m in enumerate((first, first))]
    items += [dict(sent_id=102, segmentation=None), dict(sent_id=103, no_target=True)]
    items += [dict(sent_id=104 + n, segmentation=rle(m)) for n, m in enumerate((ten, dot))]
    path = write(tmp_path/'a.json', items)
    found = all_scores([count_set(open_predictions(path), samples)], draws=20)['paper']
    assert found['giou'].value == pytest.approx(100 * (1 + 1/3 + 1) / 6)
    assert found['overall_iou'].value == pytest.approx(100 * 72 / 227)
    assert found['n_acc'].value == pytest.approx(100 / 3) and found['t_acc'].value == pytest.approx(200 / 3)
    assert found['mean_iou'].value == pytest.approx(100 * (1 + 1/3) / 3) and found['prec@0.5'].value == pytest.approx(100 / 3)
    page = score_predictions((str(path),), dataset='grefcoco', split='testA', data_root=str(tmp_path), clear_below=5, folder=str(tmp_path), draws=20)
    read = json.loads(page.with_suffix('.json').read_text())
    assert read['scores']['paper']['n_acc']['value'] == pytest.approx(200 / 3)
    assert '| none | ' in page.read_text() and '| several | ' in page.read_text()


def test_a_missing_answer_does_not_mean_nothing(tmp_path):
    """Three sentences mean nothing. Nothing said of one, two different things of the second, no mask for the third: none of them is right,
    whereas empty predictions of all three are."""
    samples = open_dataset('grefcoco', grefcoco(tmp_path), check_images=False).samples('testA')
    right = [dict(sent_id=s.sent_id, segmentation=rle(s.mask.decode())) for s in samples]
    bad = [item for item in right if item['sent_id'] != 102] + [dict(sent_id=104, segmentation=rle(samples[0].mask.decode()))]
    bad = [item if item['sent_id'] != 105 else dict(sent_id=105, segmentation='cat') for item in bad]
    scored = [count_set(open_predictions(write(tmp_path/'a.json', items)), samples) for items in (right, bad)]
    found = [all_scores([s], draws=20)['paper'] for s in scored]
    assert scored[1].tally() == dict(missing=1, double=1, misshapen=1)
    assert [f['n_acc'].value for f in found] == [100, 0] and [f['giou'].value for f in found] == [100, pytest.approx(50)]
    groups = score_results([scored[1]], draws=20).groups['number of targets']
    assert groups['none']['scores']['paper']['giou'].value == 0 and groups['several']['scores']['paper']['giou'].value == 100


# ---- groups, pages ----------------------------------------------------------------------------------------------------

def test_groups_have_scores_and_intervals_of_their_own(tmp_path):
    "Each group is what scoring its sentences alone gives, and the groups of a kind are all sentences."
    samples = toy_samples()
    masks = guesses(samples)
    path = write(tmp_path/'a.json', [dict(sent_id=i, segmentation=rle(v)) for i, v in masks.items()])
    found = score_results([count_set(open_predictions(path), samples)], draws=50)
    assert len(found.groups) == 3 and all(sum(g['sentences'] for g in some.values()) == 30 for some in found.groups.values())
    for name, rivals in (('0 to <1', 0), ('1 to <2', 1), ('2 to <3', 2)):
        some = [s for s in samples if s.distractors == rivals]
        alone = all_scores([count_set(open_predictions(path), some)], draws=50)
        group = found.groups['rivals: other objects of the same class'][name]
        assert group['sentences'] == len(some)
        assert all(group['scores'][p][m] == alone[p][m] for p in group['scores'] for m in ('overall_iou', 'mean_iou', 'prec@0.5'))
    kept = json.loads(score_with_toy(samples, path, tmp_path).with_suffix('.json').read_text())
    assert kept['breakdowns']['words of the sentence']['2 to <3']['scores']['warp480']['mean_iou'].keys() == {'value', 'low', 'high'}


def test_one_picture_says_nothing_of_others(tmp_path):
    samples = [s for s in toy_samples() if s.image_id == 8]
    path = write(tmp_path/'a.json', [dict(sent_id=s.sent_id, segmentation=rle(s.mask.decode())) for s in samples])
    scored = count_set(open_predictions(path), samples)
    assert all(tuple(i) == (100, 0, 100) for i in all_scores([scored], draws=20)['paper'].values())
    assert compare_systems([scored], [scored], draws=20)['paper']['overall_iou'] == ((0, -100, 100), 'undecided')


def test_a_page_says_first_what_is_lacking_and_who_is_better(tmp_path):
    "Two systems whose files have one name; the first lacks a sentence."
    samples = toy_samples()
    for folder in ('ours', 'theirs'): (tmp_path/folder).mkdir()
    good = [dict(sent_id=s.sent_id, segmentation=rle(s.mask.decode())) for s in samples]
    bad = [dict(sent_id=s.sent_id, segmentation=rle(np.roll(s.mask.decode(), 9, 1))) for s in samples]
    paths = write(tmp_path/'ours'/'a.json', good[1:]), write(tmp_path/'theirs'/'a.json', bad)
    page = score_with_toy(samples, paths[0], tmp_path, against=(str(paths[1]),)).read_text()
    first = page[:page.index('| protocol |')]
    assert '**It is not whole**: 1 missing. 1 of 30 sentences have no prediction that counts' in first
    assert f'**{paths[0]} against {paths[1]}**: +' in page and 'it is better.' in page


# ---- what is wrong with them ------------------------------------------------------------------------------------------

def test_what_is_wrong_is_counted_by_kind(tmp_path):
    samples = toy_samples()
    masks = guesses(samples)
    items = [dict(sent_id=i, segmentation=rle(v)) for i, v in masks.items()]
    items[0]['segmentation'] = dict(size=[3, 3], counts=[4])                      # does not fill its picture
    items[1]['segmentation'] = rle(masks[101].T)                                  # transposed
    items[2]['segmentation'] = [[1., 2., 3., 4., 5., 6.]]                         # a polygon
    del items[7], items[8]                                                        # 107 and 109
    items += [items[9], dict(items[10], segmentation=rle(~masks[int(items[10]['sent_id'])]))]
    items += [dict(sent_id=5, segmentation=rle(masks[103])), dict(segmentation=rle(masks[103])), 'mask', {}]
    scored = count_set(open_predictions(write(tmp_path/'a.json', items)), samples, others=dict(train=[samples[0].__class__(
        **{f: getattr(samples[0], f) for f in Sample.__slots__} | dict(sent_id=5))]))
    assert scored.tally() == dict(missing=2, double=1, misshapen=3, foreign=4, repeated=1)
    said = {what: [f'{where} {why}' for w, where, why in scored.faults if w == what] for what in scored.tally()}
    assert said['missing'] == ['sent_id 107 ', 'sent_id 109 ']
    assert 'do not fill' in said['misshapen'][0] and 'transposed' in said['misshapen'][1] and 'run lengths' in said['misshapen'][2]
    assert said['foreign'] == ['a.json, entry 30 of train', *(f'a.json, entry {n} no number' for n in (31, 32, 33))]
    for bad in (100, 101, 102, 107, 109):
        row = scored.counts['paper'][bad - 100]
        assert row.tolist() == [0, samples[bad - 100].mask.decode().sum(), 0], bad
    with pytest.raises(RRNError, match='2 missing, 1 double, 3 misshapen, 4 foreign'):
        score_with_toy(samples, tmp_path/'a.json', tmp_path, faults='refuse')


def score_with_toy(samples, path, folder, **how):
    from rrn.data.datasets import READERS, register_dataset
    from rrn.data.refer import ReferringDataset
    register_dataset('toy', lambda root: ReferringDataset('toy', Path(root), dict(val=samples)))
    try: return score_predictions((str(path),), dataset='toy', folder=str(folder), draws=20, workers=1, **how)
    finally: del READERS['toy']


def test_a_set_for_another_split_is_refused(tmp_path):
    samples = toy_samples()
    path = write(tmp_path/'a.json', [dict(sent_id=i, segmentation=None) for i in range(5)])
    with pytest.raises(RRNError, match=r'none of the 5 numbers .*0, 1, 2.* is a sent_id of this split'): count_set(open_predictions(path), samples)


def test_what_has_no_numbers_or_belongs_elsewhere_is_said(tmp_path):
    "The first thing that goes wrong for whoever names files in another way, or mistakes the split."
    samples = toy_samples()
    (tmp_path/'none').mkdir()
    named = save_pngs(tmp_path/'named', {f'COCO_7_{i}': m for i, m in guesses(samples).items()})
    no_ids = write(tmp_path/'a.json', [dict(image_id=7, segmentation=rle(samples[0].mask.decode()))])
    for path, said in ((tmp_path/'none', 'there are no predictions in .*none'), (write(tmp_path/'b.json', []), 'there are no predictions in'),
                       (named, 'none of the 30 predictions [(]COCO_7_100.png, .* named 1234, sent_1234 or ref_77'),
                       (no_ids, 'none of the 1 predictions [(]a.json, entry 0, .* have sent_id or ref_id')):
        with pytest.raises(RRNError, match=said): count_set(open_predictions(path), samples)
    path = write(tmp_path/'c.json', [dict(sent_id=i, segmentation=None) for i in (500, 501)])
    other = [replace(samples[0], sent_id=500)]
    with pytest.raises(RRNError, match=r'There are such numbers in testA \(1\)[.]'): count_set(open_predictions(path), samples, others=dict(testA=other, val=[]))
    path = write(tmp_path/'d.json', [dict(sent_id=s.sent_id, mask=[1]) for s in samples])
    with pytest.raises(RRNError, match="(?s)not one prediction .* can be scored.*has no run lengths .*, but the fields 'sent_id', 'mask'"):
        score_with_toy(samples, path, tmp_path)


def test_a_name_of_our_own_runs_is_refused(tmp_path):
    (tmp_path/'runs'/'a').mkdir(parents=True)
    write(tmp_path/'runs'/'a'/'config.json', dict(config={}))
    path = write(tmp_path/'a.json', [dict(sent_id=100, segmentation=None)])
    with pytest.raises(RRNError, match='Choose another name'): score_with_toy(toy_samples(), path, tmp_path/'runs')


def bomb_png():
    "A picture of 20,000 x 20,000 pixels in a few bytes."
    import struct, zlib
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', 20_000, 20_000, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')


def bomb_npz(path):
    "An array that says it has 64 TB, and one of 200 MB of zeros in 200 kB."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, shape, size in (('100', (1 << 23, 1 << 23), 10), ('101', (14_000, 14_000), 14_000**2)):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, dict(descr='|b1', fortran_order=False, shape=shape))
            z.writestr(f'{name}.npy', head.getvalue() + bytes(size))
    return path


def test_bombs_cost_nothing(tmp_path):
    "Each is one misshapen prediction, in no time."
    samples = toy_samples(3)
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'100.png').write_bytes(bomb_png())
    bombs = [dict(sent_id=100, segmentation=dict(size=[8000, 8000], counts='o' * 100)),
             dict(sent_id=101, segmentation=dict(size=[10**9, 10**9], counts=[10**18])),
             dict(sent_id=102, segmentation=dict(size=[90, 127], counts='o' * 10_000_000))]
    start = time.process_time()
    for path, n in ((tmp_path/'a', 1), (bomb_npz(tmp_path/'a.npz'), 2), (write(tmp_path/'a.json', bombs), 3)):
        scored = count_set(open_predictions(path), samples)
        assert scored.tally()['misshapen'] == n, scored.faults
    assert time.process_time() - start < 10


def test_damage_anywhere_is_said_or_survived(tmp_path):
    "Bytes changed, cut off or doubled, in each form: an answer, or one RRNError."
    samples, rng = toy_samples(9), random.Random(4)
    masks = guesses(samples)
    paths = [FORMS['json'](tmp_path, masks), FORMS['npz'](tmp_path, masks), FORMS['parquet'](tmp_path, masks)]
    said = 0
    for path in [*paths, *sorted(FORMS['png'](tmp_path, masks).iterdir())[:2]]:
        good = path.read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            at = rng.randrange(len(bad))
            kind = rng.randrange(3)
            if kind == 0: bad[at] = rng.randrange(256)
            if kind == 1: del bad[at:]
            if kind == 2: bad[at:at] = bad[at:at + 50]
            path.write_bytes(bad)
            try: count_set(open_predictions(path.parent if path.suffix == '.png' else path), samples)
            except RRNError: said += 1
        path.write_bytes(good)
    assert said > 40


def test_npz_holds_no_objects(tmp_path):
    "A pickle in an archive is never opened."
    class Trap:
        def __reduce__(self): return (os.mkdir, (str(tmp_path/'caught'),))
    np.savez(tmp_path/'a.npz', **{'100': np.array([[Trap()]], object)})
    scored = count_set(open_predictions(tmp_path/'a.npz'), toy_samples(3))
    assert scored.tally()['misshapen'] == 1 and not (tmp_path/'caught').exists()
    assert 'arrays of their own, named by their numbers' in scored.faults[-1][2]


# ---- beside ours ------------------------------------------------------------------------------------------------------

def test_another_system_is_a_row_of_table_2(scenes, tmp_path):
    "Embedded scenes, masks of the truth: a row of 100 below the paper's systems, with its name, and a note that it is not ours."
    for split in ('val', 'testA'):
        masks = {s.sent_id: s.mask.decode() for s in open_dataset('shapes-unc', scenes).samples(split)}
        save_pngs(tmp_path/split, masks)
        score_predictions((str(tmp_path/split),), dataset='shapes-unc', split=split, data_root=str(scenes), name='theirs', folder=str(tmp_path/'runs'))
    matrix = given_matrix('embedded', external='theirs', folder=str(tmp_path/'runs'))
    assert results(matrix, 'theirs', 'shapes-unc', 'val').interval() == (100, 100, 100)
    long = table2(matrix)
    printed = printed_table(long)
    assert printed.loc['theirs', 'unc val'] == printed.loc['theirs', 'unc testA'] == '100.0 [100.0–100.0]'
    assert (long[long.row == 'theirs'].ours.notna() == long[long.row == 'theirs'].column.isin(['unc val', 'unc testA'])).all()
    assert as_markdown(2, long, matrix).count('| theirs |') == 1
    with pytest.raises(RRNError, match='is no record of predictions'): table2(given_matrix('embedded', external='nobody', folder=str(tmp_path/'runs')))


def test_people_on_photographs(shared, tmp_path):
    "The truth as a prediction is perfect on real pictures, at their own size under all protocols, in all data sets."
    for name, split in (('unc', 'testA'), ('unc+', 'val'), ('gref-umd', 'test')):
        samples = open_dataset(name, shared/'data'/'refcoco-real-mini').samples(split)
        path = write(tmp_path/'a.json', [dict(sent_id=s.sent_id, segmentation=rle(s.mask.decode())) for s in samples])
        scored = count_set(open_predictions(path), samples)
        found = all_scores([scored], draws=20)
        assert scored.key == 'sent_id' and not scored.faults
        assert all(found[p][m].value == 100 for p in found for m in found[p])


# ---- at full size -----------------------------------------------------------------------------------------------------

def full_size(root, share=1.):
    "UNC's val split in numbers, 640 x 480, with masks of an imagined model."
    rng, n_refs, n_images = np.random.default_rng(0), int(3811 * share), int(1500 * share)
    polygons = [blob(rng, 480, 640) for _ in range(n_refs)]
    images = [dict(id=i, file_name=f'{i}.jpg', height=480, width=640) for i in range(n_images)]
    annotations = [dict(id=i, image_id=i % n_images, category_id=1, iscrowd=0, area=1., segmentation=[p]) for i, p in enumerate(polygons)]
    refs = [dict(ref_id=i, ann_id=i, image_id=i % n_images, split='val', category_id=1,
                 sentences=[dict(sent_id=10_000 + k, sent='left cat', raw='', tokens=[]) for k in range(i, int(10834 * share), n_refs)])
            for i in range(n_refs)]
    (root/'refcoco').mkdir(parents=True)
    write(root/'refcoco'/'instances.json', dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')]))
    (root/'refcoco'/'refs(unc).p').write_bytes(pickle.dumps(refs))
    (root/'masks').mkdir()
    for ref in refs:
        for s in ref['sentences']:
            points = np.array(polygons[ref['ann_id']]) + rng.normal(0, 5, 32)
            mask = coco.decode(coco.merge(coco.frPyObjects([points.tolist()], 480, 640)))
            Image.fromarray(mask * 255).save(root/'masks'/f"{s['sent_id']}.png")
    return root


MEASURE = """
import resource, sys, threading, time
import psutil
from rrn.experiments.score import score_predictions
me, most, start = psutil.Process(), [0], time.time()
def memory(p):
    try: return p.memory_full_info().pss           # what is shared between processes is counted once
    except psutil.Error: return 0
def watch():
    while True:
        most[0] = max(most[0], sum(map(memory, [me, *me.children(recursive=True)])))
        time.sleep(.2)
threading.Thread(target=watch, daemon=True).start()
score_predictions((sys.argv[1] + '/masks',), dataset='unc', data_root=sys.argv[1], folder=sys.argv[1] + '/runs', workers=2)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(u.ru_utime + u.ru_stime for u in used), most[0] / 2**20, time.time() - start)
"""


@pytest.mark.skipif(not os.environ.get('RRN_SLOW'), reason="a few minutes: set RRN_SLOW=1")
def test_all_of_val_in_a_minute_and_two_gigabytes(tmp_path):
    """10,834 masks of 640 x 480, with the page: below 60 s on two cores, of which processor time is the part that others' load does not
    change, and 2 GB in all processes together; a quarter of them takes about a quarter, and as much memory."""
    import subprocess, sys
    def measure(share):
        root = full_size(tmp_path/f'{share}', share)
        done = subprocess.run([sys.executable, '-c', MEASURE, root], capture_output=True, text=True, check=True)
        return [float(v) for v in done.stdout.split()[-3:]]
    (quarter, little, _), (whole, memory, seconds) = measure(.25), measure(1)
    print(f'processor seconds: {quarter:.1f} for a quarter, {whole:.1f} for all in {seconds:.1f} s; {little:.0f} and {memory:.0f} MiB')
    assert whole < 100 and memory < 2048 and memory < 2*little
    assert 2 < whole / quarter < 5
