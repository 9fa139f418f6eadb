"""rrn.features: maps on disk that are damaged, mirrored, of other weights and settings, and in half precision."""
import pytest
import torch
from rrn.common.core import RRNError, seed_everything
from rrn.features import DTYPES, feature_cache, FeatureFiles, map_shapes, map_values, maps_key
from rrn.model import preset, RRN

TINY = dict(weights='random', image_size=48)


class OneImage:
    "A batch of one picture file."
    def __init__(self, path, image, mirror=False): self.keys, self.images = [(path, mirror)], image[None]


@pytest.fixture
def net():
    seed_everything(0)
    return RRN(preset('small', pyramid='C5,C4,C3', **TINY), 20)


@pytest.fixture
def image(): return torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def a(tmp_path):
    (tmp_path/'a.jpg').write_bytes(b'a picture')
    (tmp_path/'b.jpg').write_bytes(b'another')
    return tmp_path/'a.jpg'


@pytest.fixture
def made(net, image, a, tmp_path):
    with torch.no_grad(): return feature_cache(net, 1, 0, tmp_path/'cache')(OneImage(a, image))


def test_sizes(net):
    assert map_values(net) == (128 + 96 + 48) * 6 * 6 and set(map_shapes(net)) == {'C3', 'C4', 'C5'}


def test_what_is_found_is_not_computed(net, image, a, made, tmp_path):
    cache = feature_cache(net, 1, 0, tmp_path/'cache')
    again = cache(OneImage(a, torch.zeros_like(image)))
    assert all(made[m].equal(again[m]) for m in made) and len(list((tmp_path/'cache').rglob('*.maps'))) == 1
    with torch.no_grad(): assert not cache(OneImage(tmp_path/'b.jpg', torch.zeros_like(image)))['C5'].equal(made['C5'])


def test_who_has_a_cache(net, tmp_path):
    assert feature_cache(net, 10, 10**6) and feature_cache(net, 10, 10**5) is None
    assert feature_cache(RRN(preset('small', weights='random', finetune='conv5'), 20), 1, 10**9, tmp_path/'cache') is None


def test_damage_is_noticed(net, image, a, made, tmp_path):
    file, = (tmp_path/'cache').rglob('*.maps')
    whole = file.read_bytes()
    for bad in (whole[:-9], whole[:700] + b'?' + whole[701:], b''):
        file.write_bytes(bad)
        assert FeatureFiles(tmp_path/'cache', net).load((a, False), image.device) is None
    files = FeatureFiles(tmp_path/'cache', net)
    assert files.path((a, True)) != file and files.load((a, True), image.device) is None, 'a mirrored picture is another'


def test_other_weights_and_settings_have_another_folder(net, tmp_path):
    other = RRN(preset('small', protocol='released', **TINY), 20)
    other.load_state_dict(net.state_dict())
    assert maps_key(net, 'fp32') == maps_key(net, 'fp32') != maps_key(other, 'fp32') != maps_key(other, 'fp16')
    before = FeatureFiles(tmp_path/'cache', net).folder
    with torch.no_grad(): net.backbone.conv1[0].weight[0, 0, 0, 0] += 1e-6
    assert FeatureFiles(tmp_path/'cache', net).folder != before


@pytest.mark.parametrize('dtype, rtol', [('fp32', 0), ('fp16', 1e-3), ('bf16', 8e-3)])
def test_half_precision(net, image, a, made, tmp_path, dtype, rtol):
    files = FeatureFiles(tmp_path/dtype, net, dtype)
    files.save((a, False), made)
    back = files.load((a, False), image.device)
    assert files.path((a, False)).stat().st_size == map_values(net) * DTYPES[dtype].itemsize + 4
    for m in made: torch.testing.assert_close(back[m], made[m], rtol=rtol, atol=1e-6 * (dtype != 'fp32'))


def test_types_that_do_not_exist(net, tmp_path):
    with pytest.raises(RRNError, match="Did you mean 'fp16'"): FeatureFiles(tmp_path, net, 'fp1')
