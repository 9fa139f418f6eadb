"Downloads from servers that stall, lie, change and lead astray; archives that want out of their folder."
import contextlib, gzip, hashlib, io, os, re, stat, tarfile, threading, tracemalloc, zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from rrn.data import download as d
from rrn.common.core import locked, read_json, RRNError, write_json
from rrn.data.download import fetch, Source, unpack

DATA = bytes((i * 31 + i // 997) % 256 for i in range(300_000))
NEWER = DATA[::-1]
SHA = hashlib.sha256(DATA).hexdigest()

class Answers(BaseHTTPRequestHandler):
    "Answers each path with the next step of its script; the last step is repeated."
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get('Range'), self.headers.get('If-Range')))
        steps = self.server.scripts[self.path]
        (steps.pop(0) if len(steps) > 1 else steps[0])(self)
    def log_message(self, *a): pass

    def send(self, status=200, body=b'', length=True, **headers):
        "Send a status, headers (with _ for -) and a body; Content-Length is that of the body, a given number, or absent."
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace('_', '-'), value)
        if length is not None: self.send_header('Content-Length', str(len(body) if length is True else length))
        self.end_headers()
        try: self.wfile.write(body)
        except OSError: pass                            # the client has seen enough

@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Answers)
    s.asked, s.scripts, s.released = [], {}, threading.Event()
    s.at = lambda path: f'http://127.0.0.1:{s.server_port}{path}'
    def script(path, *steps):
        s.scripts[path] = list(steps)
        return s.at(path)
    s.script = script
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    thread.start()
    yield s
    s.released.set()
    s.shutdown(); s.server_close(); thread.join()

def whole(data=DATA, **headers): return lambda h: h.send(200, data, **headers)
def cut(at, data=DATA, **headers): return lambda h: h.send(200, data[:at], length=len(data), **headers)
def status(code, **headers): return lambda h: h.send(code, **headers)

def ranged(data=DATA, mark='"v1"', honour=True):
    "A proper server: the rest if If-Range still fits, everything otherwise."
    def step(h):
        asked, condition = h.headers.get('Range'), h.headers.get('If-Range')
        start = int(re.search(r'\d+', asked)[0]) if asked and (condition in (None, mark) or not honour) else 0
        if start >= len(data): h.send(416)
        elif start: h.send(206, data[start:], ETag=mark, Content_Range=f'bytes {start}-{len(data) - 1}/{len(data)}')
        else: h.send(200, data, ETag=mark)
    return step

def get(url, path, **more):
    return fetch(url, path, **{'wait': 0, 'timeout': 20, 'progress': False} | more)

def left_behind(folder): return sorted(p.name for p in folder.rglob('*') if p.name != '.lock')

# ---- servers ---------------------------------------------------------------------------------------------------------------

def test_a_plain_file_arrives_whole_and_recorded(server, tmp_path):
    assert get(server.script('/a', whole()), tmp_path/'deep'/'a.bin') == SHA
    assert (tmp_path/'deep'/'a.bin').read_bytes() == DATA
    assert (tmp_path/'deep'/'a.bin.sha256').read_text() == f'{SHA}  a.bin\n'
    assert left_behind(tmp_path) == ['a.bin', 'a.bin.sha256', 'deep']

def test_it_goes_on_where_it_broke_off(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='"v1"'), ranged())
    assert get(url, tmp_path/'a.bin') == SHA
    assert [a[1:] for a in server.asked] == [(None, None), ('bytes=70000-', '"v1"')]

def test_a_later_call_goes_on_too(server, tmp_path):
    url = server.script('/a', cut(70_000, Last_Modified='Mon, 01 Jan 2024 00:00:00 GMT'), status(503))
    with pytest.raises(RRNError, match='answered 503'): get(url, tmp_path/'a.bin', tries=2)
    assert not (tmp_path/'a.bin').exists() and (tmp_path/'.a.bin.part'/'data').stat().st_size == 70_000
    server.script('/a', ranged(mark='Mon, 01 Jan 2024 00:00:00 GMT'))
    assert get(url, tmp_path/'a.bin') == SHA
    assert server.asked[-1][1:] == ('bytes=70000-', 'Mon, 01 Jan 2024 00:00:00 GMT')
    assert left_behind(tmp_path) == ['a.bin', 'a.bin.sha256']

def test_a_changed_file_is_not_glued(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='"v1"'), ranged(NEWER, '"v2"'))
    assert get(url, tmp_path/'a.bin') == hashlib.sha256(NEWER).hexdigest()
    assert (tmp_path/'a.bin').read_bytes() == NEWER

