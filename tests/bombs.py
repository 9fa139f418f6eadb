"Files that are small and ask for hours or gigabytes: for each reader, name -> function that gives the bytes."
import io
import json
import pickle
import struct
import zlib
import numpy as np
from PIL import Image

FEW = dict(ref_id=0, ann_id=1, image_id=9, category_id=24, split='train', file_name='x', sent_ids=[0])

# ---- pickles: programs of a few instructions, repeated ----------------------------------------------------------------------


def _text(n): return b'X' + struct.pack('<I', n) + b'a' * n
def _int(i): return b'J' + struct.pack('<i', i)
def _long(value): return pickle.LONG1 + bytes([20]) + value.to_bytes(20, 'little', signed=True)


CALLS = b'](' + b'h\x00h\x03R' * 30_000 + b'e.'         # a list of what a function makes of the same arguments
PICKLES = {
    'encode': lambda: b'c_codecs\nencode\nq\x000' + _text(100_000) + b'q\x01X\6\0\0\0latin1q\x02\x86q\x030' + CALLS,
    'copies': lambda: b'\x80\2c__builtin__\nfrozenset\nq\x000](' + b''.join(map(_int, range(20_000))) + b'e\x85q\x030' + CALLS,
    'doubled': lambda: b'\x80\2(](X\1\0\0\0aeq\0' + b''.join(b'](h%ch%ceq%c' % (i, i, i + 1) for i in range(40)) + b'l.',
    'collide': lambda: b'\x80\2}(' + b''.join(_long((i + 1) * (2**61 - 1)) + b'N' for i in range(20_000)) + b'u.',
    'sets': lambda: b'\x80\4(' + b'\x8f' * 600_000 + b'l.',
    'marks': lambda: b'\x80\4' + b'(' * 600_000 + b'.',
    'lists': lambda: b'\x80\2(' + b']' * 600_000 + b'l.'}
PLAIN_PICKLES = {     # of the same kind, but a quick way to read them takes little
    'memos': lambda: b'\x80\4N' + b'\x94' * 600_000 + b'.', 'far': lambda: b'\x80\2]p9999999\n0' + _text(1_000_000) + b'.',
    'digits': lambda: b'\x80\2(' + b'I0x' + b'f' * 500_000 + b'\nl.'}

SAID = dict(sent_id=1, sent='left ' * 10_000, raw='', tokens=[])
REFERENCES = {        # that share their sentences, or one long sentence
    'sentences': lambda: pickle.dumps([FEW | dict(sentences=[SAID | dict(sent_id=n, sent='left') for n in range(2000)])] * 20_000, 2),
    'long': lambda: pickle.dumps([FEW | dict(sentences=[SAID] * 5_000)], 2),
    'itself': lambda: pickle.dumps([FEW | dict(sentences=[SAID])] * 30_000, 2)}

# ---- COCO -------------------------------------------------------------------------------------------------------------------

SEGMENTATIONS = {     # outlines of an object in a picture of 37 x 64
    'polygons': lambda: [[0, 0, 0, 1, 1, 1]] * 100_000, 'outline': lambda: [[-370, -370, 640, 640] * 3000],
    'runs': lambda: dict(size=[37, 64], counts='o' * 3_000_000)}


def pairs(n, base=(1 << 64) - 1):
    "Pairs of numbers which, as a tuple, have the same hash in Python (its sum is a chain of reversible steps)."
    one, two, five = 11400714785074694791, 14029467366897019727, 2870177450012600261
    back, found, a = pow(two, -1, 1 << 64), [], 0
    while len(found) < n:
        a += 1
        x = five + a*two & base
        b = (1 - one*(x << 31 & base | x >> 33)) * back & base
        if b < 2**61 - 1: found.append((a, b))
    return found


def colliding(entry) -> bytes:
    "An index file (with `entry` as one good annotation) whose numbers all have the same hash."
    same = [entry | dict(id=(i + 1) * (2**61 - 1)) for i in range(30_000)]
    return json.dumps(dict(images=[], categories=[], annotations=same)).encode()

# ---- pictures ---------------------------------------------------------------------------------------------------------------


def _chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _zeros(n):
    "So many zeros, packed as far as it goes."
    packer = zlib.compressobj(9)
    return b''.join(packer.compress(bytes(min(n - i, 1 << 20))) for i in range(0, n, 1 << 20)) + packer.flush()


def png(width, height, kind=2, bits=8, extra=b'') -> bytes:
    "A black PNG; kind is 0 for grey, 2 for colours, 3 for a palette."
    row = 1 + (width * {0: 1, 2: 3, 3: 1}[kind] * bits + 7) // 8
    palette = _chunk(b'PLTE', bytes(6)) if kind == 3 else b''
    header = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + extra + palette + _chunk(b'IDAT', _zeros(row * height)) + _chunk(b'IEND', b'')


