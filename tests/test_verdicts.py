"""Intervals that hold what they promise with three seeds, one family of tests, and verdicts that exclude each other."""
from dataclasses import asdict
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from rrn.common.core import RRNError, write_json
from rrn.experiments.claims import (CLAIM_COLUMNS, CLAIM_VERDICTS, CLAIMS, claims_page, claims_table, holm, NO_VERDICTS, paper_difference, SAME_VERDICT, SMALLEST_DIFFERENCE, training_doubt, verdict,
                                    with_verdicts)
from rrn.experiments.matrix import given_matrix
from rrn.experiments.record import write_rows
from rrn.experiments.tables import results, signed_sum, table1, Term
from rrn.metrics import estimate, Estimate, Interval, paired_bootstrap, PERCENT, run_scores

SPREAD = .02        # of runs, as a share of their score


# ---- intervals ---------------------------------------------------------------------------------------------------------

def two_systems(seed, runs=3, n=100, gap=.05):
    "Counts of two systems' runs on the same images: what differs from run to run is as large as what images do to a difference."
    rng = np.random.default_rng(seed)
    hard = rng.normal(.5, .15, n)
    return [rng.binomial(200, np.clip(hard + mean + rng.normal(0, SPREAD, (runs, 1)) + rng.normal(0, .1, n), 0, 1)) for mean in (gap, 0)]


def test_with_three_seeds_the_truth_is_covered_about_as_often_as_is_said():
    images, unions, trials, held = np.arange(100), np.full((3, 100), 200), 400, dict(images=0, both=0)
    for seed in range(trials):
        a, b = two_systems(seed)
        alone = paired_bootstrap((a, unions), (b, unions), images, draws=200, seed=seed)
        terms = [(sign, *run_scores(counts, unions, images, draws=200, seed=seed)) for sign, counts in ((1, a), (-1, b))]
        both = estimate(terms, 100).interval()
        assert both.value == pytest.approx(alone.value)
        for name, interval in (('images', alone), ('both', both)): held[name] += interval.low <= 5 <= interval.high
    assert .92 * trials <= held['both'] <= .98 * trials, held
    assert held['images'] < .88 * trials, held


def test_a_percentile_bootstrap_over_three_seeds_is_too_narrow():
    "What was there before: seeds drawn with replacement, and the middle 95 % of their means."
    shares, held, trials = np.random.default_rng(0).multinomial(3, [1/3] * 3, size=400) / 3, dict(percentile=0, t=0), 400
    for seed in range(trials):
        runs = np.random.default_rng(seed).normal(50, 1, 3)
        low, high = np.percentile(shares @ runs, [2.5, 97.5])
        both = estimate([(1, runs, np.repeat(runs[:, None], 5, 1))], 100).interval()
        held['percentile'] += low <= 50 <= high
        held['t'] += both.low <= 50 <= both.high
    assert held['percentile'] < .8 * trials and .92 * trials <= held['t'] <= .98 * trials, held


def test_the_interval_is_students_where_only_seeds_differ_and_normal_where_only_images_do():
    runs = np.array([60., 61, 64])
    seeds = estimate([(1, runs, np.repeat(runs[:, None], 7, 1))], 1000)
    low, high = stats.t.interval(.95, 2, runs.mean(), stats.sem(runs))
    assert tuple(seeds.interval()) == pytest.approx((runs.mean(), low, high)) and seeds.df == pytest.approx(2)
    assert seeds.p_differs(60) == pytest.approx(stats.ttest_1samp(runs, 60).pvalue)
    drawn = np.random.default_rng(0).normal(60, 2, (1, 5000))
    images = estimate([(1, [60.], drawn)], 1000)
    assert tuple(images.interval()) == pytest.approx((60, 60 - 1.96*2, 60 + 1.96*2), rel=.01) and images.df == pytest.approx(999)


def test_seeds_are_paired_where_there_are_as_many():
    "Seeds that move both systems alike cancel; of other numbers of seeds each adds its own part."
    shared, flat = np.array([-3., 0, 3]), lambda runs: np.repeat(np.array(runs)[:, None], 9, 1)
    paired = estimate([(1, 60 + shared, flat(60 + shared)), (-1, 55 + shared, flat(55 + shared))], 50)
    assert paired.error == 0 and paired.value == 5 and paired.p_differs() == 0 and paired.interval() == (5, 5, 5)
    unequal = estimate([(1, 60 + shared, flat(60 + shared)), (-1, [55.], flat([55.]))], 50)
    assert unequal.value == 5 and unequal.error == pytest.approx(shared.std(ddof=1) / 3**.5)
    both = estimate([(1, 60 + shared, flat(60 + shared)), (-1, [54., 56], flat([54., 56]))], 50)
    welch = stats.ttest_ind(60 + shared, [54, 56], equal_var=False)
    assert both.p_differs() == pytest.approx(welch.pvalue) and both.df == pytest.approx(welch.df)


