"""Models that take no training."""
import numpy as np
from rrn.common.core import seed_everything
from rrn.experiments.record import Run
from rrn.data.shapes import draw_scene
from rrn.model import preset, RRN
from rrn.predict import Predictor

SMALL = dict(image_size=48, embed_dim=6, D_I=6, D_S=6, D_Q=6)


def untrained(vocabulary, folder, **how) -> Predictor:
    "A small model without gates, as of the run of this folder. Its masks are half of a picture."
    seed_everything(0)
    predictor = Predictor(RRN(preset('small', **SMALL | dict(update='plain') | how), len(vocabulary)), vocabulary, run=Run(folder))
    predictor.set_image(draw_scene(7, 3).image)
    predictor.threshold = float(np.median(predictor.predict(vocabulary.words[-1]).probability))
    return predictor
