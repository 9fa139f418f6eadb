"""A table is made of runs of the same data, without gaps that nobody asked for, and never written over a fuller one."""
import json
from dataclasses import asdict
from pathlib import Path
import numpy as np
import pandas as pd
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from rrn.common.core import files_at_rest, RRNError
from rrn.experiments import tables
from rrn.experiments.claims import claims_table, settings_seen, write_claims
from rrn.experiments.figures import figures_place
from rrn.experiments.matrix import given_matrix, result_keys, MATRICES, publish_all, report_place, record_state
from rrn.experiments.record import data_fingerprint, read_rows, write_rows
from rrn.experiments.report import publish
from rrn.common.core import write_json
from rrn.data.shapes import write_refer
from rrn.experiments.tables import table_conditions, table1, table2, write_tables
from rrn.experiments.jobs import open_named
from rrn.experiments.workflow import overview

REPO = Path(__file__).resolve().parents[1]
SCORES = ['overall_iou', 'mean_iou', *(f'prec@0.{n}' for n in (5, 6, 7, 8, 9))]
ENTRY = dict.fromkeys(SCORES, 50.) | dict(sentences=60, protocol='rrn')


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout of its own without runs, as the working directory."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'data').mkdir()
    for name in ('settings.ini', 'nbs', 'data/published.yaml'): (tmp_path/name).symlink_to(REPO/name)
    return tmp_path