def test_a_known_quantity_needs_no_test():
    sure = Estimate(0., 0., 9.)
    assert (sure.p_differs(), sure.p_differs(1), sure.p_within(1), sure.p_within(1, 3)) == (1, 0, 0, 1)
    assert Estimate(99.9, 1., 9.).interval(within=PERCENT).high == 100


@given(st.floats(-9, 9), st.floats(.01, 9), st.floats(1, 500), st.floats(.1, 9))
@settings(max_examples=300, deadline=None)
def test_tests_and_intervals_agree(value, error, df, margin):
    e = Estimate(value, error, df)
    low, high = e.interval()[1:]
    if min(abs(low), abs(high)) > 1e-6: assert (e.p_differs() < .05) == (low > 0 or high < 0)
    low, high = e.interval(90)[1:]
    if min(abs(low + margin), abs(high - margin)) > 1e-6: assert (e.p_within(margin) < .05) == (-margin < low and high < margin)


# ---- the family --------------------------------------------------------------------------------------------------------

def test_holm_by_hand():
    "The example of the R manual's kind: sorted .005 .01 .03 .04 of four."
    assert holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])
    assert holm([.5, .5]).tolist() == [1, 1] and holm([]).tolist() == [] and holm([.02]).tolist() == [.02]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_holm_is_its_definition(p):
    "Rejected at a level: the longest run of smallest p with p_(i) <= level / (m - i)."
    adjusted = holm(p)
    for level in (.01, .05, .3):
        left, rejected = sorted(range(len(p)), key=lambda i: p[i]), set()
        while left and p[left[0]] * len(left) <= level: rejected.add(left.pop(0))
        assert {i for i, q in enumerate(adjusted) if q <= level} >= rejected
        assert all(min(p[i] * len(left), 1) > level for i in left[:1])
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()


# ---- verdicts ----------------------------------------------------------------------------------------------------------

def verdicts(e, factor):
    "The verdict on each expectation, of a difference whose p count `factor` times."
    p, same = (min(1, factor * p) for p in (e.p_differs(), e.p_within(SMALLEST_DIFFERENCE)))
    return {expect: verdict(e.interval(), p, same, expect) for expect in ('more', 'less', 'same')}


@given(st.floats(-4, 4), st.floats(0, 3), st.floats(1, 500), st.integers(1, 300))
@settings(max_examples=400, deadline=None)
def test_verdicts_exclude_each_other(value, error, df, factor):
    "Whatever the difference: at most one of 'more', 'less' and 'same' is confirmed, and better never goes with the same."
    said = verdicts(Estimate(value, error, df), factor)
    assert set(said.values()) <= set(CLAIM_VERDICTS)
    confirmed = [expect for expect, v in said.items() if v == 'confirmed']
    assert len(confirmed) <= 1
    assert (said['more'] == SAME_VERDICT) == (said['less'] == SAME_VERDICT) == (said['same'] == 'confirmed')
    assert (said['more'] == 'confirmed') == (said['less'] == 'contradicted')
    if said['same'] == 'contradicted': assert 'confirmed' in (said['more'], said['less']) and abs(value) > SMALLEST_DIFFERENCE


def test_half_a_point_is_not_better_and_the_same():
    "+0.5, as sure as can be, and less sure."
    assert verdicts(Estimate(.5, .05, 99), 1) == dict(more=SAME_VERDICT, less=SAME_VERDICT, same='confirmed')
    assert verdicts(Estimate(.5, .15, 99), 100) == dict(more='undecided', less='undecided', same='undecided')
    assert verdicts(Estimate(.9, .2, 99), 1) == dict(more='confirmed', less='contradicted', same='undecided')
    assert verdicts(Estimate(1.9, .2, 99), 1) == dict(more='confirmed', less='contradicted', same='contradicted')


# ---- whole tables ------------------------------------------------------------------------------------------------------