def test_not_even_by_a_server_that_ignores_the_condition(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='"v1"'), ranged(NEWER, '"v2"', honour=False))
    get(url, tmp_path/'a.bin')
    assert (tmp_path/'a.bin').read_bytes() == NEWER and [a[1] for a in server.asked] == [None, 'bytes=70000-', None]

def test_without_a_mark_it_starts_again(server, tmp_path):
    url = server.script('/a', cut(70_000), whole(NEWER))
    get(url, tmp_path/'a.bin')
    assert (tmp_path/'a.bin').read_bytes() == NEWER and [a[1] for a in server.asked] == [None, None]

def test_without_a_mark_a_checksum_allows_it_and_finds_the_glue(server, tmp_path):
    url = server.script('/a', cut(70_000, NEWER), ranged(mark='"v1"'))
    assert get(url, tmp_path/'a.bin', sha256=SHA) == SHA                # glued at first, noticed, fetched again
    assert [a[1] for a in server.asked] == [None, 'bytes=70000-', None]

def test_a_weak_mark_is_none(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='W/"v1"'), whole())
    assert get(url, tmp_path/'a.bin') == SHA and server.asked[1][1] is None

def test_a_server_that_ignores_ranges(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='"v1"'), whole(ETag='"v1"'))
    assert get(url, tmp_path/'a.bin') == SHA and server.asked[1][1] == 'bytes=70000-'

@pytest.mark.parametrize('range_, length', [('bytes 0-299999/300000', True), ('bytes 70000-299999/300000', 7), ('bytes 70000-200000/300000', True),
                                            ('bytes 70000-299999/*', True), ('nonsense', True), ('bytes 70000-399999/400000', True)])
def test_a_wrong_rest_is_not_used(server, tmp_path, range_, length):
    wrong = lambda h: h.send(206, NEWER[70_000:], length=length, ETag='"v1"', Content_Range=range_)
    url = server.script('/a', cut(70_000, ETag='"v1"'), wrong, whole())
    assert get(url, tmp_path/'a.bin') == SHA and (tmp_path/'a.bin').read_bytes() == DATA

def test_a_rest_that_nobody_asked_for(server, tmp_path):
    url = server.script('/a', lambda h: h.send(206, DATA[7:], Content_Range=f'bytes 7-{len(DATA) - 1}/{len(DATA)}'))
    with pytest.raises(RRNError, match="from 0 on"): get(url, tmp_path/'a.bin')
    assert left_behind(tmp_path) == []

def test_a_file_that_shrank(server, tmp_path):
    url = server.script('/a', cut(70_000, ETag='"v1"'), status(416), whole(b'short'))
    get(url, tmp_path/'a.bin')
    assert (tmp_path/'a.bin').read_bytes() == b'short'

def test_bytes_that_are_complete_are_not_asked_for_again(server, tmp_path):
    url = server.at('/a')
    (tmp_path/'.a.bin.part').mkdir()
    (tmp_path/'.a.bin.part'/'data').write_bytes(DATA)
    write_json(tmp_path/'.a.bin.part'/'note.json', {'url': url, 'mark': '"v1"', 'total': len(DATA)})
    assert get(url, tmp_path/'a.bin') == SHA and not server.asked

def stall(h):
    "Send a part of the file and then nothing, with the connection open."
    h.send(200, DATA[:70_000], length=len(DATA), ETag='"v1"')
    h.wfile.flush(); h.server.released.wait(30)

def test_a_stall_is_seen_and_what_had_arrived_is_kept(server, tmp_path):
    url = server.script('/a', lambda h: ranged()(h) if h.headers.get('Range') else stall(h))
    assert get(url, tmp_path/'a.bin', timeout=.2, tries=50) == SHA                 # many tries: a busy machine may be slow to answer
    assert server.asked[0][1] is None and server.asked[-1][1].startswith('bytes=') and server.asked[-1][2] == '"v1"'

def test_silence_from_the_start(server, tmp_path):
    url = server.script('/a', lambda h: h.server.released.wait(30))
    with pytest.raises(RRNError, match='cannot be reached.*timed out'): get(url, tmp_path/'a.bin', timeout=.2, tries=1)
    assert left_behind(tmp_path) == []

def test_less_than_announced_is_never_accepted(server, tmp_path):
    url = server.script('/a', cut(70_000))
    with pytest.raises(RRNError, match='broke off after 70,000 of 300,000'): get(url, tmp_path/'a.bin')
    assert len(server.asked) == 3 and not (tmp_path/'a.bin').exists()

def test_more_than_announced_is_cut_and_found_by_checksum_or_size(server, tmp_path):
    url = server.script('/a', lambda h: h.send(200, DATA, length=70_000))
    with pytest.raises(RRNError, match='70,000 bytes, expected are 300,000'): get(url, tmp_path/'a.bin', size=len(DATA))
    with pytest.raises(RRNError, match=f'expected is {SHA}'): get(url, tmp_path/'a.bin', sha256=SHA)
    assert left_behind(tmp_path) == []

