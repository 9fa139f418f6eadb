"""rrn.fusion: what is kept between steps, one image for many sentences, and sentences without images."""
import pytest
import torch
import torch.nn.functional as F
from rrn.common.core import RRNError
from rrn.fusion import Fusion, SentenceEncoder
from rrn.image import coordinates


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return Fusion(11, D_I=6, D_S=9, D_Q=7), torch.randn(2, 11, 3, 5), torch.randn(4, 9), torch.tensor([0, 1, 1, 0])


def plain_fusion(m, C5, s):
    v = F.normalize(m.project(C5), dim=1)
    tiled = F.normalize(s, dim=1)[..., None, None].expand(-1, -1, *v.shape[-2:])
    where = coordinates(*v.shape[-2:])[None].expand(len(v), -1, -1, -1)
    return F.relu(m.fuse(torch.cat([v, tiled, where], 1)))


def test_values_are_those_of_the_text(parts):
    m, C5, s, image_of = parts
    assert m(C5, s, image_of).shape == (4, 7, 3, 5)
    torch.testing.assert_close(m(C5, s, image_of), plain_fusion(m, C5[image_of], s), atol=1e-6, rtol=0)


def test_what_is_kept_from_an_evaluation_can_be_trained_with(parts):
    m, C5, s, image_of = parts
    with torch.inference_mode(): m(C5[:, :, :2], s, image_of)
    one, two = m(C5[:1, :, :2], s, image_of * 0), plain_fusion(m, C5[image_of * 0, :, :2], s)
    torch.testing.assert_close(one.square().sum(), two.square().sum())
    m(C5[:, :, :2], s, image_of).sum().backward()


def test_sentences_without_images(parts):
    m, C5, s, _ = parts
    with pytest.raises(RRNError, match='image_of'): m(C5, s)


def test_padding_says_nothing():
    torch.manual_seed(0)
    batch = torch.tensor([[0, 0, 0, 7, 8, 9], [7, 0, 8, 9, 0, 0], [1, 2, 3, 4, 5, 6], [0]*6])
    encoder = SentenceEncoder(50, 6, 9)
    together = encoder(batch)
    torch.testing.assert_close(together[0], together[1])
    assert together[3].abs().max() == 0
    with torch.autocast('cpu', torch.bfloat16): mixed = encoder(batch)
    assert mixed.dtype == torch.float32 and mixed.equal(together)
