"""The page on differences: its tests exist, its switches are fields, its text is what the code makes, its driver runs."""
import ast
import json
from dataclasses import asdict, fields
from pathlib import Path
import papermill
import pytest
from rrn.experiments.deviations import DEVIATIONS, effect, deviations_page, read_effects, trainable, both_sides
from rrn.model import Config, preset

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('d', DEVIATIONS, ids=lambda d: d.name.replace(' ', '-'))
def test_the_test_that_proves_it_exists(d):
    path, _, name = d.test.partition('::')
    assert (REPO/path).is_file(), d.test
    if path.endswith('.ipynb'): return
    names = {node.name for node in ast.walk(ast.parse((REPO/path).read_text())) if isinstance(node, ast.FunctionDef)}
    assert name.startswith('test_') and name in names, d.test


def test_every_field_has_one_row_and_the_presets_values():
    "Fields in which the presets differ are in the table once, and nothing else."
    listed = [k for d in DEVIATIONS for k in d.fields]
    paper, released = asdict(preset('paper')), asdict(preset('released'))
    assert len(listed) == len(set(listed)) and set(listed) <= {f.name for f in fields(Config)}
    assert set(listed) == {k for k in paper if paper[k] != released[k]}
    for d in DEVIATIONS:
        for k, (a, b) in d.fields.items(): assert (a, b) == (paper[k], released[k]), d.name


@pytest.mark.parametrize('iterations', [3, 600, 3200])
def test_one_field_at_a_time(iterations):
    base = preset('small', iterations=iterations)
    for d in trainable():
        a, b = map(asdict, both_sides(d, base))
        assert {k for k in a if a[k] != b[k]} == set(d.fields)
        assert all(a[k] == asdict(base)[k] or k in d.given or k in d.fields for k in a)


def test_the_page_is_what_the_code_makes():
    report = read_effects(REPO/'reports'/'deviations.json')
    assert (REPO/'docs'/'deviations.md').read_text() == deviations_page(report), 'write it again: rrn.experiments.deviations.write_deviations_page()'
    shown = [line.split(' | ')[-1].strip(' |') for line in deviations_page(report).split('\n') if line.startswith('| ')][2:]
    assert shown == [effect(d, report) for d in DEVIATIONS]


def test_the_driver(tmp_path):
    "Two differences, three steps, in a folder of its own: records with provenance; what is known is not trained again."
    from rrn.data.shapes import write_refer
    write_refer(tmp_path/'scenes', seed=9, sizes={'train': 4, 'val': 2, 'testA': 1, 'testB': 1}, workers=1)
    before = (REPO/'docs'/'deviations.md').read_text()
    how = dict(iterations=3, only='start,upsample', data_root=str(tmp_path/'scenes'), report=str(tmp_path/'d.json'), device='cpu')
    papermill.execute_notebook(REPO/'nbs'/'deviations.ipynb', tmp_path/'out.ipynb', how, cwd=tmp_path, progress_bar=False)
    report = json.loads((tmp_path/'d.json').read_text())
    assert len(report['runs']) == 3 and report['base'] == asdict(preset('small', iterations=3))
    for run in report['runs']:
        assert {'config', 'preset', 'data', 'on', 'sentences', 'protocols', 'training_seconds', 'code', 'versions', 'device'} <= set(run)
        assert set(run['protocols']) >= {'paper', 'released'} and 0 <= run['protocols']['paper']['overall_iou'] <= 100
    assert [d.name for d in DEVIATIONS if effect(d, report)] == ['start of the refinement', 'sigmoid and upsampling', 'predictions that are scored']
    assert (REPO/'docs'/'deviations.md').read_text() == before, 'a report elsewhere leaves the page alone'
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean 'start'"):
        papermill.execute_notebook(REPO/'nbs'/'deviations.ipynb', tmp_path/'out.ipynb', how | dict(only='strat'), cwd=tmp_path, progress_bar=False)