def scans() -> bytes:
    "A JPEG whose last scan is drawn a thousand times more."
    file = io.BytesIO(); Image.new('RGB', (2000, 2000)).save(file, 'JPEG', progressive=True)
    jpeg = file.getvalue()
    return jpeg[:-2] + jpeg[jpeg.rindex(b'\xff\xda'):-2] * 1000 + b'\xff\xd9'


def canvas() -> bytes:
    "A WebP of 9 x 9 on a canvas of 16,383 x 16,383."
    file = io.BytesIO(); Image.new('RGB', (9, 9)).save(file, 'WEBP', lossless=True)
    small = file.getvalue()[12:]
    whole = b'WEBPVP8X' + struct.pack('<II', 10, 0) + (16_382).to_bytes(3, 'little') * 2 + small
    return b'RIFF' + struct.pack('<I', len(whole)) + whole


PICTURES = {'colours': lambda: png(9_990, 10_000), 'bits': lambda: png(12_000, 8_000, 0, 1), 'palette': lambda: png(7_900, 8_000, 3),
            'scans': scans, 'webp': canvas}
CHUNKS = {kind: lambda kind=kind, start=start: png(64, 48, extra=_chunk(kind.encode(), start + _zeros(200 << 20)))
          for kind, start in (('iCCP', b'x\0\0'), ('zTXt', b'x\0\0'), ('iTXt', b'x\0\1\0\0\0'))}

# ---- MATLAB -----------------------------------------------------------------------------------------------------------------

MAT = bytes(124) + b'\0\1IM'
def _element(kind, data): return struct.pack('<II', kind, len(data)) + data


MATRICES = {
    'zeros': lambda: MAT + _element(15, _zeros(300 << 20)),
    'elements': lambda: MAT + _element(15, zlib.compress(_element(14, struct.pack('<II', 9, 0) * (1 << 17)), 9)),
    'often': lambda: MAT + _element(15, zlib.compress(b'')[:3]) * 50_000}

# ---- weights ----------------------------------------------------------------------------------------------------------------


def snappy() -> bytes:
    "A packed block that begins with 8 MB and copies 64 bytes from its start 150,000 times."
    def number(n): return b'' if n is None else bytes([n & 127 | 128]) + number(n >> 7) if n > 127 else bytes([n])
    start, copy = 8 << 20, 63 << 2 | 3
    copies = b''.join(bytes([copy]) + struct.pack('<I', start + 64*i) for i in range(150_000))
    return number(start + 64*150_000) + bytes([63 << 2]) + struct.pack('<I', start - 1) + bytes(start) + copies


def long_keys() -> bytes:
    "A block of a table in which 60,000 keys begin with the same 100,000 letters."
    begin, again = b'\0\xa0\x8d\x06\0' + b'a' * 100_000, b'\xa0\x8d\x06\1\0b'
    return begin + again * 60_000 + struct.pack('<II', 0, 1)


class Filled:
    "An array in a pickle, made by a function of NumPy with these arguments and this state."
    def __init__(self, function, arguments, *state): self.how = function, arguments, *state
    def __reduce__(self): return self.how


def npy(layers) -> bytes:
    "A .npy file that holds a dictionary of layers."
    file = io.BytesIO(); np.lib.format.write_array_header_1_0(file, dict(descr='|O', fortran_order=False, shape=()))
    make = np.array(0).__reduce__()[0]
    return file.getvalue() + pickle.dumps(Filled(make, (np.ndarray, (0,), b'b'), (1, (), np.dtype('O'), False, [layers])), 3)


def filled(raw, count=30_000) -> bytes:
    "Layers that are all filled with the same state."
    make, state = np.array(0).__reduce__()[0], (1, (len(raw) if isinstance(raw, bytes) else 0,), np.dtype('u1'), False, raw)
    return npy({f'{i}': [Filled(make, (np.ndarray, (0,), b'b'), state)] for i in range(count)})


def deep_type() -> bytes:
    "An array whose type is a list of lists of lists, each twice the same."
    code = 'f4'
    for _ in range(60): code = [code, code]
    return npy({'a': [Filled(np.dtype, (code,))]})


NPY = {'raw': lambda: filled(bytes(1 << 20)), 'length': lambda: filled(1 << 34, 1), 'type': deep_type,
       'names': lambda: npy({f'{i}': leaves for i, leaves in enumerate([[np.ones(1 << 18, np.float32)]] * 30_000)}),
       'long': lambda: npy({'a' * 500_000: {f'{i}': a for i, a in enumerate([np.ones(1)] * 30_000)}})}