def pretend(matrix, cell, data='', scored='', skipped=0):
    "A finished record with made-up counts, of the data with these fingerprints."
    run, rng = matrix.run(cell.run), np.random.default_rng(0)
    counts = dict(intersection=rng.integers(20, 80, 60), union=100)
    rows = pd.DataFrame(dict(sent_id=range(60), image_id=np.arange(60) // 3) | counts)
    for key in result_keys(cell): write_rows(run, key, rows)
    entry = ENTRY | dict(skipped=skipped) | (dict(data=scored) if scored else {})
    write_json(run.metrics, dict.fromkeys(result_keys(cell), entry))
    facts = dict(preset='small', data='drawn', training_seconds=60., device='a CPU', code='abc', versions=dict(torch='2'))
    identity = dict(data=data) if data else {}
    write_json(run.folder/'config.json', dict(config=asdict(cell.config), identity=identity, **facts))
    return run


def small(**settings): return given_matrix(**dict(datasets='shapes-unc', more_seeds='', rows='row5,row12') | settings)


@pytest.mark.parametrize('which', ['data', 'scored'])
def test_runs_of_different_data_make_no_table(checkout, which):
    "71 rows of B and 73 of A made one table in silence."
    matrix = small(folder='somewhere')
    first, second = matrix.cells()[:2]
    a, b = (pretend(matrix, cell, **{which: letter * 64}) for cell, letter in ((first, 'a'), (second, 'b')))
    for make in (table1, table2, claims_table, write_tables, write_claims):
        with pytest.raises(RRNError, match=f"no table.*{'a' * 16}: {a.name}.*{'b' * 16}: {b.name}"): make(matrix)
    assert not (checkout/'somewhere'/'reports').exists()
    pretend(matrix, second, **{which: 'a' * 64})
    assert table1(matrix).ours.notna().sum() == 12


def test_a_run_that_does_not_know_its_data_is_said(checkout):
    matrix = small(folder='somewhere')
    first, second = matrix.cells()[:2]
    pretend(matrix, first); pretend(matrix, second)
    assert 'cannot be checked' not in table_conditions(table1(matrix), matrix), 'all are of before'
    pretend(matrix, second, 'a' * 64)
    assert '1 of the runs are older than fingerprints' in table_conditions(table1(matrix), matrix)


def test_skipped_expressions_keep_a_run_out_unless_allowed(checkout):
    matrix = small(folder='somewhere')
    first, second = matrix.cells()[:2]
    pretend(matrix, first); run = pretend(matrix, second, skipped=3)
    assert table1(matrix).dropna(subset='ours').row.unique().tolist() == [first.system]
    assert f'{run.name}: {3 * len(result_keys(second))} expressions were skipped' in overview(matrix, estimate=False)
    allowed = small(folder='somewhere', allow_skipped=True)
    assert table1(allowed).dropna(subset='ours').row.unique().tolist() == [first.system, second.system]
    assert 'could not be read are left out' in table_conditions(table1(allowed), allowed)


def test_other_data_than_the_runs_is_said_and_nothing_more_is_trained_on_it(checkout):
    sizes = dict(train=3, val=1, testA=1, testB=1)
    for name, seed in (('A', 3), ('B', 4)): write_refer(checkout/name, seed=seed, sizes=sizes, workers=1)
    of_a = data_fingerprint(open_named('shapes-unc', str(checkout/'A')).samples('train'))
    matrix = small(folder='somewhere', data_root='A')
    cells = matrix.cells()
    for cell in cells[1:]: pretend(matrix, cell, of_a)
    assert 'other data' not in overview(matrix, estimate=False)
    other = small(folder='somewhere', data_root='B')
    said = "runs were trained on other data than data_root='B' holds now"
    with pytest.raises(RRNError, match=f'5 {said}.*and 1 are missing'): overview(other, estimate=False)
    pretend(matrix, cells[0], of_a)
    assert f'6 {said}' in overview(other, estimate=False)


def test_tables_are_never_written_over_fuller_ones(checkout):
    matrix = small(folder='somewhere')
    for cell in matrix.cells(): pretend(matrix, cell)
    write_tables(matrix); write_claims(matrix)
    place = report_place(matrix, 'tables')
    before = {p: p.read_bytes() for p in place.iterdir()}
    for fewer in (small(folder='nowhere'), small(folder='somewhere', iterations=7)):
        for write in (write_tables, write_claims):
            with pytest.raises(RRNError, match='Nothing is written over it'): write(fewer, place)
    assert {p: p.read_bytes() for p in place.iterdir()} == before and len(before) == 8


def test_only_published_runs_change_what_is_published(checkout, monkeypatch):
    "Tables of what is trained here go beside the runs; after the explicit step, to reports/."
    monkeypatch.setitem(MATRICES, 'embedded', small())
    matrix = given_matrix()
    for cell in matrix.cells(): pretend(matrix, cell, 'a' * 64)
    assert {record_state(matrix, c) for c in matrix.cells()} == {'here'}
    assert report_place(matrix, 'tables') == checkout/'runs'/'reports'/'embedded'/'tables'
    assert publish_all(matrix) == [c.run for c in matrix.cells()]
    assert {record_state(matrix, c) for c in matrix.cells()} == {'published'}
    assert report_place(matrix, 'tables') == checkout/'reports'/'tables'
    assert report_place(given_matrix(rows='row5'), 'tables') != report_place(matrix, 'tables')
    other = small(iterations=7)
    for cell in other.cells(): pretend(other, cell, 'a' * 64)
    write_claims(matrix)
    assert settings_seen(matrix) == [{}] and not (checkout/'reports'/'tables'/'settings.md').exists()
    for cell in other.cells(): publish(cell.run, group='settings')
    write_claims(matrix)
    assert settings_seen(matrix) == [{}, dict(iterations=7)] and 'iterations 7' in (checkout/'reports'/'tables'/'settings.md').read_text()


def test_a_report_reads_each_record_once_and_the_next_one_reads_it_again(checkout, monkeypatch):
    matrix, asked = small(folder='somewhere'), []
    for cell in matrix.cells(): pretend(matrix, cell)
    monkeypatch.setattr(tables, 'read_rows', lambda run, key: asked.append((run.name, key)) or read_rows(run, key))
    with files_at_rest():
        write_tables(matrix)
        write_claims(matrix)
    once = len(asked)
    assert once == len(set(asked)) > 10
    before = table1(matrix).ours.tolist()
    row5 = pretend(matrix, matrix.cells()[0])
    write_rows(row5, 'shapes-unc val', read_rows(row5, 'shapes-unc val').assign(intersection=7))
    assert len(asked) > once and table1(matrix).ours.tolist() != before


@pytest.mark.parametrize('notebook, parameters', [('figures', {}), ('tables', dict(folder='none'))])
def test_drivers_without_runs_leave_what_is_there(checkout, notebook, parameters):
    "Figures became grey panels with `runs: []`, and the workflow took them for done."
    place = checkout/'there'
    kept = {'figures.json': json.dumps(dict(runs=['x', 'y'])), 'figure1.png': 'drawn',
            'table1.csv': 'row,ours\nrow1,50\n', 'table2.csv': 'row,ours\n', 'table1.md': 'old'}
    place.mkdir()
    for name, content in kept.items(): (place/name).write_text(content)
    given = dict(out=str(place), datasets='shapes-unc') | parameters
    with pytest.raises(PapermillExecutionError, match='embedded has weights|Nothing is written over it'):
        driver = REPO/'nbs'/f'{notebook}.ipynb'
        papermill.execute_notebook(driver, checkout/'out.ipynb', given, cwd=checkout, progress_bar=False)
    assert {p.name: p.read_text() for p in place.iterdir()} == kept


def test_figures_go_where_they_harm_nothing(checkout):
    matrix = small()
    cell = matrix.cell('row12', 'shapes-unc')
    pretend(matrix, cell); matrix.run(cell.run).weights.write_text('weights')
    assert figures_place(matrix) == report_place(matrix, 'figures') != checkout/'reports'/'figures'
    assert figures_place(matrix, image='photos/my cat.jpg') == checkout/'runs'/'figures'/'my cat'
    write_json(checkout/'there'/'figures.json', dict(runs=['x', 'y']))
    with pytest.raises(RRNError, match='2 runs, and there are weights of 1'): figures_place(matrix, checkout/'there')


def test_published_records_are_found_by_the_names_that_they_have():
    for name in ('embedded', 'coco-mini'):
        cells = given_matrix(name).cells()
        lost = [c.run for c in cells if not (REPO/'reports'/'runs'/name/c.run/'config.json').exists()]
        assert not lost, f'{len(lost)} of {len(cells)}'


def test_referit_is_trained_on_both_its_splits():
    splits = {(c.config.dataset == 'referit', c.config.split) for c in given_matrix('paper').cells()}
    assert splits == {(True, 'trainval'), (False, 'train')}
    assert {c.config.split for c in given_matrix().cells()} == {'train'}
