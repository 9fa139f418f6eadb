#!/usr/bin/env python
"""Put the outputs of an executed driver into the notebook that is committed.

    papermill nbs/train.ipynb out.ipynb && python tools/keep_outputs.py out.ipynb nbs/train.ipynb

Progress bars and what goes to stderr are left out, and pictures get a palette, which makes them a third as large. A notebook is
refused if its cells are not those that were executed, or if an output names a place of this machine.
"""
import argparse, base64, io, json, re, sys
from pathlib import Path
from PIL import Image

TEMPORARY = re.compile(r'/tmp/tmp\w+/')                        # another one with every run
PLACES = re.compile(r'/(tmp|root|home|work|Users|var)/')      # where files lie on somebody's machine
WIDGET = 'application/vnd.jupyter.widget-view+json'            # lives as long as its kernel
BAR = re.compile(r'^[^\n]*\d+%[^\n]*[|█][^\n]*$')             # a progress bar as text


def text_of(cell) -> str:
    "A cell's source."
    return ''.join(cell['source'])


def kept(output) -> bool:
    "Whether an output says something once the run is over."
    said = ''.join(output.get('text', '')) or ''.join(output.get('data', {}).get('text/plain', ''))
    only_text = set(output.get('data', {})) <= {'text/plain'}
    if WIDGET in output.get('data', {}): return False
    return output.get('name') != 'stderr' and not (only_text and BAR.match(said.strip()))


def smaller(png:str) -> str:
    "A picture in 128 colours, as base64."
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    out = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(out, format='png', optimize=True)
    return base64.b64encode(out.getvalue()).decode() + '\n'


def without_places(text):
    "Text, or its lines, without the names of temporary folders; the program ends if it names another place."
    if isinstance(text, list):
        return [without_places(line) for line in text]
    found = TEMPORARY.sub('', text)
    if PLACES.search(found):
        sys.exit(f'error: an output names a place of this machine: {found[:200]}')
    return found


def tidy(output) -> dict:
    "An output as it is committed."
    extra = {}
    if 'text' in output:
        extra['text'] = without_places(output['text'])
    if 'data' in output:
        shown = {kind: smaller(v) if kind == 'image/png' else without_places(v) for kind, v in output['data'].items()}
        extra |= dict(data=shown, metadata={})
    return {k: v for k, v in output.items() if k not in ('data', 'text', 'metadata', 'execution_count')} | extra


def keep(executed:dict, committed:dict):
    "Move the outputs; both are notebooks, cells are found by their ids."
    ran = {cell['id']: cell for cell in executed['cells']}
    for cell in committed['cells']:
        if cell['cell_type'] != 'code':
            continue
        if cell['id'] not in ran or text_of(ran[cell['id']]) != text_of(cell):
            sys.exit(f"error: cell {cell['id']} was not executed as it stands: {text_of(cell)[:80]}")
        outputs = [tidy(output) for output in ran[cell['id']]['outputs'] if kept(output)]
        cell['outputs'] = [o | dict(execution_count=None) if o['output_type'] == 'execute_result' else o for o in outputs]


def main():
    "`python tools/keep_outputs.py EXECUTED COMMITTED`"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('executed', type=Path, help='what papermill wrote')
    parser.add_argument('committed', type=Path, help='the driver in nbs/')
    given = parser.parse_args()
    book = json.loads(given.committed.read_text())
    keep(json.loads(given.executed.read_text()), book)
    given.committed.write_text(json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + '\n')
    print(f'{given.committed}: {given.committed.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
    main()