def pretend(matrix, system, better, dataset='shapes-unc', split='val', seeds=(0, 1, 2), n=240, suffix='', data='drawn'):
    "Records with made-up counts."
    for seed in seeds:
        cell = matrix.cell(system, dataset, seed)
        run, hard, own = matrix.run(cell.run), np.random.default_rng(1), np.random.default_rng([seed, *system.encode()])
        iou = np.clip(hard.normal(50, 12, n) + own.normal(better + own.normal(0, .1), 3, n), 0, 100).astype(int)
        write_rows(run, f'{dataset} {split}{suffix}', pd.DataFrame(dict(sent_id=range(n), image_id=np.arange(n) // 2, intersection=iou, union=100)))
        facts = dict(preset='small', data=data, training_seconds=60., device='a CPU', code='abc', versions=dict(torch='2'))
        write_json(run.folder/'config.json', dict(config=asdict(cell.config), **facts))


@pytest.fixture
def matrix(tmp_path):
    "Three seeds of rows 9 (50 %), 11 (60 %) and 12 (60 %), and of the blind network, which finds nothing."
    found = given_matrix(datasets='shapes-unc', seeds='0,1,2', more_seeds='', folder=str(tmp_path))
    for system, better in dict(row9=0, row11=10, row12=10, blind=-50).items(): pretend(found, system, better)
    return found


def line(matrix, key='row11-more-row9'):
    return claims_table(matrix, [c for c in CLAIMS if c.key == key]).dropna(subset='ours').iloc[0]


def test_a_table_says_all_that_its_verdicts_rest_on(matrix):
    table = claims_table(matrix)
    assert list(table) == CLAIM_COLUMNS and not table.duplicated(['key', 'data']).any()
    made = table.dropna(subset='ours')
    assert set(made.verdict) <= {*CLAIM_VERDICTS, *NO_VERDICTS} and (made.stands_on == 'scenes').all() and (made.seeds == 3).all()
    gates = line(matrix)
    assert gates.verdict == 'confirmed' and gates.p < .05 < gates.p_same and len(gates.runs.split()) == 6
    assert line(matrix, 'row12-more-row11').verdict == SAME_VERDICT
    assert gates.ours == pytest.approx(np.diff([results(matrix, r, 'shapes-unc', 'val').interval().value for r in ('row9', 'row11')])[0])
    page = claims_page(matrix, table)
    assert 'Not tested here' in page and '| scenes |' in page and f'All {2 * len(made)} tests' in page


def test_more_tests_make_each_harder(matrix):
    raw = signed_sum([Term(s, results(matrix, r, 'shapes-unc', 'val'), draws_of=2) for s, r in ((1, 'row11'), (-1, 'row9'))]).estimate
    table = claims_table(matrix).set_index('key')
    tests, p = 2 * table.ours.notna().sum(), raw.p_differs()
    assert tests == 6 and p * tests / 2 < table.loc['row11-more-row9', 'p'] <= p * tests
    assert line(matrix).p == pytest.approx(2 * p), 'one line, two tests'


def test_two_seeds_are_too_few_and_the_difference_is_shown(matrix):
    fewer = given_matrix(datasets='shapes-unc', seeds='0,1', more_seeds='', folder=matrix.folder)
    found = line(fewer)
    assert found.verdict == 'too few seeds' and found.why == '2 seeds, 3 are needed' and abs(found.ours - 10) < 1 and np.isnan(found.p)
    one = line(given_matrix(datasets='shapes-unc', seeds='0', more_seeds='', folder=matrix.folder))
    assert one.verdict == 'too few seeds' and one.why == '1 seed, 3 are needed' and one.low < one.ours < one.high


def test_only_seeds_that_both_have_count(matrix):
    for seed in (1, 2): (matrix.run(matrix.cell('row9', 'shapes-unc', seed).run).folder/'rows').rename(matrix.run('').folder/f'away{seed}')
    assert line(matrix).seeds == 1 and line(matrix).verdict == 'too few seeds'


def test_a_system_that_learnt_nothing_proves_nothing(matrix):
    "Either side, the blind control and the shuffled one, and a gap below the margin."
    pretend(matrix, 'row9', -50.5)
    found = line(matrix)
    assert found.verdict == 'not trained' and 'RNN' in found.why and 'from the blind control on unc val' in found.why and found.ours > 50
    pretend(matrix, 'row9', -49.8)
    assert training_doubt(matrix, 'row9', 'shapes-unc')[0] == 'not trained', 'above it, but by less than counts'
    pretend(matrix, 'row9', 0)
    assert line(matrix).verdict == 'confirmed'
    pretend(matrix, 'row11', 9.9, suffix=' (shuffled)')
    assert line(matrix).verdict == 'not trained' and 'from the shuffled control' in line(matrix).why
    pretend(matrix, 'row11', -30, suffix=' (shuffled)')
    assert line(matrix).verdict == 'confirmed'


def test_without_a_control_there_is_no_verdict(tmp_path):
    bare = given_matrix(datasets='shapes-unc', seeds='0,1,2', more_seeds='', folder=str(tmp_path))
    for system, better in dict(row9=0, row11=10).items(): pretend(bare, system, better)
    assert line(bare).verdict == 'no control' and line(bare).p < .05
    pretend(bare, 'blind', -50, seeds=(0,))
    assert line(bare).verdict == 'confirmed', 'one seed of the control is enough'


def test_a_crf_asks_for_the_network_before_it(matrix):
    pretend(matrix, 'row12', 12, suffix=' (dcrf)')
    assert line(matrix, 'row12-crf-more-row12').verdict == 'confirmed'
    pretend(matrix, 'row12', -50)
    assert line(matrix, 'row12-crf-more-row12').verdict == 'not trained'


def test_what_a_verdict_stands_on_is_what_its_runs_say(tmp_path):
    for note, on in (('complete', 'published'), ('a subset: sentences train 3 of 9', 'photographs')):
        other = given_matrix('paper', datasets='unc,unc+', seeds='0,1,2', more_seeds='', folder=str(tmp_path/on))
        for dataset in ('unc', 'unc+'):
            for system, better in dict(row12=10, blind=-50).items(): pretend(other, system, better, dataset, data=note)
        table = claims_table(other, [c for c in CLAIMS if c.metrics[1] == 'mean_iou' or not c.b[0]]).set_index('key')
        words = table.loc['row12-more-unc-val-uncplus-val']
        assert words.stands_on == on and (words.verdict == 'not tested here') == (on == 'photographs')
        own = table.loc['row12-same-row12-overall_iou-mean_iou']
        assert own.paper == .5 and own.verdict == ('confirmed' if abs(own.ours - .5) < .5 else own.verdict)


def test_a_claim_within_a_run_compares_metrics_of_the_same_predictions(matrix, tmp_path):
    claim = next(c for c in CLAIMS if c.section == 'issue 4')
    assert paper_difference(claim, 'unc', 'val') == .5
    found = results(matrix, 'row12', 'shapes-unc', 'val')
    gap = signed_sum([Term(1, found, 'overall_iou'), Term(-1, found, 'mean_iou')]).estimate
    assert gap.value == pytest.approx(0) and gap.error == pytest.approx(0, abs=1e-9), 'all unions are equal here'


def test_other_images_are_refused(matrix):
    pretend(matrix, 'row9', 0, n=230)
    with pytest.raises(RRNError, match='different expressions'): claims_table(matrix)


def test_extra_rows_are_paired_by_seed(tmp_path):
    "A row of one's own with one seed, against row 12 with three: the difference is that of the seed that both have."
    mine = given_matrix(datasets='shapes-unc', seeds='0,1,2', more_seeds='', rows='row12', folder=str(tmp_path), extra_rows='mine=update=lstm lr=0.001')
    pretend(mine, 'row12', 10); pretend(mine, 'mine', 12, seeds=(1,))
    cell = table1(mine).set_index(['row', 'column']).loc[('mine', 'minus row 12')]
    a, b = (results(mine, system, 'shapes-unc', 'val').of_seeds([1]) for system in ('mine', 'row12'))
    assert cell.seeds == 1 and cell.ours == pytest.approx(a.interval().value - b.interval().value)


def test_a_table_without_lines_is_judged():
    assert with_verdicts([]).empty


def test_keys_and_sections_of_claims():
    assert len({c.key for c in CLAIMS}) == len(CLAIMS) and all(set(c.key) <= set('abcdefghijklmnopqrstuvwxyzABC0123456789-_.') for c in CLAIMS)
    assert {c.section for c in CLAIMS} == {'4.2.1', '4.2.2', 'Table 1', 'issue 4', 'ours'}
