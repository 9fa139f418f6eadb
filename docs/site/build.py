#!/usr/bin/env python
"""Build the site into build/site/html, where warnings are errors:

    uv run --group site python docs/site/build.py

Sphinx reads a copy of the files that git knows, so that nothing else gets in, and nothing is written beside the sources.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from docments import documented
from links import faults

REPO = Path(__file__).resolve().parents[2]
START = '<!doctype html><meta charset="utf-8"><link rel="icon" href="_static/icon.svg"><meta http-equiv="refresh" content="0; url=nbs/index.html"><a href="nbs/index.html">rrn</a>'


def known_to_git() -> list:
    "The files of the checkout that are committed, or about to be."
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=REPO, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split('\0') if name and (REPO/name).is_file() and name != 'rrn/_modidx.py']


def copy_sources(place: Path):
    "Copy the checkout; modules get the comments on their parameters into their docstrings."
    shutil.rmtree(place, ignore_errors=True)
    for name in known_to_git():
        (place/name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith('rrn/') and name.endswith('.py'):
            (place/name).write_text(documented((REPO/name).read_text()))
        else:
            shutil.copy(REPO/name, place/name)


def add_demo(folder: Path, source: Path, others: list):
    "Make the page that asks the library's model and `others` in a browser, and show it in the site; where that fails, say so."
    from rrn.common.core import RRNError
    try:
        from rrn.experiments.export import export_page
        from rrn.experiments.package import open_predictor
        export_page([open_predictor(name, 'cpu') for name in ['shapes-unc', *others]], folder)
        shown = '<iframe src="../../../demo/index.html" title="the model in this page" class="demo"></iframe>'
    except (ImportError, RRNError) as e:
        print(f'the browser demo is left out: {e}', file=sys.stderr)
        shown = 'It was not built here: `rrn export --page FOLDER` needs npm, onnx and a network, once.'
    page = source/'docs'/'site'/'pages'/'demo.md'
    page.write_text(page.read_text().replace('<!-- demo -->', shown))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=REPO/'build'/'site', help='folder; the pages are in its html/')
    parser.add_argument('--beside', nargs='*', default=[], help="runs, folders or hub's ids: more models for the demo")
    args = parser.parse_args()
    source, pages = args.out/'source', args.out/'html'
    copy_sources(source)
    shutil.rmtree(pages, ignore_errors=True)
    add_demo(pages/'demo', source, args.beside)
    sphinx = [sys.executable, '-m', 'sphinx', '-b', 'html', '-W', '--keep-going', '-q', '-j', 'auto', '-c', REPO/'docs'/'site']
    done = subprocess.run([*sphinx, '-d', args.out/'doctrees', source, pages])
    if done.returncode:
        sys.exit(done.returncode)
    (pages/'index.html').write_text(START)
    if wrong := faults(pages):
        sys.exit('\n'.join(['error: links that lead nowhere, or things from elsewhere:', *wrong]))
    print(f'{pages}/index.html')


if __name__ == '__main__':
    main()
