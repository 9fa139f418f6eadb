"""What is said about equation (2) follows from the record that lies there; wrong runs are told."""
import json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from rrn.common.core import RRNError
from rrn.experiments.why import (BARE_CELL, conclusion, decided, explain, factor_of, GATED_CELL, GUESSES, NORMED_CELL, WHENS,
                                 WHY_COLUMNS, why_page)
from rrn.model import preset

FOLDER = Path(__file__).resolve().parents[1]/'reports'/'why'


def made_up(ends, score, start):
    "Lines of the three cells (bare, norms on gates, all norms) with these shares of full gates, scores and sizes at first."
    lines = []
    for name, *values in zip((BARE_CELL, GATED_CELL, NORMED_CELL), ends, score, start):
        for when, step in ((when, step) for when in WHENS for step in range(4)):
            size = values[2] if when == 'before' else 1.
            known = [('gradient', 'h', size), ('rms', 'h', size), ('read', 'probe', values[1]), ('read', 'own head', values[1])]
            known += [('saturated', letter, values[0]) for letter in 'ifog']
            lines += [('run', name, 0, when, measure, part, step, value) for measure, part, value in known]
    return pd.DataFrame(lines, columns=WHY_COLUMNS)


def test_the_published_page_is_that_of_its_table():
    facts, table = json.loads((FOLDER/'why.json').read_text()), pd.read_csv(FOLDER/'why.csv')
    assert (FOLDER/'why.md').read_text() == why_page(table, facts)
    assert set(table.run) == set(facts['runs']) and np.isfinite(table.value).all()


def test_a_small_start_is_excluded_only_by_a_cell_that_starts_small_and_gets_there():
    said = lambda **values: conclusion(made_up(**values))[0]
    assert 'alone does not stop it' in said(ends=(.3, .1, .1), score=(50, 58, 59), start=(.1, .1, .4))
    assert 'may be what stops it' in said(ends=(.3, .1, .1), score=(50, 51, 59), start=(.1, .1, .4))
    assert 'does not tell the cells apart' in said(ends=(.3, .1, .1), score=(50, 58, 59), start=(.1, .4, .4))


def test_gates_at_their_ends_go_with_the_scores_or_do_not():
    said = lambda ends: conclusion(made_up(ends, score=(50, 58, 59), start=(.1, .1, .4)))[1]
    assert 'goes with' in said((.3, .1, .1)) and 'does not go with' in said((.3, .29, .1))
    assert conclusion(made_up((.3, .1, .1), (50, 58, 59), (.1, .1, .4)).query('system != @GATED_CELL')) == []


def test_a_guess_needs_both_cells():
    table = made_up((.3, .1, .1), (50, 58, 59), (.1, .1, .4))
    assert [decided(table, guess)['answer'] for guess in GUESSES] == ['holds', 'holds', 'does not hold', 'holds', 'holds', 'holds']
    assert decided(table[table.system == BARE_CELL], GUESSES[0])['answer'] == ''


def test_what_cannot_be_looked_into():
    with pytest.raises(RRNError, match='which runs'): explain(())
    with pytest.raises(RRNError, match="update='fpn'.*none of row5"): factor_of(preset('small', update='fpn', activation='relu'))