@pytest.mark.parametrize('length', ['-5', 'many', '1e9', '9' * 40])
def test_a_length_that_is_none(server, tmp_path, length):
    with pytest.raises(RRNError, match='announces a length'): get(server.script('/a', lambda h: h.send(200, DATA, length=length)), tmp_path/'a.bin')

def test_no_length_needs_a_checksum_or_size(server, tmp_path):
    url = server.script('/a', whole(length=None))
    with pytest.raises(RRNError, match='does not say how long'): get(url, tmp_path/'a.bin')
    assert get(url, tmp_path/'a.bin', sha256=SHA) == SHA
    assert get(url, tmp_path/'b.bin', size=len(DATA)) == SHA
    with pytest.raises(RRNError, match='has 300,000 bytes, expected are 300,001'): get(url, tmp_path/'c.bin', size=len(DATA) + 1)

def chunks(pieces, end=True):
    def step(h):
        h.protocol_version = 'HTTP/1.1'
        h.send_response(200); h.send_header('Transfer-Encoding', 'chunked'); h.send_header('Connection', 'close'); h.end_headers()
        for p in pieces: h.wfile.write(b'%x\r\n%b\r\n' % (len(p), p))
        if end: h.wfile.write(b'0\r\n\r\n')
        h.close_connection = True
    return step

def test_chunked_answers_say_when_they_end(server, tmp_path):
    assert get(server.script('/a', chunks([DATA[:99], DATA[99:]])), tmp_path/'a.bin') == SHA
    with pytest.raises(RRNError, match='broke off'): get(server.script('/b', chunks([DATA[:99]], end=False)), tmp_path/'b.bin')

def test_limits(server, tmp_path):
    with pytest.raises(RRNError, match='more than the limit of 1,000'): get(server.script('/a', whole()), tmp_path/'a.bin', limit=1000)
    with pytest.raises(RRNError, match='more than the limit of 100,000'):
        get(server.script('/b', chunks([DATA[:70_000]] * 9)), tmp_path/'b.bin', limit=100_000)
    assert left_behind(tmp_path) == []

def test_a_full_disk_is_the_users_business(server, tmp_path, monkeypatch):
    monkeypatch.setattr(d.shutil, 'disk_usage', lambda f: type('Usage', (), {'free': 1000}))
    with pytest.raises(RRNError, match='300,000 bytes are needed.*1,000 are free'): get(server.script('/a', whole()), tmp_path/'a.bin')
    assert len(server.asked) == 1                                       # no other try would help

def test_a_changed_encoding_is_refused(server, tmp_path):
    url = server.script('/a', lambda h: h.send(200, gzip.compress(DATA), Content_Encoding='gzip'))
    with pytest.raises(RRNError, match='changed encoding'): get(url, tmp_path/'a.bin')

def test_mirrors_in_order(server, tmp_path):
    urls = [server.script('/gone', status(404)), server.script('/busy', status(503)), server.script('/other', whole(NEWER)), server.script('/a', whole())]
    assert get(urls, tmp_path/'a.bin', sha256=SHA, tries=2) == SHA
    assert [a[0] for a in server.asked] == ['/gone', '/busy', '/busy', '/other', '/a']

def test_all_mirrors_fail(server, tmp_path):
    urls = [server.script('/gone', status(410)), server.script('/busy', status(503)), 'http://127.0.0.1:1/a', 'file:///etc/passwd']
    with pytest.raises(RRNError) as e: get(urls, tmp_path/'a.bin')
    message = str(e.value)
    assert 'answered 410' in message and 'answered 503' in message and 'cannot be reached' in message and 'no http(s) address' in message
    assert left_behind(tmp_path) == [] and 'data/README.md' in message

def test_what_one_mirror_sent_is_not_continued_at_another_without_a_checksum(server, tmp_path):
    urls = [server.script('/a', cut(70_000, ETag='"v1"')), server.script('/b', ranged(NEWER))]
    get(urls, tmp_path/'a.bin', tries=1)
    assert (tmp_path/'a.bin').read_bytes() == NEWER and server.asked[1][1] is None

def test_with_a_checksum_it_is(server, tmp_path):
    urls = [server.script('/a', cut(70_000, ETag='"v1"')), server.script('/b', ranged(mark='"other"'))]
    assert get(urls, tmp_path/'a.bin', tries=1, sha256=SHA) == SHA and server.asked[1][1:] == ('bytes=70000-', None)

