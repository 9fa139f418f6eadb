"""Models that are handed on: the box in the library, its card, folders, and a hub (one of our own, on this machine)."""
import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
import yaml
from huggingface_hub import constants, ModelCard, parse_eval_result_entries
from rrn.common.core import read_json, RRNError, sha256_of
from rrn.experiments.package import boxes, box_size, differs, find_box, label_of, model_card, pack, plain_scores, push, score_entries
from rrn.experiments.record import published_run, read_metrics, Run
from rrn.model import preset, RRN
from rrn.predict import Predictor
from rrn.text import Vocabulary

NAMES = sorted(boxes())


@pytest.fixture(params=NAMES)
def box(request):
    return Run(boxes()[request.param])


def test_the_library_has_a_model():
    assert 'shapes-unc' in NAMES and sum(map(box_size, boxes().values())) < 10e6


def test_its_record_is_published(box):
    "Every score of the box can be read in reports/runs, and the weights are those of that record."
    there = published_run(label_of(box)['run'])
    assert there.record() == box.record() and read_metrics(there.metrics) == read_metrics(box.metrics)
    assert sha256_of(box.weights) == box.record()['weights']


def test_the_card_is_made_of_the_record(box):
    card = ModelCard.load(box.folder/'README.md')
    assert str(card) == str(model_card(box)), 'rrn package makes it anew'
    scores = {(r.dataset_name, r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    record = {(*where, name): values[name] for where, values in plain_scores(box).items() for name in ('overall_iou', 'prec@0.9')}
    assert record and record.items() <= scores.items()
    assert 'not photographs' in card.text and label_of(box)['run'] in card.text


def test_scores_are_there_as_hubs_read_them(box):
    files = list((box.folder/'.eval_results').glob('*.yaml'))
    told = [e for f in files for e in parse_eval_result_entries(yaml.safe_load(f.read_text()))]
    assert files and told == score_entries(box)


def test_answers_are_those_of_the_record(box):
    "Counts of pixels, of every sentence about the scene; where other processors differ, by the pixels that are undecided."
    predictor = Predictor.from_pretrained(label_of(box)['name'], device='cpu').set_image(box.folder/'scene.jpg')
    for told in read_json(box.folder/'scene.json')['asked']:
        assert not differs(predictor.predict(told['sentence']), told), told['sentence']


def test_a_difference_is_seen(box):
    predictor = Predictor.from_pretrained(label_of(box)['name'], device='cpu').set_image(box.folder/'scene.jpg')
    told = read_json(box.folder/'scene.json')['asked'][0]
    answer = predictor.predict(told['sentence'])
    answer.mask[:9] ^= True
    assert differs(answer, told) > 9


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def test_a_folder_is_a_box(box, tmp_path):
    Predictor.from_pretrained(str(box.folder), device='cpu').save(tmp_path/'copy')
    assert content(tmp_path/'copy') == content(box.folder)
    Predictor.from_pretrained(tmp_path/'copy', device='cpu').save(tmp_path/'other', 'mine')
    assert label_of(Run(tmp_path/'other')) == label_of(box) | dict(name='mine')
    assert '# mine' in (tmp_path/'other'/'README.md').read_text()


def test_what_cannot_be_handed_on(box, tmp_path):
    vocabulary = Vocabulary.build(['left star'])
    with pytest.raises(RRNError, match='not opened from a run'): Predictor(RRN(preset('small'), len(vocabulary)), vocabulary).save(tmp_path/'x')
    shutil.copytree(box.folder, tmp_path/'half')
    (tmp_path/'half'/'model.safetensors').unlink()
    with pytest.raises(RRNError, match='has no model.safetensors'): pack(Run(tmp_path/'half'), tmp_path/'x')
    assert not (tmp_path/'x').exists()


def test_a_changed_box_is_refused(box, tmp_path):
    shutil.copytree(box.folder, tmp_path/'box')
    weights = tmp_path/'box'/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'?')
    with pytest.raises(RRNError, match='not those that the run'): Predictor.from_pretrained(tmp_path/'box')


def test_names_that_are_no_model():
    for name in ('shape-unc', '/nowhere/none'):
        with pytest.raises(RRNError, match='come with the library: shapes-unc'): find_box(name)


# ---------------------------------------------------------------- a hub

class Hub(BaseHTTPRequestHandler):
    "As much of a hub as reading and writing a model needs. `repos`: {id: {path: content}}."
    repos, commit = {}, 'c' * 40

    def answer(self, content=b'', status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({'Content-Length': len(content)} | headers).items(): self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def do_GET(self):
        path = self.path.partition('?')[0].removeprefix('/api/models/').strip('/')
        repo, parts = '/'.join(path.split('/')[:2]), path.split('/')[2:]
        files = self.repos.get(repo)
        if files is None: return self.answer(dict(error='Repository not found'), 404, X_Error_Code='RepoNotFound')
        if parts[:1] == ['resolve']:
            content = files['/'.join(parts[2:])]
            return self.answer(content, ETag=f'"{len(content)}"', X_Repo_Commit=self.commit)
        if parts[:1] == ['tree']: return self.answer([dict(type='file', path=n, size=len(c), oid='0') for n, c in files.items()])
        self.answer(dict(id=repo, sha=self.commit, siblings=[dict(rfilename=n) for n in files]))

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        parts = self.path.partition('?')[0].strip('/').split('/')
        repo = '/'.join(parts[2:4])
        if parts[-1] == 'create':
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repos.setdefault(repo, {})
            return self.answer(dict(url=f"http://{self.headers['Host']}/{repo}", name=repo))
        if 'preupload' in parts:
            return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        if 'commit' in parts:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file': self.repos[repo][line['value']['path']] = base64.b64decode(line['value']['content'])
            return self.answer(dict(commitUrl=f"http://{self.headers['Host']}/{repo}/commit/{self.commit}", commitOid=self.commit, success=True))
        self.answer(dict(errors=[], warnings=[]))                       # of the card's head

    def log_message(self, *words): pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "The hub, as the only one that there is; `hub.gone()` cuts the network."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def at(port):
        monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{port}')
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', constants.ENDPOINT + '/{repo_id}/resolve/{revision}/{filename}')
    at(server.server_port)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    for name, value in dict(HF_TOKEN='hf_x', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1').items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(Hub, 'repos', {})
    Hub.gone = lambda: at(9)
    yield Hub
    server.shutdown()
    server.server_close()


ORIGINAL = content(boxes()['shapes-unc'])


def test_a_hub_takes_a_model_and_gives_it(hub):
    assert 'me/shapes' in Predictor.from_pretrained('shapes-unc', device='cpu').push('me/shapes')
    there = hub.repos['me/shapes']
    for name in ('model.safetensors', 'config.json', 'scene.jpg', '.eval_results/shapes-unc.yaml'): assert there[name] == ORIGINAL[name]
    assert b'# shapes\n' in there['README.md'] and set(there) == set(ORIGINAL)
    own, fetched = (Predictor.from_pretrained(name, device='cpu').set_image(boxes()['shapes-unc']/'scene.jpg').predict('star')
                    for name in ('shapes-unc', 'me/shapes'))
    assert (own.probability == fetched.probability).all() and (own.mask == fetched.mask).all()


def test_what_was_fetched_serves_without_a_network(hub, tmp_path):
    hub.repos['me/shapes'] = ORIGINAL | {'more.py': b'x = 1'}
    first = find_box('me/shapes')
    assert content(first) == ORIGINAL, 'only what a box holds is fetched'
    hub.gone()
    assert find_box('me/shapes') == first


def test_a_hub_that_has_it_not_or_is_not_there(hub):
    with pytest.raises(RRNError, match='me/shapes is no folder here') as has_not: find_box('me/shapes')
    hub.gone()
    with pytest.raises(RRNError, match='come'): find_box('me/shapes')
    with pytest.raises(RRNError, match='cannot be written to the hub'): push(Run(boxes()['shapes-unc']), 'me/shapes')
    assert len(str(has_not.value).splitlines()) == 1


def test_a_model_that_needs_code_of_its_own_is_not_opened(hub):
    record = json.loads(ORIGINAL['config.json'])
    record['config'] |= dict(update='module:Class', normalise='')
    hub.repos['me/shapes'] = ORIGINAL | {'config.json': json.dumps(record).encode()}
    with pytest.raises(RRNError, match='needs code that is not in its box'): find_box('me/shapes')


def test_another_hub_is_named_by_the_environment():
    "HF_ENDPOINT is the library's own setting; it is read when the library is imported."
    program = 'from huggingface_hub import constants; print(constants.ENDPOINT)'
    env = os.environ | dict(HF_ENDPOINT='http://127.0.0.1:8123')
    assert subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True).stdout.strip() == env['HF_ENDPOINT']
