"Small files that ask for hours or gigabytes; pictures as people have them. Each bomb is read in a process with little memory and an alarm."
import multiprocessing
import os
import pickle
import resource
import signal
import traceback
from pathlib import Path
import numpy as np
import pytest
from PIL import Image, ImageOps
import bombs
from rrn.core import RRNError
from rrn.data import read_image
from rrn.refer import CocoMask, read_instances, read_refer, safe_load
from rrn.referit import MatMask
from test_fuzz import INSTANCES, refer_layout

MORE, PATIENCE = 1 << 30, 60          # bytes that a process may claim, seconds; a refusal takes neither


def _in_process(read, end):
    "Send what came of `read` and by how many bytes the process grew."
    claimed = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (claimed + MORE, claimed + MORE))
    signal.alarm(PATIENCE)
    before, what = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 'read'
    try: read()
    except RRNError as e: what = 'MemoryError' if isinstance(e.__cause__ or e.__context__, MemoryError) else f'refused: {e}'
    except BaseException: what = traceback.format_exc()[-1500:]
    end.send((what, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10))
    os._exit(0)


def cost(read) -> tuple:
    "('read', 'refused: why' or a traceback, bytes by which a process grew that did it)."
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=_in_process, args=(read, there))
    process.start(); there.close()
    try: return here.recv()
    except EOFError: return f'the process ended with {process.exitcode}', 0
    finally: process.join()


def refuses(read, content, times=64, free=48 << 20, harmless=False):
    "Whether `read` refuses `content` (or reads it, if `harmless`), with no more memory than that many times its size and a little."
    what, grown = cost(read)
    assert what.startswith('refused') or harmless and what == 'read', what
    assert grown < times * len(content) + free, f'{grown:,} bytes for {len(content):,}'
    return what


@pytest.mark.parametrize('name', bombs.pickles())
def test_a_pickle_cannot_make_more_than_its_allowance(tmp_path, name):
    content = bombs.pickles()[name]
    (tmp_path/'refs.p').write_bytes(content)
    refuses(lambda: safe_load(tmp_path/'refs.p'), content, harmless=name in ('memos', 'far', 'digits'))


def test_an_honest_pickle_spends_a_part_of_its_allowance(tmp_path):
    said = [dict(sent_id=n, sent=f'the zebra number {n}', raw=f'Zebra, {n}.', tokens=['the', 'zebra', f'{n}']) for n in range(20_000)]
    refs = [bombs.FEW | dict(ref_id=n, sentences=said[n:n + 3]) for n in range(0, len(said), 3)]
    for protocol in range(6):
        (tmp_path/'refs.p').write_bytes(pickle.dumps(refs, protocol))
        assert safe_load(tmp_path/'refs.p') == refs


@pytest.mark.parametrize('name', bombs.references())
def test_references_do_not_multiply(tmp_path, name):
    refer_layout(tmp_path)
    content = bombs.references()[name]
    (tmp_path/'refcoco'/'refs(unc).p').write_bytes(content)
    refuses(lambda: read_refer(tmp_path, 'refcoco', 'unc'), content)


@pytest.mark.parametrize('name', bombs.instances(INSTANCES['annotations'][0]))
def test_annotations_whose_numbers_collide(tmp_path, name):
    content = bombs.instances(INSTANCES['annotations'][0])[name]
    (tmp_path/'instances.json').write_bytes(content)
    refuses(lambda: read_instances(tmp_path/'instances.json'), content)


@pytest.mark.parametrize('name', bombs.segmentations())
def test_an_outline_costs_no_more_than_a_picture(name):
    segmentation = bombs.segmentations()[name]
    refuses(CocoMask(segmentation, 37, 64).decode, str(segmentation))
