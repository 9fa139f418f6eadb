"""The report says what tables and records say, and nothing else."""
import re
import shutil
from pathlib import Path
import pandas as pd
import pytest
from rrn.common.core import RRNError
from rrn.experiments.claims import CLAIM_VERDICTS, NO_VERDICTS, SAME_VERDICT
from rrn.experiments.paper_report import (answer_headline, BARE_KEY, BROWSERS, findings, gates_answer, made_table, main,
                                          NORMALISED_KEY, print_pdf, report_html, report_page)
from rrn.experiments.report import read_records

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO/'reports'/'report.md'
is_made = pytest.mark.skipif(not PAGE.exists(), reason='reports/report.md is not made yet: rrn report')


@is_made
def test_the_report_is_that_of_the_records():
    "So a number that somebody plants is found."
    page = report_page()
    assert PAGE.read_text() == page, 'run rrn report'
    assert page != PAGE.read_text().replace('points', '99.9 points', 1)
    assert (REPO/'reports'/'report.html').read_text() == report_html(page), 'run rrn report'


def test_the_template_holds_no_number():
    template = (REPO/'rrn'/'assets'/'pages'/'report.md').read_text()
    said = re.sub(r'\{\{.*?\}\}|\{%.*?%\}|\]\([^)]*\)|^#.*$', '', template, flags=re.S | re.M)
    assert not re.findall(r'[+-]?\d+\.\d|\d\d', said), 'numbers come from tables and records'


@is_made
def test_it_has_the_parts_of_a_reproducibility_report():
    page = PAGE.read_text()
    for part in ('**Scope.**', '**Method.**', '**Results.**', '**What was easy', '**What was difficult',
                 '**Communication with the authors.**', '## 5. The strongest objections', '**Cost.**'):
        assert part in page, part
    assert len(page.split()) < 1600, 'two pages'


@pytest.mark.parametrize('normalised', [*CLAIM_VERDICTS, *NO_VERDICTS, 'not compared'])
@pytest.mark.parametrize('bare', [*CLAIM_VERDICTS, 'not compared'])
def test_every_pair_of_verdicts_has_an_answer(bare, normalised):
    said = answer_headline(bare, normalised)
    assert said.endswith('.') and ('not known yet' in said) == (normalised not in CLAIM_VERDICTS)


def test_the_answer_follows_the_verdicts():
    lines = pd.DataFrame([dict(key=k, data='unc val', paper=4., ours=1., low=.5, high=1.5, seeds=3, verdict='', why='')
                          for k in (BARE_KEY, NORMALISED_KEY)])
    scores = pd.DataFrame([dict(structure='plain', normalisation='none', data='unc val', seeds=3, overall_iou=50.,
                                low=49., high=51.)])
    found = {v: gates_answer(lines.assign(verdict=v), scores)['headline'] for v in CLAIM_VERDICTS}
    assert len(set(found.values())) == len(CLAIM_VERDICTS)
    assert 'helps' in found['confirmed'] and 'does not help' in found['contradicted']
    assert 'change less than counts' in found[SAME_VERDICT] and 'undecided' in found['undecided']


def test_tables_of_an_older_version_are_one_clear_error(tmp_path):
    pd.DataFrame(dict(claim=['x'], ours=[1.])).to_csv(tmp_path/'claims.csv', index=False)
    (tmp_path/'coco-mini').mkdir()
    pd.DataFrame(dict(claim=['x'], ours=[1.])).to_csv(tmp_path/'coco-mini'/'claims.csv', index=False)
    with pytest.raises(RRNError, match='older version'): report_page(tmp_path)
    with pytest.raises(RRNError, match='snakemake reports'): made_table('none.csv', tmp_path)


@is_made
def test_findings_are_three_sentences_with_objections():
    record, = [r for r in read_records() if r['run'] == 'shapes-unc-lstm543-tanh-s0-2bf514']
    said = findings(record)
    assert said.count('*Objection*') == said.count('\n- **') + 1 == 3 and '61.4' in said


def test_wrong_words_are_one_clear_error(capsys):
    assert main(['pagse']) == 1 and "Did you mean 'pages'" in capsys.readouterr().err


def test_it_prints_on_two_pages(tmp_path):
    "With the Chromium that is there; without one, what to do is said."
    (tmp_path/'report.html').write_text((REPO/'reports'/'report.html').read_text())
    if not any(map(shutil.which, BROWSERS)): pytest.skip('no Chromium here (apt-get install chromium)')
    printed = print_pdf(tmp_path).read_bytes()
    assert printed.startswith(b'%PDF') and len(re.findall(rb'/Type\s*/Page\b', printed)) == 2


def test_without_a_browser_or_a_page_printing_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(RRNError, match='rrn report report makes it'): print_pdf(tmp_path)
    (tmp_path/'report.html').write_text('<p>a page')
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RRNError, match='in any browser and print it'): print_pdf(tmp_path)
    assert not (tmp_path/'report.pdf').exists()
