"""Pictures left out of a training, and one run's results on two data sets beside each other."""
from dataclasses import replace
import pytest
from rrn.experiments.beside import main
from rrn.common.core import RRNError
from rrn.evaluate import evaluate
from rrn.experiments.record import add_metrics, read_metrics, Run
from rrn.data.datasets import open_dataset
from rrn.data.shapes import write_refer
from rrn.experiments.jobs import open_job, run_job, training_samples, unknown_share

SCENES = {'train': 6, 'val': 2, 'testA': 1, 'testB': 1}
TINY = dict(dataset='shapes-unc', image_size=48, D_I=6, D_S=6, D_Q=6, embed_dim=6, iterations=2, device='cpu')


def test_excluded_pictures_are_not_trained_on(scenes, tmp_path):
    "Neither they nor the words that only their sentences have; the record's identity is another one."
    whole, part = open_job(data_root=str(scenes), **TINY), open_job(data_root=str(scenes), exclude='1,2,3,4,5', **TINY)
    assert {s.image_id for s in training_samples(whole.config, whole.dataset)} == {1, 2, 3, 4, 5, 6}
    assert {s.image_id for s in training_samples(part.config, part.dataset)} == {6}
    assert set(part.vocabulary.words) < set(whole.vocabulary.words) and part.run.name != whole.run.name
    assert all(part.identity[k] != whole.identity[k] for k in ('data', 'vocabulary'))
    (tmp_path/'ids.txt').write_text('1\n2\n')
    from_file = open_job(data_root=str(scenes), exclude=str(tmp_path/'ids.txt'), **TINY)
    assert {s.image_id for s in training_samples(from_file.config, from_file.dataset)} == {3, 4, 5, 6}


@pytest.mark.parametrize('wrong, message', [('left', 'ids of pictures'), ('nowhere.txt', 'missing'),
                                            ('1,2,3,4,5,6', 'leaves no sentence')])
def test_wrong_lists(scenes, wrong, message):
    with pytest.raises(RRNError, match=message): open_job(data_root=str(scenes), exclude=wrong, **TINY)


def test_two_data_sets_beside_each_other(scenes, tmp_path, capsys):
    "Other data under the same name are refused, under a label they stand beside the first; the table shows both."
    job = replace(open_job(data_root=str(scenes), **TINY), run=Run(tmp_path/'a-run'))
    run_job(job)
    write_refer(tmp_path/'other', seed=3, sizes=SCENES, workers=1)
    def add(samples, label):
        share = unknown_share(job.vocabulary, [s.sentence for s in samples])
        rows = evaluate(job.model, samples, job.reader())
        add_metrics(job.run, f'{label} val', rows, 'rrn', samples, threshold=.5, unknown_words=share)
    own, other = job.samples('val'), open_dataset('unc', tmp_path/'other').samples('val')
    add(own, 'shapes-unc')
    before = read_metrics(job.run.metrics)
    with pytest.raises(RRNError, match='-p label NAME'): add(other, 'shapes-unc')
    add(other, 'people:unc')
    after = read_metrics(job.run.metrics)
    assert after['shapes-unc val'] == before['shapes-unc val'] and set(after) == {'shapes-unc val', 'people:unc val'}
    main([str(tmp_path/'a-run'), '--out', str(tmp_path/'out')])
    text = capsys.readouterr().out
    assert '| as in training | val |' in text and '| people (unc) | val |' in text
    assert (tmp_path/'out'/'record.json').is_file()
