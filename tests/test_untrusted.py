"""Files from strangers, case by case: which pickles the fast interpreter may read, and which names and sizes are refused."""
import pickle
import zipfile
from pathlib import Path
import pytest
import safetensors.torch
import torch
from rrn.common.core import RRNError
from rrn.common.untrusted import checked_size, harmless, plain_instructions, plain_name, required_field, safe_load
from rrn.common.weight_files import load_weights

SENTENCES = [dict(sent='left zebra', tokens=['left', 'z' * 300], raw=None)]
REFS = [dict(sent_ids=[0, 70000], ref_id=-5, ratio=.5, sentences=SENTENCES)] * 3


@pytest.mark.parametrize('protocol', range(6))
def test_plain_references_are_harmless_and_sets_are_not(protocol):
    assert harmless(pickle.dumps(REFS, protocol)) and not harmless(pickle.dumps([REFS, {1}], protocol))


@pytest.mark.parametrize('danger', [b'cos\nsystem\n.', b'r\xff\xff\xff\x7f.', b'X\xff\xff\xff\x7fab.', b'X\x05\0\0\0ab.',
                                    b'p99999\n.', b'(K\x01t.', b'', b']'])
def test_no_harm_is_overlooked(danger):
    assert not harmless(b'\x80\x02' + danger), danger


def test_what_is_cut_off_is_not_harmless():
    assert not harmless(pickle.dumps(REFS)[:-1]) and harmless(b'U\x01c.') and not harmless(b'U\x02c.')


def test_instructions_that_make_objects_are_not_there():
    assert not set(plain_instructions) & {pickle.BUILD[0], pickle.NEWOBJ[0], pickle.INST[0], pickle.EXT1[0], pickle.PERSID[0]}


def test_a_pickle_that_is_cut_short_says_so(tmp_path):
    (tmp_path/'cut').write_bytes(pickle.dumps(['left zebra']*9)[:-7])
    with pytest.raises(RRNError, match='cut short'): safe_load(tmp_path/'cut')


def test_the_allowance_holds_beside_the_fast_interpreter(tmp_path):
    "A text that a harmless file names a million times is charged as often."
    shared = ['left zebra' * 100]
    for _ in range(25): shared = [shared, shared]
    (tmp_path/'much').write_bytes(pickle.dumps(shared))
    assert harmless((tmp_path/'much').read_bytes())
    with pytest.raises(RRNError, match='more of its .* bytes than any honest file'): safe_load(tmp_path/'much')


@pytest.mark.parametrize('record', [{}, {'id': 'seven'}, {'id': True}, None, [7], {'id': 10**5000}])
def test_a_field_is_there_and_usable(record):
    with pytest.raises(RRNError, match="ref 3 has no usable 'id'"): required_field(record, 'id', int, 'ref 3')


@pytest.mark.parametrize('bad', ['../a.jpg', '/etc/a.jpg', 'b/a.jpg', '..', '', '.', 'c:\\a.jpg', 'a\0.jpg', 'a' * 256])
def test_names_stay_in_their_folder(bad):
    with pytest.raises(RRNError, match='image 9'): plain_name(bad, 'image 9')


@pytest.mark.parametrize('bad', [(0, 5), (5, 10**9), (5.5, 5), (-1, 5), (20_000, 20_000), ('5', 5), (True, 5)])
def test_sizes_are_a_photographs(bad):
    with pytest.raises(RRNError, match='image 9'): checked_size(*bad, 'image 9')


def weights_files(folder):
    "Files that are no weights: name -> what they hold."
    good = {'state_dict': {'a.weight': torch.ones(2, 3)}}
    torch.save(good, folder/'good.pth')
    (folder/'cut.pth').write_bytes((folder/'good.pth').read_bytes()[:700])
    (folder/'cut.safetensors').write_bytes(safetensors.torch.save({'a': torch.ones(9)})[:-5])
    (folder/'notes.txt').write_text('no weights')
    for name, held in dict(list=[1, 2], tensor=torch.ones(3), mixed={'a': torch.ones(1), 'epoch': 3}, objects={'evil': Path('a')},
                           endless={'a': torch.ones(1).expand(10**5, 10**5)}, sparse={'a': torch.eye(3).to_sparse()}).items():
        torch.save(held, folder/f'{name}.pth')
    with zipfile.ZipFile(folder/'good.pth') as z, zipfile.ZipFile(folder/'packed.pth', 'w', zipfile.ZIP_DEFLATED) as packed:
        for member in z.infolist():
            content = z.read(member) if member.filename.endswith('pkl') else bytes(9000)
            packed.writestr(member.filename, content)


@pytest.mark.parametrize('bad', ['cut.pth', 'cut.safetensors', 'list.pth', 'tensor.pth', 'mixed.pth', 'objects.pth', 'endless.pth',
                                 'sparse.pth', 'packed.pth', 'absent.pth', 'notes.txt'])
@pytest.mark.filterwarnings('ignore:Validating sparse tensor invariants')
def test_what_is_no_weights_file_is_refused(bad, tmp_path):
    weights_files(tmp_path)
    assert load_weights(tmp_path/'good.pth')['a.weight'].shape == (2, 3)
    with pytest.raises(RRNError): load_weights(tmp_path/bad)
