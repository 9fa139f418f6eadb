"""The page on scoring, word for word: each command and each block of Python, in an empty folder."""
import json, re, shlex
from pathlib import Path
import pytest
from rrn.cli import main

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO/'docs'/'score.md').read_text()

# pycocotools 2.0.11 has not caught up with NumPy's new `copy` argument yet; nothing here depends on it
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')


def steps() -> list:
    "What the page has one do, in its order: ('python', text) and ('shell', line)."
    found = re.finditer(r'^```python\n(.*?)^```$|^    (\S[^\n]*)$', PAGE, re.M | re.S)
    return [('python', m[1]) if m[1] else ('shell', m[2]) for m in found]


def test_the_page_word_for_word(tmp_path, monkeypatch, capsys):
    (tmp_path/'settings.ini').touch()                    # looks like the clone
    (tmp_path/'nbs').mkdir()
    monkeypatch.chdir(tmp_path)
    names, said = {}, {}
    for kind, text in steps():
        if kind == 'python': exec(text, names)
        elif text.startswith('rrn '):
            assert main(shlex.split(text)[1:]) == 0, text
            said[text] = capsys.readouterr().out
        else: assert text == 'pip install ".[score,leaks]"'
    assert len(said) == 8
    files = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path/'runs').glob('*/score-shapes-unc-val.json')}
    assert set(files) == {'masks', 'as-json', 'as-npz', 'as-parquet'}
    scores = files['masks']['scores']
    assert all(f['scores'] == scores for f in files.values()), 'one set of masks in four forms'
    assert 20 < scores['paper']['overall_iou']['low'] < scores['paper']['overall_iou']['high'] < 95
    assert not any(f['sets'][0]['tally'] for f in files.values()) and files['masks']['differences']['paper']['overall_iou']['verdict'] == 'undecided'
    leaks, own, _ = list(said.values())[-3:]
    share = len({s.sent_id for s in names['samples'] if s.image_id in names['seen']}) / len(names['samples'])
    assert re.search(rf'\| shapes-unc val \| 5 \| \d+ \| \d+ \| {len(names["samples"])} \| {100 * share:.1f} \|', leaks)
    assert len(list((tmp_path/'example'/'questions').glob('*'))) > 2, 'the exam is written for a model elsewhere'
    assert leaks.count('| without |') == leaks.count('| trained on |') == 4 and 'own training splits' in own


def test_the_page_is_found():
    assert 'docs/score.md' in (REPO/'README.md').read_text()


def test_the_page_names_every_data_set_and_split():
    from rrn.data.refer import EXPECTED
    rows = re.findall(r'^\| \w\S* \| (.*?) \| (.*?) \|$', PAGE, re.M)
    names = {n for row, _ in rows for n in re.findall(r'`([\w+-]+)`', row)}
    assert set(EXPECTED) <= names
