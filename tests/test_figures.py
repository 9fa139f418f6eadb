"""Tables and figures from runs that were really trained, if only for a moment."""
import json
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np
import pandas as pd
import papermill
import pytest
from rrn.experiments.claims import CLAIMS, claims_table, our_difference
from rrn.evaluate import evaluate
from rrn.experiments.figures import (choose_cases, figure2, figure3, figure4, figure5, find_predictor, known_ious, own_case,
                                     figure_row, save_figure)
from rrn.experiments.matrix import given_matrix, Matrix
from rrn.metrics import SegmentationMetrics
from rrn.model import Config
from rrn.data.shapes import write_refer
from rrn.experiments.tables import results, table1, table2
from rrn.experiments.jobs import open_job, open_named, run_job
from rrn.experiments.record import add_metrics

TINY = dict(iterations=3, D_Q=8, D_I=8, D_S=8, embed_dim=8, image_size=64)


@pytest.fixture(scope='module')
def matrix(tmp_path_factory):
    "Rows 5 and 12 on a small embedded set, row 12 with two seeds."
    root = tmp_path_factory.mktemp('matrix')
    write_refer(root/'data', seed=9, sizes={'train': 10, 'val': 8, 'testA': 4, 'testB': 4}, workers=1)
    matrix = given_matrix(datasets='shapes-unc', more_seeds='1', data_root=str(root/'data'), folder=str(root/'runs'), **TINY)
    for system, seed in (('row5', 0), ('row12', 0), ('row12', 1)):
        cell = matrix.cell(system, 'shapes-unc', seed)
        job = open_job(**asdict(cell.config), preset='small', data_root=matrix.data_root)
        job = replace(job, run=matrix.run(cell.run))
        run_job(job)
        for split in cell.splits: add_metrics(job.run, f'shapes-unc {split}', evaluate(job.model, job.samples(split), job.reader(), threshold=.45), 'rrn')
    return matrix


def test_a_cell_is_the_mean_of_its_runs(matrix):
    long = table1(matrix).set_index(['row', 'column'])
    found = results(matrix, 'row12', 'shapes-unc', 'val')
    assert len(found.runs) == 2 and long.loc[('row12', 'overall_iou'), 'seeds'] == 2
    for metric in ('overall_iou', 'prec@0.5'):
        each = []
        for name in found.runs: each.append(json.loads((matrix.run(name).folder/'metrics.json').read_text())['shapes-unc val'][metric])
        assert long.loc[('row12', metric), 'ours'] == pytest.approx(np.mean(each))
    assert table2(matrix).dropna(subset='ours').column.tolist() == ['unc val', 'unc testA', 'unc testB'] * 2


def test_a_difference_is_that_of_the_tables(matrix):
    claim = next(c for c in CLAIMS if c.text == 'The LSTM beats the plain structure')
    for split in ('val', 'testA'):
        found = our_difference(claim, matrix, 'unc', split)
        ours = found.estimate.interval()
        a, b = (results(matrix, s, 'shapes-unc', split).of_seeds([0]).interval().value for s in ('row12', 'row5'))
        assert ours.value == pytest.approx(a - b) and ours.low <= ours.value <= ours.high and found.seeds == 1
    assert set(claims_table(matrix).dropna(subset='ours').claim) == {claim.text}


def test_rows_agree_with_the_metrics(matrix):
    found = results(matrix, 'row5', 'shapes-unc', 'val')
    metrics = SegmentationMetrics(); metrics.add(found.intersections[0], found.unions[0])
    kept = json.loads((matrix.run(found.runs[0]).folder/'metrics.json').read_text())['shapes-unc val']
    assert {k: kept[k] for k in metrics.compute()} == pytest.approx(metrics.compute())


def test_figures_are_drawn_and_missing_runs_are_grey(matrix, tmp_path):
    dataset = open_named('shapes-unc', matrix.data_root)
    some = choose_cases(dataset, 'val', 2, rule='spread', ious=known_ious(matrix, 'shapes-unc', 'val'))
    for name, fig in (('figure2', figure2(find_predictor(matrix, 'row12', 'shapes-unc').model)), ('figure3', figure3(some, matrix, 'shapes-unc')),
                      ('figure4', figure4(some, matrix, 'shapes-unc')), ('figure5', figure5({'shapes-unc': some}, matrix))):
        save_figure(fig, tmp_path, name)
        assert (tmp_path/f'{name}.png').read_bytes()[:4] == b'\x89PNG' and (tmp_path/f'{name}.pdf').read_bytes()[:5] == b'%PDF-'
    shown = figure_row(some[0], {'plain': find_predictor(matrix, 'row5', 'shapes-unc'), 'RNN': find_predictor(matrix, 'row9', 'shapes-unc')})
    assert [t.split(' (')[0] for t, _ in shown] == ['image', 'truth', 'plain', 'RNN: no run'] and (shown[-1][1] == 200).all()
    assert all(picture.shape == some[0].image.shape for _, picture in shown)


def test_a_picture_and_sentence_of_ones_own(matrix):
    sample = open_named('shapes-unc', matrix.data_root).samples('testA')[0]
    shown = figure_row(own_case(sample.image, 'left thing'), {'LSTM': find_predictor(matrix, 'row12', 'shapes-unc')})
    assert [t for t, _ in shown] == ['image', 'LSTM']          # no truth, so no IoU


def test_the_parameters_of_drivers_mean_no_field_of_the_matrix_unless_they_are_it():
    "The number of cases in a figure was called `rows` as well, so that no matrix with chosen rows had figures."
    fields = {**Matrix.__dataclass_fields__, **Config.__dataclass_fields__}
    for name, shared in (('figures', {'folder', 'segmentation'}), ('tables', {'folder'})):
        cells = json.loads((Path(__file__).resolve().parents[1]/'nbs'/f'{name}.ipynb').read_text())['cells']
        source, = (''.join(c['source']) for c in cells if c['metadata'].get('tags') == ['parameters'])
        assert {line.split('=')[0].strip() for line in source.splitlines() if '=' in line} & set(fields) == shared


def test_the_tables_notebook(matrix, tmp_path):
    notebook = Path(__file__).resolve().parents[1]/'nbs'/'tables.ipynb'
    papermill.execute_notebook(notebook, tmp_path/'out.ipynb', dict(datasets='shapes-unc', more_seeds='1', folder=matrix.folder, out=str(tmp_path/'tables'), **TINY), cwd=tmp_path, progress_bar=False)
    assert {p.name for p in (tmp_path/'tables').iterdir()} == {f'table{n}.{k}' for n in (1, 2) for k in ('md', 'csv', 'tex')} | {'claims.md', 'claims.csv'}
    assert pd.read_csv(tmp_path/'tables'/'table1.csv').ours.notna().sum() == 12
