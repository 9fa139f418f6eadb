"Files that are small and ask for hours or gigabytes: for each reader, name -> bytes."
import io
import json
import pickle
import struct
import zlib
from PIL import Image

FEW = dict(ref_id=0, ann_id=1, image_id=9, category_id=24, split='train', file_name='x', sent_ids=[0])


def _text(n): return b'X' + struct.pack('<I', n) + b'a' * n
def _long(value): raw = value.to_bytes(20, 'little', signed=True); return pickle.LONG1 + bytes([len(raw)]) + raw


def pickles() -> dict:
    "Pickles that are programs in a few instructions, repeated."
    encode = b'c_codecs\nencode\nq\x000' + _text(100_000) + b'q\x01X\6\0\0\0latin1q\x02\x86q\x030](' + b'h\x00h\x03R' * 30_000 + b'e.'
    copies = b'\x80\2c__builtin__\nfrozenset\nq\x000](' + b''.join(b'J' + struct.pack('<i', i) for i in range(20_000)) + b'e\x85q\x030](' + b'h\x00h\x03R' * 30_000 + b'e.'
    doubled = b'\x80\2(](X\1\0\0\0aeq\0' + b''.join(b'](h%be' % bytes([i]) + b'h%beq%b' % (bytes([i]), bytes([i + 1])) for i in range(40)) + b'l.'
    collide = b'\x80\2}(' + b''.join(_long((i + 1) * (2**61 - 1)) + b'N' for i in range(40_000)) + b'u.'
    hidden = b'\x80\x04\x95' + (3).to_bytes(8, 'little') + b'J\1\2' + b'K\7' + b'\x85' * 8 + b'.'
    return dict(encode=encode, copies=copies, doubled=doubled, collide=collide, sets=b'\x80\4(' + b'\x8f' * 1_000_000 + b'l.',
                marks=b'\x80\4' + b'(' * 1_000_000 + b'.', memos=b'\x80\4N' + b'\x94' * 1_000_000 + b'.', far=b'\x80\2]p' + b'9' * 7 + b'\n0' + _text(1_000_000) + b'.',
                lists=b'\x80\2(' + b']' * 1_000_000 + b'l.', digits=b'\x80\2(' + b'I0x' + b'f' * 500_000 + b'\nl.', hidden=hidden)


def references() -> dict:
    "References that share their sentences, or one long sentence."
    said = [dict(sent_id=n, sent='left', raw='left', tokens=[]) for n in range(2000)]
    one = dict(sent_id=1, sent='left ' * 10_000, raw='', tokens=[])
    return dict(sentences=pickle.dumps([FEW | dict(sentences=said)] * 20_000, 2), long=pickle.dumps([FEW | dict(sentences=[one] * 5_000)], 2),
                itself=pickle.dumps([FEW | dict(sentences=[one])] * 30_000, 2))


def segmentations() -> dict:
    "Outlines (of an object in a picture of 37 x 64) that cost much for their length."
    return dict(polygons=[[0, 0, 0, 1, 1, 1]] * 100_000, outline=[[-370, -370, 640, 640] * 3000], runs=dict(size=[37, 64], counts='o' * 3_000_000))


def instances(entry) -> dict:
    "Index files (with `entry` as one good annotation) whose numbers all have the same hash."
    same = [entry | dict(id=(i + 1) * (2**61 - 1)) for i in range(50_000)]
    return dict(collide=json.dumps(dict(images=[], categories=[], annotations=same)).encode())


def _chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, kind=2, bits=8, extra=b'') -> bytes:
    "A black PNG, packed as far as it goes."
    row = 1 + (width * {0: 1, 2: 3, 3: 1}[kind] * bits + 7) // 8
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    palette = _chunk(b'PLTE', bytes(6)) if kind == 3 else b''
    return b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)) + extra + palette + _chunk(b'IDAT', rows) + _chunk(b'IEND', b'')


def pictures() -> dict:
    "Pictures of a few hundred kilobytes that unpack to gigabytes, or are drawn over and over."
    file = io.BytesIO(); Image.new('RGB', (4000, 4000)).save(file, 'JPEG', progressive=True)
    jpeg = file.getvalue(); last = jpeg.rindex(b'\xff\xda')
    wide = io.BytesIO(); Image.new('RGB', (9, 9)).save(wide, 'WEBP', lossless=True)
    canvas = b'VP8X' + struct.pack('<I', 10) + bytes(4) + (16382).to_bytes(3, 'little') * 2
    webp = b'RIFF' + struct.pack('<I', 4 + len(canvas) + len(wide.getvalue()) - 12) + b'WEBP' + canvas + wide.getvalue()[12:]
    return dict(colours=png(9_990, 10_000), bits=png(12_000, 8_000, 0, 1), palette=png(7_900, 8_000, 3), scans=jpeg[:-2] + jpeg[last:-2] * 3000 + b'\xff\xd9', webp=webp)


def chunks() -> dict:
    "Small pictures with chunks that unpack to 200 MB: read without them, or refused."
    packed = zlib.compress(bytes(200 << 20), 9)
    return {kind: png(64, 48, extra=_chunk(kind.encode(), start + packed)) for kind, start in (('iCCP', b'x\0\0'), ('zTXt', b'x\0\0'), ('iTXt', b'x\0\1\0\0\0'))}


def matrices() -> dict:
    "MATLAB files (of a mask of 7 x 16) that unpack to much."
    def packed(payload): body = zlib.compress(payload, 9); return bytes(124) + b'\0\1IM' + struct.pack('<II', 15, len(body)) + body
    matrix = lambda inner: struct.pack('<II', 14, len(inner)) + inner
    many = bytes(124) + b'\0\1IM' + struct.pack('<II', 15, 3) + zlib.compress(b'')[:3]
    return dict(zeros=packed(bytes(400 << 20)), elements=packed(matrix(struct.pack('<II', 9, 0) * (1 << 17))), often=many[:128] + many[128:] * 100_000)