def test_a_try_that_brought_much_does_not_count(server, tmp_path, monkeypatch):
    monkeypatch.setattr(d, 'WORTHWHILE', 50_000)
    slices = lambda h: (lambda start: h.send(206 if start else 200, DATA[start:start + 60_000], length=len(DATA) - start, ETag='"v1"',
                        Content_Range=f'bytes {start}-{len(DATA) - 1}/{len(DATA)}'))(int(re.search(r'\d+', h.headers.get('Range', '0'))[0]))
    assert get(server.script('/a', slices), tmp_path/'a.bin', tries=1) == SHA and len(server.asked) == 5

# ---- redirects -------------------------------------------------------------------------------------------------------------

def test_a_redirect_keeps_the_range(server, tmp_path):
    server.script('/real', cut(70_000, ETag='"v1"'), ranged())
    assert get(server.script('/a', status(302, Location='/real')), tmp_path/'a.bin') == SHA
    assert [a[1] for a in server.asked if a[0] == '/real'] == [None, 'bytes=70000-']

def test_a_circle_of_redirects_ends(server, tmp_path):
    server.script('/b', status(302, Location='/a'))
    with pytest.raises(RRNError, match='answered 302'): get(server.script('/a', status(302, Location='/b')), tmp_path/'a.bin')
    assert len(server.asked) < 10

def test_an_endless_chain_of_redirects_ends(server, tmp_path):
    for i in range(50): server.script(f'/{i}', status(301, Location=f'/{i + 1}'))
    with pytest.raises(RRNError, match='answered 301'): get(server.at('/0'), tmp_path/'a.bin')
    assert len(server.asked) <= 6

@pytest.mark.parametrize('target', ['file:///etc/passwd', 'ftp://127.0.0.1/a', 'data:text/plain,x', 'gopher://127.0.0.1/'])
def test_a_redirect_off_the_web_is_refused(server, tmp_path, target):
    with pytest.raises(RRNError, match='no http|not allowed|redirect'): get(server.script('/a', status(302, Location=target)), tmp_path/'a.bin')
    assert left_behind(tmp_path) == [] and len(server.asked) == 1

def test_the_body_of_a_redirect_is_not_read(server, tmp_path):
    def endless(h):
        h.send(302, b'x', length=None, Location='/real')
        h.wfile.flush(); h.server.released.wait(30)
    server.script('/real', whole())
    assert get(server.script('/a', endless), tmp_path/'a.bin', tries=1, timeout=10) == SHA

@pytest.mark.parametrize('target', ['http://[::1/a', 'http://a..b/a', f'http://{"x" * 70}.example/a', 'http://127.0.0.1:99999/a', 'http://127.0.0.1:port/a', 'http://exa mple/a',
                                    'http://127.0.0.1:-1/a', 'http://%00/a', 'http://\xe9\xff/\xe9', '//[', 'http://user@:80/a', 'http:///a', 'http://127.0.0.1:1/a'])
def test_a_redirect_to_a_broken_host_leads_to_the_next_mirror(server, tmp_path, target):
    def lead(h):
        h.wfile.write(b'HTTP/1.1 302 Found\r\nLocation: ' + target.encode('latin1') + b'\r\nContent-Length: 0\r\n\r\n')
    astray = server.script('/a', lead)
    assert get([astray, server.script('/b', whole())], tmp_path/'a.bin') == SHA
    with pytest.raises(RRNError, match='/a .'): get(astray, tmp_path/'b.bin', tries=1)

# ---- answers without end ---------------------------------------------------------------------------------------------------

def endless(start, again, pause=0.):
    "Send `start`, then `again` until the client hangs up, `pause` seconds between."
    def step(h):
        with contextlib.suppress(OSError):
            h.wfile.write(start)
            while not h.server.released.wait(pause): h.wfile.write(again)
    return step

CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n'

@pytest.mark.parametrize('start, again', [(b'', b'HTTP/1.1 100 Continue\r\nA: b\r\n\r\n'), (b'HTTP/1.1 200 OK\r\n', b'A: b\r\n'), (b'HTTP/1.1 200 OK\r\nA: ', b'b' * 1000),
                                          (CHUNKED + b'3\r\nabc\r\n0\r\n', b'A: b\r\n'), (CHUNKED + b'3;', b'x=y;' * 100), (b'', b'\r\n')],
                         ids=['continue', 'headers', 'header', 'trailer', 'chunk', 'lines'])
def test_talk_without_end_leads_to_the_next_mirror(server, tmp_path, start, again):
    assert get([server.script('/a', endless(start, again)), server.script('/b', whole())], tmp_path/'a.bin', tries=1) == SHA

