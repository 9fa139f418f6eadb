"The tokenizers and vocabularies against what the released program makes of the same sentences, and hostile input."
import gzip, json, random, re
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rrn.common.core import RRNError
from rrn.batches import Batch, mirrored
from rrn.data.refer import Sample
from rrn.text import fault_of, in_mirror, SPECIALS, split_released, split_words, TOKENIZERS, Vocabulary

@pytest.fixture(scope='module')
def recorded(shared): return json.loads((shared/'reference'/'text_preprocess.json').read_text(encoding='utf-8'))

@pytest.fixture(params=['Gref', 'referit'])
def case(request, shared, recorded):
    "One released vocabulary with the recorded results of Python 2 on unicode text."
    return Vocabulary.from_file(shared/'text'/f'vocabulary_{request.param}.txt'), recorded['vocab'][request.param], \
        list(zip(recorded['sentences'], recorded['results'][request.param]['py2_unicode'], strict=True))

def test_released_indices_are_exact(case):
    vocabulary, _, results = case
    compared = 0
    for sentence, expected in results:
        if 'error' in expected: continue
        assert vocabulary.encode(sentence, 20, allow_empty=True) == expected['indices'], sentence
        assert vocabulary.encode(sentence, 5, allow_empty=True) == expected['T5'], sentence
        raw = vocabulary.encode(sentence, len(split_released(sentence)), allow_empty=True)
        assert raw == expected['raw'], sentence
        compared += 1
    assert compared == len(results) - 5 > 100

def test_where_the_released_program_crashes_we_say_why(case):
    vocabulary, _, results = case
    crashed = [sentence for sentence, expected in results if 'error' in expected]
    assert len(crashed) == 5
    for sentence in crashed:
        with pytest.raises(RRNError, match='has no words'): vocabulary.encode(sentence)
        assert vocabulary.encode(sentence, 4, allow_empty=True) == [0]*4

def test_a_lone_full_stop_has_no_words(case):
    with pytest.raises(RRNError, match='has no words'): case[0].encode('.')

def test_released_vocabulary_files(case, tmp_path):
    vocabulary, facts, _ = case
    assert len(vocabulary) == facts['lines'] and len(vocabulary.index) == facts['dict_size']
    for word, number in facts['specials'].items(): assert vocabulary.index.get(word) == number, word
    vocabulary.save(tmp_path/'v.txt')
    assert Vocabulary.from_file(tmp_path/'v.txt') == vocabulary
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary

def test_both_tokenizers_on_every_recorded_sentence(recorded):
    vocabulary = Vocabulary.build(recorded['sentences'])
    for sentence in recorded['sentences']:
        words = split_words(sentence)
        assert all(w == w.strip().lower() and ' ' not in w for w in words)
        assert split_words(' '.join(words)) == words                 # cutting twice changes nothing
        assert vocabulary.unknown(sentence) == []
        assert vocabulary.decode(vocabulary.encode(sentence, 30, allow_empty=True)) == ' '.join(words)

def test_a_vocabulary_does_not_depend_on_the_order(shared):
    items = json.loads(gzip.decompress((shared/'text'/'refcoco_testB.json.gz').read_bytes()))['items']
    sentences = [item['text'] for item in items]
    shuffled = random.Random(3).sample(sentences, len(sentences))
    one, other = Vocabulary.build(sentences, 2), Vocabulary.build(shuffled, 2)
    assert one == other and len(one) > 500 and one.words[:4] == SPECIALS
    assert one.encode_batch(sentences).shape == (5095, 20)

def test_hostile_sentences():
    vocabulary = Vocabulary((*SPECIALS, 'left', 'man'))
    assert vocabulary.encode('left ' * 10_000) == [4]*20
    assert vocabulary.encode('x' * 100_000, 3) == [0, 0, 3]
    assert vocabulary.encode('left\x00man\x1b[2J\u202eleft\u200bman', 6) == [0, 4, 5, 3, 4, 5]
    assert vocabulary.encode('left \ud800 man', 3) == [0, 4, 5]
    assert vocabulary.encode('<pad> <go>', 3) == [0, 3, 3]            # nobody can type a special word
    for sentence in ('\x00\x01', '\u200b', '😀', '\ud800'):
        with pytest.raises(RRNError, match='has no words'): vocabulary.encode(sentence)

def test_released_special_words_cannot_be_typed():
    vocabulary = Vocabulary((*SPECIALS, 'left'), 'released')
    assert vocabulary.encode('<pad>', 4) == [0, 3, 3, 3]


# ---- sentences in a mirror -------------------------------------------------------------------------------------------------

