"""The language exam: an oracle has full marks, who is blind has what guessing gives, who does not hear the changed word passes no pair."""
import json
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rrn.common.core import RRNError
from rrn.data.pairs import (chosen_pairs, drawn_exam, following_pairs, meant_by, misspelt, names_of, said_otherwise, words_differ)
from rrn.data.shapes import draw_scene
from rrn.experiments import claim_pages, paper_report
from rrn.experiments.exam import (answers_in_files, as_mask, beside_kept, exam_page, main, read_answers, scores_of, take_exam, write_exam,
                                  write_questions)
from rrn.experiments.matrix import given_matrix

FOLLOWING = {'left or right', 'top or bottom', 'colour', 'texture', 'size', 'second or third', 'first or second', 'from left or right',
             'relation', 'anchor', 'class, no rivals', 'class, with rivals', 'word order', 'negation'}
STAYING = {'synonyms', 'misspelling', 'another order'}


@pytest.fixture(scope='module')
def exam():
    return drawn_exam(12, 90)


class Known:
    "A model that knows the exam, and answers with the mask of `choose(pair, which)`."
    def __init__(self, exam, choose):
        self.choose, self.exam, self.asked = choose, exam, iter(exam.sentences())
    def __call__(self, image, sentence):
        pair, which = next(self.asked)
        assert pair.sentences[which] == sentence and self.exam.pictures[pair.image].image is image
        return self.exam.pictures[pair.image].masks[self.choose(pair, which)]


def scores(exam, choose, what='points, both'):
    table = scores_of(exam, [take_exam(Known(exam, choose), exam, 'a model')])
    return table, table[what]


def test_all_skills_are_there(exam):
    assert {p.skill for p in exam.pairs if p.follows} == FOLLOWING and {p.skill for p in exam.pairs if not p.follows} == STAYING
    assert {p.style for p in exam.pairs} == {'short', 'long'}


def test_an_oracle_has_full_marks(exam):
    for what in ('points, both', 'points', 'right, both', 'right'):
        assert (scores(exam, lambda pair, which: pair.targets[which], what)[1] == 100).all()


def test_one_answer_for_both_sentences_passes_no_pair_whose_target_changes(exam):
    "Whatever it is: the target of one of them, a thing that fits the other words, or all of the picture."
    for choose in (lambda pair, which: pair.targets[0], lambda pair, which: pair.candidates[0], lambda pair, which: 0):
        table, both = scores(exam, choose)
        assert (both[table.follows] == 0).all()
    half = scores(exam, lambda pair, which: pair.targets[0], 'points')
    assert (half[1][half[0].follows] == 50).all() and (half[1][~half[0].follows] == 100).all()
    answers = take_exam(lambda image, sentence: np.ones(image.shape[:2], bool), exam)
    table = scores_of(exam, [answers])
    assert (table['points, both'][table.follows] == 0).all() and (table['right, both'] == 0).all()


@pytest.mark.parametrize('column, of', [('guess', lambda p, exam: p.candidates), ('blind', lambda p, exam: range(len(exam.pictures[p.image].masks)))])
def test_who_guesses_has_the_chance_that_is_stated(exam, column, of):
    """A guess among k things is right with 1/k, and two guesses with 1/k^2. Counted over ten times all pairs; the bound is five standard errors of a
    sum of independent trials."""
    rng, n = np.random.default_rng(0), len(exam.pairs)
    def guess(pair, which):
        things = of(pair, exam)
        return things[rng.integers(len(things))]
    runs = [take_exam(Known(exam, guess), exam, 'guesses') for _ in range(10)]
    hits = np.stack([r.points for r in runs]).reshape(10, n, 2)
    p = np.array([1 / len(of(pair, exam)) for pair in exam.pairs])
    for found, chance in ((hits.mean(), p), (hits.all(2).mean(), p**2)):
        assert abs(found - chance.mean()) < 5 * np.sqrt((chance * (1 - chance)).sum() / 10) / n
    table = scores_of(exam, runs)
    assert np.average(table[column], weights=table.pairs) == pytest.approx(100 * p.mean())
    if column == 'guess': assert np.average(table['guess, both'], weights=table.pairs) == pytest.approx(100 * (p**2).mean())