@pytest.mark.parametrize('start', [b'HTTP/1.1 200 OK\r\nA: ', CHUNKED, PLAIN], ids=['header', 'chunk', 'body'])
def test_a_byte_now_and_then_is_no_answer(server, tmp_path, start):
    slow = server.script('/a', endless(start, b'1', .01))
    with pytest.raises(RRNError, match='too few'): get(slow, tmp_path/'a.bin', tries=1, window=.2)

@pytest.mark.parametrize('cut', [b'0', b'0\r\n', b'0\r\nA: b', b'100', b'', b'5\r\nabc'])
def test_a_chunked_answer_without_its_end_is_not_the_file(server, tmp_path, cut):
    step = lambda h: (h.wfile.write(CHUNKED + b'3\r\nabc\r\n' + cut), setattr(h, 'close_connection', True))
    with pytest.raises(RRNError, match='broke off'): get(server.script('/a', step), tmp_path/'a.bin', tries=1)
    assert not (tmp_path/'a.bin').exists()

def test_names_that_no_file_can_have(server, tmp_path):
    with pytest.raises(RRNError, match='no path'): get(server.script('/a', whole()), f'{tmp_path}/a\0b')
    with pytest.raises(RRNError, match='no path'): unpack(f'{tmp_path}/a\0b', tmp_path/'out')
    with pytest.raises(RRNError, match='no path'): unpack(zip_of(tmp_path/'a.zip', ('x', b'1')), f'{tmp_path}/\udc80\ud800')

# ---- what is there already -------------------------------------------------------------------------------------------------

def test_a_file_that_is_there_is_held_to_what_is_known(server, tmp_path):
    path = tmp_path/'a.bin'; path.write_bytes(DATA)
    assert get(server.at('/a'), path) == SHA and not server.asked
    for known in (dict(sha256='0' * 64), dict(size=7)):
        with pytest.raises(RRNError, match='is there, but it has'): get(server.at('/a'), path, **known)
    assert path.read_bytes() == DATA
    (tmp_path/'a.bin.sha256').write_text('')                            # an empty record says nothing
    assert get(server.at('/a'), path) == SHA

def test_two_at_once_are_told_apart(server, tmp_path):
    with locked(tmp_path/'.a.bin.part'):
        with pytest.raises(RRNError, match='in use'): get(server.script('/a', whole()), tmp_path/'a.bin')

def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path/'a').write_text('a file')
    with pytest.raises(RRNError, match='cannot be written'): get(server.script('/a', whole()), tmp_path/'a'/'b.bin')
    with pytest.raises(RRNError, match='cannot be written'): get(server.at('/a'), tmp_path)

# ---- archives --------------------------------------------------------------------------------------------------------------

def tar_of(path, *members, mode='w:gz'):
    "A tar of (TarInfo or name, bytes) pairs."
    with tarfile.open(path, mode) as t:
        for info, data in members:
            info = info if isinstance(info, tarfile.TarInfo) else tarfile.TarInfo(info)
            info.size = len(data) if info.isreg() else 0
            t.addfile(info, io.BytesIO(data))
    return path

def zip_of(path, *members):
    "A zip of (ZipInfo or name, bytes) pairs; the same name may come twice."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for info, data in members: z.writestr(info, data)
    return path

def special(name, kind, target=''):
    info = tarfile.TarInfo(name); info.type, info.linkname = kind, target
    return info

def zip_special(name, kind):
    info = zipfile.ZipInfo(name); info.create_system = 3; info.external_attr = (kind | 0o777) << 16
    return info

@pytest.fixture
def refused(tmp_path):
    "A function that unpacks an archive, wants it refused, and looks for anything left behind."
    (tmp_path/'area').mkdir(); (tmp_path/'victim').write_text('mine')
    def check(archive, match, **limits):
        with pytest.raises(RRNError, match=match): unpack(archive, tmp_path/'area'/'out', progress=False, **limits)
        assert left_behind(tmp_path/'area') == [] and (tmp_path/'victim').read_text() == 'mine'
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['area', 'victim', archive.name])
        archive.unlink()
    return check

OUT = ['../victim', 'a/../../victim', '/tmp/rrn-escaped', '..', 'a\\..\\victim', 'c:/victim', './/../victim']

@pytest.mark.parametrize('name', OUT)
@pytest.mark.parametrize('make, file', [(zip_of, 'a.zip'), (tar_of, 'a.tar.gz')])
def test_names_that_lead_out(tmp_path, refused, name, make, file):
    refused(make(tmp_path/file, ('ok.txt', b'fine'), (name, b'evil')), 'leads out')
    assert not os.path.exists('/tmp/rrn-escaped')

