"""Claim pages: they are those of the records, and two clicks lead from a verdict to runs, seeds and rows."""
import os
import re
from pathlib import Path
from urllib.parse import unquote
import pandas as pd
import pytest
from rrn.experiments.claim_pages import claim_files, claims_place
from rrn.experiments.claims import ASKED
from rrn.experiments.matrix import given_matrix, PAGES as ANSWERS

REPO = Path(__file__).resolve().parents[1]
PAGES = REPO/'reports'/'claims'
pytestmark = pytest.mark.skipif(not (PAGES/'index.md').exists(), reason='reports/claims is not made yet: rrn report')
SHOWN = [name for name in ASKED if (PAGES/given_matrix(name).subfolder/'index.md').exists()]


def links(page):
    "The files that a page links to, with the anchor and what is on the web left out."
    found = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
    return [Path(os.path.normpath(page.parent/unquote(link.partition('#')[0]))) for link in found if '://' not in link]


@pytest.mark.parametrize('name', SHOWN)
def test_pages_are_those_of_the_records(name):
    matrix = given_matrix(name)
    made = claim_files(matrix)
    kept = {path.name: path.read_bytes() for path in claims_place(matrix).glob('*.*')}
    assert set(made) == set(kept), 'run rrn report pages'
    for file in made: assert made[file] == kept[file], f'{file}: run rrn report pages'


def test_every_link_leads_to_a_file():
    pages = [*PAGES.rglob('*.md'), *(REPO/'reports'/'tables').rglob('*.md'), REPO/'reports'/'report.md']
    assert len(pages) > 20
    for page in pages:
        for link in links(page): assert link.exists(), (page, link)


def test_two_clicks_from_a_verdict_to_its_rows():
    "From the line in claims.md to the page of the claim, and from there to each run's configuration and counts."
    table = pd.read_csv(REPO/'reports'/'tables'/'claims.csv').dropna(subset='ours')
    first = {link.stem: link for link in links(REPO/'reports'/'tables'/'claims.md') if link.parent == PAGES}
    for line in table.itertuples():
        second = links(first[line.key])
        for run in line.runs.split():
            assert any(link.parent.name == run and link.name == 'config.json' for link in second), (line.key, run)
            assert any(link.parent.parent.name == run and link.name.endswith('.csv.gz') for link in second), (line.key, run)


@pytest.mark.parametrize('page', ANSWERS)
def test_every_line_of_the_answer_has_a_page_with_its_verdict(page):
    "factors.md, depth.md and noise.md: difference and verdict stand on the page that a line links to, with the runs."
    lines = [line for line in (REPO/'reports'/'tables'/f'{page}.md').read_text().splitlines()
             if line.startswith('| ') and '](../claims/' in line]
    assert len(lines) >= 8
    for line in lines:
        verdict, difference = line.split('|')[-2].strip(), re.search(r'[+-][0-9.]+ \[[^]]+ to [^]]+\]', line)[0]
        text = (REPO/'reports'/'tables'/re.search(r'\]\(([^)]+)\)', line)[1]).read_text()
        assert any(difference in row and verdict in row for row in text.splitlines()), line
        assert 'config.json' in text and '.csv.gz' in text, line


def test_pictures_are_light():
    sizes = [path.stat().st_size for path in PAGES.rglob('*.svg')]
    assert sizes and max(sizes) < 40_000 and sum(path.stat().st_size for path in PAGES.rglob('*.*')) < 3_000_000