PAIRS = [('left dog', 'right dog'), ('l dog', 'r dog'), ('rt guy', 'lt guy'), ('lft one', 'rgt one'), ('leftmost', 'rightmost'), ('lefthand side', 'righthand side'), ('left-hand', 'right-hand'),
         ('leftish', 'rightish'), ("the left's hat", "the right's hat"), ('the lefts', 'the rights'), ('lefty', 'righty'), ('leftside', 'rightside'), ('bottomleft', 'bottomright'),
         ('onleft', 'onright'), ('LEFT Left left', 'RIGHT Right right'), ('left of the right of the left', 'right of the left of the right'), ('on the right behind her', 'on the left behind her'),
         ("woman's left hand", "woman's right hand"), ('lhs', 'rhs'), ('L', 'R')]
NO_SIDE = ['bright light', 'brightest', 'upright bear', 'leftovers', 'alright', "he'll go", 'clock on the wall', 'night', 'let it', 'letter', 'shelf', 'shirt', 'lift', 'eight', '', ' .,']
UNCERTAIN = ['rigth', 'letf', 'rihgt', 'lef', 'righ', 'elft', 'rght', 'rigthmost', "3 o'clock", '9 oclock', 'at 2 o clock', "5 o ' clock", '3 O\u2019CLOCK', 'clockwise', 'west end',
             'right in the middle', 'right behind her', 'the one that was left', "what's left of it", 'left over', 'anything left', 'is this right?', 'looking right at camera', 'right now',
             'right side up', 'upleft', 'bleft', 'leftright', 'lEfT dog', '\uff4c\uff45\uff46\uff54 dog', 'letter l', 'l shaped']


@pytest.mark.parametrize('a, b', PAIRS)
def test_sides_are_exchanged(a, b): assert in_mirror(a) == b and in_mirror(b) == a


@pytest.mark.parametrize('sentence', NO_SIDE)
def test_what_names_no_side_stays(sentence): assert in_mirror(sentence) == sentence


@pytest.mark.parametrize('sentence', UNCERTAIN)
def test_what_is_not_certain_has_no_mirror_image(sentence): assert in_mirror(sentence) is None


def mirrors_twice(sentence):
    other = in_mirror(sentence)
    return other is None or in_mirror(other) == sentence


@given(st.text(max_size=60) | st.lists(st.sampled_from([w for said in [*NO_SIDE, *UNCERTAIN, *sum(PAIRS, ())] for w in said.split()] + ["'", '.', '?', '_', 'ly', 'b', 'up'])).flatmap(
    lambda words: st.sampled_from(['', ' ', '-', "'"]).map(lambda gap: gap.join(words))))
@settings(max_examples=300, deadline=None)
def test_a_mirror_image_of_a_mirror_image(sentence): assert mirrors_twice(sentence)


@pytest.mark.parametrize('file', [f'refcoco{plus}_unc_{split}' for plus in ('', '+') for split in ('val', 'testA', 'testB')] + ['refcocog_umd_val', 'refcocog_umd_test'])
def test_real_sentences_in_a_mirror(shared, file):
    said = [i['sent'] for i in json.loads(gzip.decompress((shared/'text'/f'{file}.json.gz').read_bytes()))['items']]
    assert all(map(mirrors_twice, said))
    unsure = sum(in_mirror(s) is None for s in said)
    assert len(said) > 4000 and unsure < .03 * len(said)                     # RefCOCO: 139 of 21,586
    sides = re.compile(r'\b(left|right)(most|hand|side|ish|est|y|s)?\b', re.I)
    assert not [s for s in said if sides.search(s) and in_mirror(s) == s]


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
def test_only_pictures_whose_sentences_are_certain_are_mirrored(tokenizer):
    said = ['left dog', 'dog', 'rigth dog', 'right dog', 'lefty', "dog at 3 o'clock"]
    words = sorted({w for s in [*said, 'letf'] for w in TOKENIZERS[tokenizer](s)})
    vocabulary = Vocabulary((*SPECIALS, *words), tokenizer)
    samples = [Sample(Path('a'), None, s, 1, 1, n, 'train', '', 0, 4, 6) for n, s in enumerate(said)]
    images, masks, image_of = torch.rand(4, 3, 4, 6), torch.rand(6, 4, 6) > .5, torch.tensor([0, 0, 1, 1, 2, 3])
    batch = Batch(images, vocabulary.encode_batch(said, 6), image_of, masks, samples, [], [(f'{i}', False) for i in range(4)])
    found = mirrored(batch, vocabulary)
    assert found.images[0].equal(images[0].flip(-1)) and found.images[1:].equal(images[1:])          # 'rigth' is unsure, and 'righty' not in the vocabulary
    assert found.masks[:2].equal(masks[:2].flip(-1)) and found.masks[2:].equal(masks[2:])
    assert [vocabulary.decode(w) for w in found.words[:4]] == ['right dog', 'dog', 'rigth dog', 'right dog'] and found.keys == [('0', True), ('1', False), ('2', False), ('3', False)]
    twice = mirrored(found, vocabulary)
    assert twice.images.equal(images) and twice.words.equal(batch.words) and twice.masks.equal(masks) and twice.keys == batch.keys and twice.samples == samples