@pytest.mark.parametrize('kind', [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE])
def test_a_tar_whose_headers_fill_the_memory(tmp_path, refused, kind):
    header = tarfile.TarInfo('x'); header.type, header.size = kind, 30 << 20
    (tmp_path/'a.tar.gz').write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(30 << 20) + tarfile.TarInfo('b').tobuf() + bytes(1024)))
    refused(tmp_path/'a.tar.gz', 'describes a member in 31,457,280 bytes', ratio=10_000)

def test_a_tar_of_many_members_does_not_keep_them(tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w', format=tarfile.PAX_FORMAT) as t:
        for i in range(300): info = tarfile.TarInfo(f'{i}'); info.pax_headers = {'comment': 'c' * 100_000}; t.addfile(info)
    tracemalloc.start()
    assert sum(1 for _ in d.members_of(tmp_path/'a.tar', tmp_path/'out', 1 << 30)) == 300
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 5 << 20

def test_links_and_devices(tmp_path, refused):
    for kind, word in [(tarfile.SYMTYPE, 'link'), (tarfile.LNKTYPE, 'link'), (tarfile.CHRTYPE, 'device'), (tarfile.BLKTYPE, 'device'), (tarfile.FIFOTYPE, 'device')]:
        refused(tar_of(tmp_path/'a.tar.gz', (special('x', kind, '../victim'), b''), ('x/y', b'evil')), word)
    for kind, word in [(stat.S_IFLNK, 'link'), (stat.S_IFCHR, 'device'), (stat.S_IFIFO, 'device')]:
        refused(zip_of(tmp_path/'a.zip', (zip_special('x', kind), b'../victim')), word)

def test_a_link_and_then_a_file_below_it(tmp_path, refused):
    refused(tar_of(tmp_path/'a.tar', (special('d', tarfile.SYMTYPE, '..'), b''), ('d/victim', b'evil'), mode='w'), 'link')

@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_names_that_come_twice(tmp_path, refused):
    for pair in (('a', 'a'), ('A', 'a'), ('é', 'e\u0301'), ('./a', 'a'), ('d//a', 'd/a')):
        refused(zip_of(tmp_path/'a.zip', *((n, b'1') for n in pair)), 'twice')
        refused(tar_of(tmp_path/'a.tar.gz', *((n, b'1') for n in pair)), 'twice')

def test_a_file_where_a_folder_is_needed(tmp_path, refused):
    refused(tar_of(tmp_path/'a.tar.gz', ('a', b'1'), ('a/b', b'2')), 'cannot be unpacked')

def test_bombs(tmp_path, refused):
    zeros = bytes(8 << 20)
    refused(zip_of(tmp_path/'a.zip', ('zeros', zeros)), 'unpacks to more')
    refused(tar_of(tmp_path/'a.tar.gz', ('zeros', zeros)), 'unpacks to more')
    refused(zip_of(tmp_path/'a.zip', *((f'{i}', os.urandom(99)) for i in range(30))), 'more members', members=20)
    refused(tar_of(tmp_path/'a.tar.gz', *((f'{i}', os.urandom(99)) for i in range(30))), 'unpacks to more', total=2000)

def test_a_bomb_in_the_headers(tmp_path, refused):
    info = tarfile.TarInfo('a'); info.pax_headers = {'comment': 'x' * (16 << 20)}
    with tarfile.open(tmp_path/'a.tar.gz', 'w:gz', format=tarfile.PAX_FORMAT) as t: t.addfile(info)
    refused(tmp_path/'a.tar.gz', 'describes a member in 16,777')

def test_overlapping_members_are_counted_each_time(tmp_path, refused):
    data = os.urandom(100_000)
    zip_of(tmp_path/'a.zip', ('0', data))
    raw = (tmp_path/'a.zip').read_bytes()
    start = raw.index(b'PK\x01\x02'); entry = raw[start:raw.index(b'PK\x05\x06')]
    entries = b''.join(entry.replace(b'0', bytes([48 + i]), 1) if entry[46:47] != b'0' else entry[:46] + bytes([48 + i]) + entry[47:] for i in range(10))
    end = b'PK\x05\x06' + bytes(4) + (10).to_bytes(2, 'little') * 2 + len(entries).to_bytes(4, 'little') + start.to_bytes(4, 'little') + bytes(2)
    (tmp_path/'a.zip').write_bytes(raw[:start] + entries + end)
    refused(tmp_path/'a.zip', 'unpacks to more|cannot be unpacked', total=500_000)

def test_encrypted_and_unknown_compression(tmp_path, refused):
    zip_of(tmp_path/'a.zip', ('a', b'1' * 50))
    raw = bytearray((tmp_path/'a.zip').read_bytes())
    for at in (6, raw.index(b'PK\x01\x02') + 8): raw[at] |= 1
    (tmp_path/'a.zip').write_bytes(raw); refused(tmp_path/'a.zip', 'encrypted')

@pytest.mark.parametrize('keep', [.3, .9, .98])
@pytest.mark.parametrize('make, file', [(zip_of, 'a.zip'), (tar_of, 'a.tar.gz')])
def test_archives_that_are_cut_short(tmp_path, refused, make, file, keep):
    path = make(tmp_path/file, *((f'{i}', os.urandom(3000)) for i in range(9)))
    path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size)])
    refused(path, 'refused|cannot be unpacked')

