"""The records in reports/runs: one folder a matrix, listed by code, found by name, and each of them read by something."""
import re
import shutil
import subprocess
from pathlib import Path
import pytest
from rrn.common.core import read_json, RRNError, write_json
from rrn.experiments.claims import settings_seen, with_settings, write_claims
from rrn.experiments.crate import write_some_tables
from rrn.experiments.matrix import given_matrix, MATRICES, PAGES
from rrn.experiments.record import find_run, published_folder, published_run, published_runs
from rrn.experiments.report import index_page, main, publish
from rrn.experiments.tables import write_tables

REPO = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path for path in (REPO/'reports'/'runs').glob('*/'))


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_lists_what_is_in_it(folder):
    page = (folder/'index.md').read_text()
    assert page == index_page(folder), 'run rrn publish'
    assert re.findall(r'\]\(([^)]+)/config.json\)', page), 'runs are links'


def read_by_reports():
    "Names of the runs that tables, claims, settings.md and the driver of README read."
    for name in MATRICES:
        matrix = given_matrix(name)
        for changes in settings_seen(matrix): yield from (c.run for c in with_settings(matrix, changes).cells())
    yield from re.findall(r"^run = '(\S+)'", (REPO/'nbs'/'readme.ipynb').read_text().replace('    "', ''), re.M)


def test_every_record_is_read_by_something():
    names = [run.name for run in published_runs()]
    assert len(names) == len(set(names)), 'a name is in one folder alone'
    assert set(names) <= set(read_by_reports()), sorted(set(names) - set(read_by_reports()))


def test_a_matrix_has_a_folder():
    "Complete for the matrices of the tables; the others share runs with them, and may not be done yet."
    for folder in FOLDERS:
        usual = {c.run for c in given_matrix(folder.name).cells()} if folder.name in MATRICES else None
        found = {path.parent.name for path in folder.glob('*/config.json')}
        assert found and found <= (usual or found), folder
        elsewhere = {run.name for run in published_runs()} - found if usual else set()
        if folder.name in ('embedded', 'coco-mini'): assert usual - found <= elsewhere, folder


def test_a_name_finds_a_record_wherever_it_is():
    for run in published_runs():
        assert published_run(run.name).folder == run.folder
    with pytest.raises(RRNError, match=r'published in .*embedded.*without its weights'):
        find_run(given_matrix().cell('row12', 'shapes-unc').run, folder='nowhere')


def test_days_of_versions_are_those_of_their_commits():
    for code, day in read_json(published_folder()/'dates.json').items():
        show = ['git', '-C', REPO, 'show', '-s', '--format=%cd', '--date=format-local:%Y-%m-%d', code]
        asked = subprocess.run(show, capture_output=True, text=True, env={'TZ': 'UTC', 'PATH': '/usr/bin:/bin'})
        assert asked.returncode or asked.stdout.strip() == day          # a shallow clone does not know the commit


def test_tables_and_claims_are_remade_byte_for_byte(tmp_path):
    for matrix, there in (('embedded', REPO/'reports'/'tables'), ('coco-mini', REPO/'reports'/'tables'/'coco-mini')):
        write_tables(given_matrix(matrix), tmp_path/matrix)
        write_claims(given_matrix(matrix), tmp_path/matrix)
        if matrix == 'embedded': write_some_tables(given_matrix(), tmp_path/matrix, PAGES)
        kept = {path.name: path.read_bytes() for path in there.glob('*.*')}
        assert kept == {path.name: path.read_bytes() for path in (tmp_path/matrix).iterdir()}, 'run nbs/tables.ipynb'


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout without records, and one finished run."
    shutil.copy(REPO/'settings.ini', tmp_path)
    (tmp_path/'nbs').symlink_to(REPO/'nbs')
    monkeypatch.chdir(tmp_path)
    there = published_run('shapes-unc-lstm543-tanh-s0-2bf514').folder
    assert not there.exists(), 'the checkout is another one'
    shutil.copytree(REPO/'reports'/'runs'/'single'/there.name, tmp_path/'runs'/'mine')
    return tmp_path


def test_publishing_lists_the_run_and_keeps_its_place(checkout, capsys):
    place = publish('mine', group='elsewhere')
    assert place == checkout/'reports'/'runs'/'elsewhere'/'mine' and '[mine](mine/config.json)' in (place.parent/'index.md').read_text()
    assert not list(place.glob('*.ipynb')), 'numbers alone'
    record = read_json(checkout/'runs'/'mine'/'config.json')
    write_json(checkout/'runs'/'mine'/'config.json', record | dict(finished='2031-01-02'))
    main(['mine', '--replace'])
    assert capsys.readouterr().out.strip() == str(place) and '2031-01-02' in (place.parent/'index.md').read_text()
    assert main(['mine']) == 1 and 'published already' in capsys.readouterr().err
    assert main(['mine', '--group', '../up']) == 1 and 'name of a run' in capsys.readouterr().err