KNOWN = Vocabulary((*SPECIALS, 'left', 'man', 'the'))

@pytest.mark.parametrize('words', [('left',), (), (*SPECIALS, 7), (*SPECIALS, ' left'), (*SPECIALS, 'le\nft')])
def test_what_is_no_vocabulary(words):
    assert fault_of(words) and fault_of((*SPECIALS, 'left', '')) == ''
    with pytest.raises(RRNError, match='no vocabulary'): Vocabulary(words)

def test_words_and_numbers():
    assert KNOWN.encode('the purple man', 5) == [0, 0, 6, 3, 5] and KNOWN.encode('man '*25)[0] == 5
    assert KNOWN.decode(torch.tensor([0, 0, 6, 3, 5])) == 'the <unk> man'
    assert KNOWN.encode_batch(['left', 'the man'], 3).tolist() == [[0, 0, 4], [0, 6, 5]]
    assert KNOWN.encode_batch([], 3).shape == (0, 3) and KNOWN.encode('?!', 4, allow_empty=True) == [0]*4
    with pytest.raises(RRNError, match='outside 0 to 6'): KNOWN.decode([7])
    with pytest.raises(RRNError, match="Did you mean 'words'"): Vocabulary(KNOWN.words, 'word')

@pytest.mark.parametrize('sentence', ['', '  \t', '?!', "'", '\x00'])
def test_nothing_said(sentence):
    with pytest.raises(RRNError, match='has no words'): KNOWN.encode(sentence)

@pytest.mark.parametrize('sentence', ['', '\n', '.'])
def test_nothing_said_to_the_released_program(sentence):
    with pytest.raises(RRNError, match='has no words'): Vocabulary(KNOWN.words, 'released').encode(sentence)

@pytest.mark.parametrize('sentence', [None, 7, b'left'])
def test_what_is_no_text(sentence):
    with pytest.raises(RRNError, match='must be text'): KNOWN.encode(sentence)

def test_cuts():
    assert split_words("ｌｅｆｔ\x00man\x07") == ['left', 'man'] and len(split_words("İstanbul")) == 1
    assert split_words(" ?!... '' \t") == []
    assert split_released("left.") == ['left'] and split_released("left .") == ['left', ' .'] and split_released("İ") == ['i']
    released = Vocabulary(KNOWN.words, 'released')
    assert released.encode('man, left', 4) == [0, 5, 3, 4] and KNOWN.encode('man, left', 4) == [0, 0, 5, 4] and released != KNOWN

def test_files_with_double_words_and_bad_ones(tmp_path):
    (tmp_path/'twice.txt').write_text('\n'.join([*SPECIALS, 'left', 'man', 'left', '']) + '\n')
    twice = Vocabulary.from_file(tmp_path/'twice.txt')
    assert twice.encode('man,left', 3) == [5, 3, 6] and len(twice) == 8      # the blank line has a number, too
    twice.save(tmp_path/'again.txt')
    assert Vocabulary.from_file(tmp_path/'again.txt') == twice
    assert Vocabulary.from_dict(json.loads(json.dumps(twice.to_dict()))) == twice
    (tmp_path/'short.txt').write_text('left\nman\n')
    (tmp_path/'latin.txt').write_bytes(b'<pad>\ncaf\xe9\n')
    for bad in ('nowhere.txt', 'short.txt', 'latin.txt'):
        with pytest.raises(RRNError, match=bad): Vocabulary.from_file(tmp_path/bad)

@pytest.mark.parametrize('data', [None, {}, {'words': [*SPECIALS]}, {'words': 'left', 'tokenizer': 'words'},
                                  {'words': [*SPECIALS, 3], 'tokenizer': 'words'}, {'words': ['left'], 'tokenizer': 'words'},
                                  {'words': [*SPECIALS], 'tokenizer': 'bpe'}])
def test_records_without_a_vocabulary(data):
    with pytest.raises(RRNError): Vocabulary.from_dict(data)

def test_building_does_not_depend_on_order_and_drops_rare_words():
    typed = ['the left zebra', 'Zebra, left!', 'the dog', 'a zebra']
    assert Vocabulary.build(typed) == Vocabulary.build(typed[::-1]) and Vocabulary.build(typed).words[4:7] == ('zebra', 'left', 'the')
    assert Vocabulary.build(typed, min_count=2).words[4:] == ('zebra', 'left', 'the') and len(Vocabulary.build([])) == 4