def test_archives_with_a_flipped_byte(tmp_path, refused):
    for make, file in ((zip_of, 'a.zip'), (tar_of, 'a.tar.gz')):
        path = make(tmp_path/file, ('a', os.urandom(3000)))
        raw = bytearray(path.read_bytes()); raw[1500] ^= 255; path.write_bytes(raw)
        refused(path, 'refused|cannot be unpacked')

@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html><html>sign in</html>', b'PK\x03\x04', b'\x1f\x8b\x08', b'{"a": 1}', bytes(600)])
def test_things_that_are_no_archive(tmp_path, refused, content):
    (tmp_path/'a.zip').write_bytes(content)
    with pytest.raises(RRNError): d.is_archive(tmp_path/'a.zip')
    refused(tmp_path/'a.zip', 'refused|cannot be unpacked')

def test_nothing_below_the_folder_that_is_wanted(tmp_path, refused):
    refused(zip_of(tmp_path/'a.zip', ('other/a', b'1')), "no files below 'refcoco'", inside='refcoco')

@pytest.mark.parametrize('make, file', [(zip_of, 'a.zip'), (tar_of, 'a.tar.gz')])
def test_a_part_of_an_archive_with_plain_rights(tmp_path, make, file):
    info = tarfile.TarInfo('./mask/7_1.mat') if make is tar_of else zip_special('mask/7_1.mat', stat.S_IFREG)
    if make is tar_of: info.mode, info.uid = 0o6777, 0
    archive = make(tmp_path/file, ('images/7.jpg', b'jpg'), (info, b'mat'), ('masks/x', b''))
    unpack(archive, tmp_path/'out'/'mask', 'mask', progress=False)
    assert left_behind(tmp_path/'out') == ['7_1.mat', 'mask'] and (tmp_path/'out/mask/7_1.mat').read_bytes() == b'mat'
    assert stat.S_IMODE((tmp_path/'out/mask/7_1.mat').stat().st_mode) & 0o7111 == 0

@pytest.mark.parametrize('make, file', [(zip_of, 'a.zip'), (tar_of, 'a.tar.gz')])
def test_a_folder_behind_a_link_of_the_users_own(tmp_path, monkeypatch, make, file):
    (tmp_path/'disk').mkdir()
    (tmp_path/'data').symlink_to(tmp_path/'disk')
    (tmp_path/'images').symlink_to('/nowhere')
    monkeypatch.chdir(tmp_path)
    unpack(make(tmp_path/file, ('images/7.jpg', b'jpg')), 'data/set', progress=False)
    assert (tmp_path/'disk/set/images/7.jpg').read_bytes() == b'jpg'

def test_a_killed_unpacking_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    archive = zip_of(tmp_path/'a.zip', ('a', b'1'), ('b', b'2'))
    class Killed(BaseException): pass
    def die(*a): raise Killed
    monkeypatch.setattr(d.Budget, 'copy', die)
    with pytest.raises(Killed): unpack(archive, tmp_path/'out', progress=False)
    assert left_behind(tmp_path) == ['a.zip']

# ---- whole data sets -------------------------------------------------------------------------------------------------------

@pytest.fixture
def small(server, tmp_path, monkeypatch):
    "Two archives and an index file on the server, in a table of sources of their own."
    refs = zip_of(tmp_path/'r.zip', ('refcoco/refs(unc).p', b'refs'), ('refcoco/instances.json', b'{}')).read_bytes()
    pictures = tar_of(tmp_path/'p.tar.gz', ('./images/7.jpg', b'jpg'), ('./mask/7_1.mat', b'mat')).read_bytes()
    sources = {'refs': Source('refcoco.zip', (server.script('/r', whole(refs)),), {'refcoco': 'refcoco'}, 'free', len(refs), hashlib.sha256(refs).hexdigest()),
               'index': Source('i.json', (server.script('/i', whole(b'{"7.jpg": [16, 7]}')),), {'': 'referit/i.json'}, 'free'),
               'pictures': Source('p.tar.gz', (server.script('/p', status(404)),), {'images': 'referit/images', 'mask': 'referit/mask'}, 'free',
                                  by_hand=('https://example.org/page',))}
    monkeypatch.setattr(d, 'SOURCES', sources); monkeypatch.setattr(d, 'DATASETS', {'unc': ['refs', 'index'], 'referit': ['pictures', 'index']})
    return tmp_path/'data', pictures

