"""Crates: tables are made again from nothing else, byte for byte, and a changed byte is found."""
import json
import os
import shutil
from pathlib import Path
import forked
import pytest
from rrn.common.core import RRNError
from rrn.experiments.crate import (check_crate, main, metadata_text, opened_crate, rebuild_tables, reports_crate,
                                   run_crate, write_crate)
from rrn.experiments.matrix import given_matrix
from rrn.experiments.record import published_run

pytest.importorskip('rocrate')
REPO = Path(__file__).resolve().parents[1]
FEW = ['datasets=shapes-unc', 'rows=row5,row12', 'more_seeds=1']
SINGLE = 'shapes-unc-lstm543-tanh-s0-2bf514'


@pytest.fixture(scope='module')
def crate(tmp_path_factory):
    "A zip file with tables of a few runs."
    out = tmp_path_factory.mktemp('crates')/'few.zip'
    assert main(['tables', str(out), *FEW]) == 0
    return out


@pytest.fixture
def folder(crate, tmp_path):
    "The same unpacked, without its tables."
    shutil.unpack_archive(crate, tmp_path/'crate')
    shutil.move(tmp_path/'crate'/'tables', tmp_path/'kept')
    return tmp_path/'crate'


def content(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_deleted_tables_are_made_from_the_crate_alone(folder, tmp_path):
    "By the library alone, far from any checkout, in an empty folder."
    shutil.copytree(REPO/'rrn', tmp_path/'library'/'rrn', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path/'empty').mkdir()
    words = ['-m', 'rrn.cli', 'crate', 'rebuild', str(folder), 'made']
    env = os.environ | dict(PYTHONPATH=str(tmp_path/'library'))
    done = forked.run(words, tmp_path/'empty', env)
    assert done.returncode == 0, done.stderr
    made = content(tmp_path/'empty'/'made'/'tables')
    assert made == content(tmp_path/'kept') and {str(p) for p in made} >= {'table1.md', 'table2.csv', 'claims.md'}


def test_the_same_records_make_the_same_bytes(tmp_path):
    one, two = (write_crate(run_crate(published_run(SINGLE)), tmp_path/f'{n}.zip') for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize('pattern', ['config.json', 'metrics.json', 'rows/*val.csv.gz'])
def test_a_changed_byte_is_found(folder, tmp_path, pattern):
    file = sorted(folder.glob(f'runs/embedded/*/{pattern}'))[0]
    changed = bytearray(file.read_bytes())
    changed[-2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(RRNError, match=f'1 file.*{file.name[:4]}.*No table is made'): rebuild_tables(folder, tmp_path/'made')
    assert not (tmp_path/'made').exists()


def test_a_missing_record_is_found(folder, tmp_path):
    shutil.rmtree(sorted(folder.glob('runs/embedded/*'))[0])
    with pytest.raises(RRNError, match='missing'): rebuild_tables(folder, tmp_path/'made')
    with pytest.raises(RRNError, match='missing'): check_crate(folder)


def edited(folder, change):
    "The crate with every entity of its description changed."
    described = json.loads((folder/'ro-crate-metadata.json').read_text())
    for entity in described['@graph']: change(entity)
    (folder/'ro-crate-metadata.json').write_text(json.dumps(described))
    return folder


def test_other_tables_than_described_are_refused(folder, tmp_path):
    def change(entity):
        if entity['@id'] == 'tables/table1.csv': entity['sha256'] = '0' * 64
        if entity['@id'] == '#make-claims-embedded': entity['@id'] = '#other'      # saves time
    with pytest.raises(RRNError, match='table1.csv cannot be made again as it was: the code has changed'):
        rebuild_tables(edited(folder, change), tmp_path/'made')


def test_a_path_out_of_the_crate_is_refused(folder, tmp_path):
    def change(entity):
        for part in [entity, *entity.get('hasPart', [])]:
            if part['@id'].endswith('log.csv'): part['@id'] = '../../' + part['@id']
    with pytest.raises(RRNError, match='leads out'): rebuild_tables(edited(folder, change), tmp_path/'made')


@pytest.mark.parametrize('text', ['', '[]', '{"@graph": []}', '{"@graph": [{"@id": "./"}]}', '{"@graph": 3}'])
def test_what_is_no_crate_is_one_clear_error(tmp_path, text):
    (tmp_path/'ro-crate-metadata.json').write_text(text)
    with pytest.raises(RRNError, match='no RO-Crate'):
        with opened_crate(tmp_path): pass


def test_reports_are_described_as_they_are():
    assert (REPO/'reports'/'ro-crate-metadata.json').read_text() == metadata_text(reports_crate()), 'run rrn crate describe'


def test_a_description_says_what_a_run_was_made_of():
    run = given_matrix().cell('row12', 'shapes-unc').run
    graph = {e['@id']: e for e in run_crate(published_run(run)).metadata.generate()['@graph']}
    action = graph[f'#make-{run}']
    used, left = ([graph[e['@id']] for e in action[k]] for k in ('object', 'result'))
    assert graph[action['instrument']['@id']]['softwareVersion'] == 'd5b0a8fcdea0'
    assert ('seed', '0') in {(e.get('name'), e.get('value')) for e in used}
    assert any(e['@id'].endswith('/metrics.json') for e in left) and any('/rows/' in e['@id'] for e in left)
    assert graph['./']['conformsTo']['@id'].startswith('https://w3id.org/ro/wfrun/process/')