def test_every_sentence_is_true_of_its_target_by_a_program_that_reads_text(exam):
    for pair in exam.pairs:
        scene = draw_scene(16, pair.image)
        read = [meant_by(s, scene.things, scene.masks) for s in pair.sentences]
        assert read[0] == pair.targets[0] and (pair.skill == 'misspelling' or read[1] == pair.targets[1])
        assert all(0 <= t < len(scene.masks) for t in pair.targets) and len(set(pair.candidates)) == len(pair.candidates)


def test_the_second_program_refuses_what_is_wrong_or_doubtful():
    "Targets of a pair exchanged are never believed; a class with rivals alone means nothing."
    for index in range(8):
        scene = draw_scene(16, index)
        made = following_pairs(scene.things, names_of(scene.things))
        wrong = {key: [(said, targets[::-1], left) for said, targets, left in pairs] for key, pairs in made.items()}
        assert chosen_pairs([wrong], scene.things, scene.masks, np.random.default_rng(0)) == {}
        for cls in {t.cls for t in scene.things}:
            found = [i for i, t in enumerate(scene.things) if t.cls == cls]
            assert meant_by(f'the {cls}', scene.things, scene.masks) == (found[0] if len(found) == 1 else None)


def test_one_word_differs_where_one_should(exam):
    for p in exam.pairs:
        if p.follows and p.skill not in ('word order', 'negation'): assert words_differ(*p.sentences) == 1
        if p.skill == 'word order': assert sorted(p.sentences[0].split()) == sorted(p.sentences[1].split())
        if p.skill == 'another order': assert sorted(p.sentences[0].split()) == sorted(p.sentences[1].split())
    assert said_otherwise('left star') == ['leftmost star'] and said_otherwise('star left of ring') == []
    assert all(len(s) == len('small star') and s != 'small star' for s in misspelt('small star'))


def test_masks_from_elsewhere_score_the_same(exam, tmp_path, capsys):
    "Through files: whole, of another size, and with a fault of each kind."
    write_questions(exam, tmp_path/'asked')
    lines = (tmp_path/'asked'/'sentences.csv').read_text().splitlines()
    assert len(lines) == 1 + 2 * len(exam.pairs)
    masks = {n: exam.pictures[p.image].masks[p.targets[w]] for n, (p, w) in enumerate(exam.sentences())}
    np.savez(tmp_path/'whole.npz', **{str(n): m for n, m in masks.items()})
    answers, wrong = answers_in_files(tmp_path/'whole.npz', exam)
    assert answers.right.all() and wrong == []
    (tmp_path/'masks').mkdir()
    for n, m in masks.items():
        if n: Image.fromarray(m).resize((2 * m.shape[1], 2 * m.shape[0]), 0).save(tmp_path/'masks'/f'{n}.png')
    Image.fromarray(masks[0]).save(tmp_path/'masks'/'999999.png')
    (tmp_path/'masks'/'1.png').write_bytes(b'no picture')
    answers, wrong = answers_in_files(tmp_path/'masks', exam)
    assert answers.right[2:].all() and not answers.right[:2].any()
    assert len(wrong) == 3 and '2 of' in wrong[-1] and any('999999' in w for w in wrong)


@pytest.mark.parametrize('answer, said', [(np.ones((3, 4)), 'shape'), (np.full((4, 5), 1.5), 'outside'), (np.full((4, 5), np.nan), 'outside'),
                                          (np.full((4, 5), 'x'), 'bool')])
def test_answers_that_are_no_masks(answer, said):
    with pytest.raises(RRNError, match=said): as_mask(answer, (4, 5))
    assert as_mask([[0.5, 0.4]], (1, 2)).tolist() == [[True, False]]


