"The tokenizers and vocabularies against what the released program makes of the same sentences, and hostile input."
import gzip, json, random
import pytest
from rrn.core import RRNError
from rrn.text import SPECIALS, Vocabulary, split_released, split_words

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
