"""Real photographs through the whole path: coco-mini with a pretrained CNN (a few steps; results are in reports/)."""
from dataclasses import replace
import pytest
import torch
from rrn.evaluate import evaluate, summary
from rrn.predict import Predictor
from rrn.experiments.jobs import open_job, run_job
from rrn.experiments.record import Run


@pytest.mark.parametrize('dataset, sentences', [('unc', 3105), ('unc+', 1993), ('gref', 3346), ('gref-umd', 3128)])
def test_trains_on_photographs(shared, tmp_path, capsys, dataset, sentences):
    job = open_job(dataset=dataset, data_root=str(shared/'data'/'coco-mini'), backbone='mobilenetv2_100', images_per_batch=2,
                   weights=str(shared/'weights'/'mobilenetv2_100_deeplab_voc.safetensors'), image_size=64, iterations=3, D_Q=8, D_I=8, validate_every=10**6)
    assert job.options['preset'] == 'mini' and len(job.samples('train')) == sentences
    assert 'is a subset' in capsys.readouterr().out
    job = replace(job, run=Run(tmp_path/'run'))
    log = run_job(job)
    assert torch.isfinite(torch.tensor(log.loss.dropna().to_numpy())).all()
    some = job.samples(job.validation_split())[:12]
    assert summary(evaluate(job.model, some, job.reader()))['sentences'] == 12
    mask, probability = Predictor.from_run(tmp_path/'run', device='cpu').set_image(some[0].image).predict(some[0].sentence)
    assert mask.shape == (some[0].height, some[0].width)