def test_a_page_is_made_again_from_what_is_kept(exam, tmp_path):
    answers = [take_exam(Known(exam, lambda p, w: p.targets[w]), exam, name, dataset='x', iterations=3) for name in ('a', 'a', 'b')]
    answers[2].unseen[:9] = True
    write_exam(exam, answers, tmp_path)
    again = read_answers(tmp_path/'exam.json')
    assert exam_page(exam, again, picture='exam.png') == (tmp_path/'exam.md').read_text() and '`a`: 2 runs' in exam_page(exam, again)
    assert 'never seen' in exam_page(exam, again)
    other = take_exam(Known(exam, lambda p, w: p.targets[0]), exam, 'b')
    beside = beside_kept([other], tmp_path/'exam.json')
    assert [a.system for a in beside] == ['a', 'a', 'b'] and beside[2].right.tolist() == other.right.tolist()
    (tmp_path/'exam.json').write_text(json.dumps(dict(answers=[dict(system='x')])))
    with pytest.raises(RRNError, match='no answers'): read_answers(tmp_path/'exam.json')
    with pytest.raises(RRNError, match='other questions'): scores_of(drawn_exam(2, 5), again)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my_models_e.py').write_text('import numpy as np\ndef all_of_it(image, sentence): return np.ones(image.shape[:2])\n')
    assert main(['--model', 'my_models_e:all_of_it', '--pairs', '1', '--out', 'report', '--write', 'asked']) == 0
    assert (tmp_path/'report'/'exam.png').exists() and (tmp_path/'asked'/'sentences.csv').exists()
    assert '# What does it understand?' in capsys.readouterr().out
    assert main(['--model', 'my_models_e:none', '--pairs', '1']) == 1 and 'no function' in capsys.readouterr().err
    with pytest.raises(SystemExit): main([])


def test_photographs_have_a_page_of_their_own(shared, tmp_path, capsys, monkeypatch):
    "It says whose data they are and who made the sentences, and leaves the exam on scenes alone."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my_models_p.py').write_text('import numpy as np\ndef all_of_it(image, sentence): return np.ones(image.shape[:2])\n')
    asked = ['--model', 'my_models_p:all_of_it', '--pairs', '1', '--out', 'report']
    assert main([*asked, '--photographs', str(shared/'data'/'coco-mini')]) == 0
    assert sorted(p.name for p in (tmp_path/'report').iterdir()) == [f'photographs.{e}' for e in ('csv', 'json', 'md', 'png')]
    page = (tmp_path/'report'/'photographs.md').read_text()
    assert 'photographs of unc: ' in page and 'Code made these sentences' in page and 'a subset: sentences train 3,105 of 120,624' in page
    assert '(photographs.png)' in page and 'left or right' in page
    assert main(asked) == 0 and len([*(tmp_path/'report').iterdir()]) == 8
    assert 'Code made' not in (tmp_path/'report'/'exam.md').read_text()


@pytest.mark.parametrize('taken', [['scenes'], ['scenes', 'photographs'], ['photographs'], []])
def test_both_exams_stand_beside_the_claims(taken, monkeypatch):
    "Each with its own label and link; one that nobody took is not named."
    told = pd.DataFrame(dict(skill=['colour', 'class, no rivals'], words='seen', follows=True))
    told = told.assign(**{'points, both low': [30., 10.], 'guess, both': 25.})
    names = dict(scenes='row5-norm-shapes-unc', photographs='coco-mini-row12-released-unc')
    found = {kind: told.assign(system=names[kind]) for kind in taken}
    for place in (claim_pages, paper_report): monkeypatch.setattr(place, 'published_exams', lambda: found)
    index = claim_pages.claims_index(given_matrix(), pd.DataFrame(columns=['ours', 'key']))
    report = paper_report.report_page()
    for kind, row, link, line in (('scenes', '| plain, normalised | 1 of 2 | class (no rivals) |', 'exam/exam.md', '- [Exam]('),
                                  ('photographs', "| LSTM, the program's cell | 1 of 2 | class (no rivals) |", 'exam/photographs.md',
                                   '- [Exam on photographs](')):
        assert (row in index) == (f'../{link}' in index) == (f'{line}{link})' in report) == (kind in taken), kind
    assert ('## What is understood on photographs' in index) == ('photographs' in taken)
    assert 'exam/' not in claim_pages.claims_index(given_matrix('coco-mini'), pd.DataFrame(columns=['ours', 'key']))