def test_a_data_set_is_laid_out_and_not_fetched_twice(server, small, capsys):
    root, _ = small
    assert d.main(['unc', str(root), '--quiet']) == 0
    assert (root/'refcoco/refs(unc).p').read_bytes() == b'refs' and read_json(root/'referit/i.json') == {'7.jpg': [16, 7]}
    asked = len(server.asked)
    assert d.main(['unc', str(root), '--quiet']) == 0 and len(server.asked) == asked
    assert 'free' in capsys.readouterr().out

def test_one_source_that_is_gone_does_not_stop_the_others(small, capsys):
    root, pictures = small
    assert d.main(['referit', str(root), '--quiet']) == 1
    said = capsys.readouterr().err
    assert 'answered 404' in said and 'By hand: find p.tar.gz at https://example.org/page' in said and (root/'referit/i.json').exists()
    (root/'downloads').mkdir(exist_ok=True); (root/'downloads'/'p.tar.gz').write_bytes(pictures)
    assert d.main(['referit', str(root), '--quiet']) == 0
    assert (root/'referit/images/7.jpg').exists() and (root/'referit/mask/7_1.mat').exists()

def test_a_web_page_instead_of_an_archive(server, small, capsys):
    root, _ = small
    server.script('/p', whole(b'<html>Google Drive can\'t scan this file for viruses</html>'))
    server.script('/i', whole(b'<html>'))
    assert d.main(['referit', str(root), '--quiet']) == 1
    said = capsys.readouterr().err
    assert 'a web page' in said and 'not valid JSON' in said and not (root/'referit').exists() or not list((root/'referit').glob('[!.]*'))

def test_the_table_covers_the_papers_sets():
    assert {'unc', 'unc+', 'gref', 'gref-umd', 'referit'} < set(d.DATASETS)
    assert all(name in d.SOURCES for names in d.DATASETS.values() for name in names)
    assert {s for s in d.SOURCES} == {name for names in d.DATASETS.values() for name in names}

def test_the_readme_tells_what_the_table_holds():
    text = (d.Path(__file__).resolve().parents[1]/'data'/'README.md').read_text()
    for source in d.SOURCES.values():
        assert source.file in text and all(place in text for place in source.into.values())
        assert (source.sha256 or 'unknown: recorded at first download') in text
        assert not source.size or f'{source.size:,}' in text
        for url in (*source.mirrors, *source.by_hand): assert url in text or url.startswith(d.OBJSEG), url


# ---------------------------------------------------------------- weights of CNNs

@pytest.fixture
def cnn_on_server(server, tmp_path, monkeypatch):
    "A file of weights on the server, published under its checksum, and an empty folder of PyTorch's."
    from rrn.common import pretrained
    content = b'weights ' * 999
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    digest = hashlib.sha256(content).hexdigest()[:8]
    def publish(body=content):
        file = pretrained.PublishedWeights(f'cnn-{digest}.pth', server.script('/cnn', whole(body)), digest)
        monkeypatch.setitem(pretrained.KNOWN_FILES, ('resnet101', 'deeplab'), file)
        return tmp_path/'torch'/'hub'/'checkpoints'/file.name
    return publish


def test_weights_are_fetched_to_where_they_are_looked_for(cnn_on_server, capsys):
    from rrn.common.pretrained import find_weights
    place = cnn_on_server()
    with pytest.raises(RRNError, match='rrn download weights resnet101'): find_weights('resnet101', '')
    assert d.main(['weights', 'resnet101', '--quiet']) == 0 and str(place) in capsys.readouterr().out
    assert find_weights('resnet101', '') == place and d.main(['weights', 'resnet101', '--quiet']) == 0


def test_weights_that_are_not_the_published_ones(cnn_on_server, capsys):
    place = cnn_on_server(b'something else')
    assert d.main(['weights', 'resnet101', '--quiet']) == 1 and 'not the published file' in capsys.readouterr().err
    assert not place.exists()


@pytest.mark.parametrize('words, message', [
    (['weights', 'small'], 'part of the package'), (['weights', 'deeplab_resnet101_tf'], 'converted by hand'), (['weights', 'resnet102'], 'do not exist')])
def test_weights_that_cannot_be_fetched(words, message, capsys):
    assert d.main(words) == 1 and message in capsys.readouterr().err


def test_a_data_set_wants_one_folder(capsys):
    with pytest.raises(SystemExit) as e: d.main(['unc'])
    assert e.value.code == 2 and 'one folder' in capsys.readouterr().err
