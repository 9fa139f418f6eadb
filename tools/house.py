#!/usr/bin/env python
"""How this house is kept, counted from its files: cells, outputs, pictures, function lengths, long lines, README.

    python tools/house.py               the files as they are now
    python tools/house.py d975841       a column for that commit, and one for now

Plain Python: nothing has to be installed. Tests hold the limits (tests/test_house.py).
"""
import argparse, ast, io, json, re, statistics, subprocess, tarfile
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
COUNTED = ('nbs', 'rrn', 'README.md')      # what is looked at


def files_now(root=REPO) -> dict:
    "{path: text} of the files that are counted, as they are."
    found = [p for name in COUNTED for p in ([root/name] if (root/name).is_file() else (root/name).rglob('*'))]
    return {str(p.relative_to(root)): p.read_text() for p in sorted(found) if wanted(p)}


def files_of(revision:str, root=REPO) -> dict:
    "The same of a commit."
    packed = subprocess.run(['git', '-C', root, 'archive', revision, *COUNTED], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive if m.isfile() and wanted(Path(m.name))}


def wanted(path) -> bool:
    "Whether a file is source: a notebook, a module, or README."
    return path.suffix in ('.ipynb', '.py', '.md') and path.name != '_modidx.py' and '.ipynb_checkpoints' not in path.parts


# ---------------------------------------------------------------- notebooks

def notebooks(files) -> dict:
    "{path: cells} of all notebooks."
    return {path: json.loads(text)['cells'] for path, text in files.items() if path.endswith('.ipynb')}


def text_of(cell) -> str:
    "A cell's source."
    return ''.join(cell['source'])


def directives(cell) -> list:
    "The words behind `#|` in a cell: ['export'], ['default_exp', 'text']."
    return [word for line in re.findall(r'^#\|(.*)$', text_of(cell), re.M) for word in line.split()]


def code_cells(books) -> list:
    "All code cells that hold something."
    return [c for cells in books.values() for c in cells if c['cell_type'] == 'code' and code_lines(c)]


def code_lines(cell) -> int:
    "Lines of a cell that are neither blank nor directives."
    return sum(bool(line.strip()) and not line.startswith('#|') for line in text_of(cell).splitlines())


def is_exported(cell) -> bool:
    "Whether a cell goes into the library."
    return any(word in ('export', 'exporti', 'exports') for word in directives(cell))


def is_library(cells) -> bool:
    "Whether a notebook exports a module; the others are drivers, and what is read as a page."
    return any('default_exp' in directives(c) for c in cells if c['cell_type'] == 'code')


def pictures(cells) -> int:
    "Pictures that a notebook shows: in outputs and in its text."
    shown = [kind for c in cells for out in c.get('outputs', []) for kind in out.get('data', {})]
    in_text = [m for c in cells if c['cell_type'] == 'markdown' for m in re.findall(r'!\[|<img', text_of(c))]
    return sum(kind.startswith('image/') for kind in shown) + len(in_text)


def floor_of(path) -> str:
    "The folder of a notebook below nbs/, or '' for drivers."
    return '/'.join(Path(path).parts[1:-1])


# ---------------------------------------------------------------- modules

def modules(files) -> dict:
    "{path: text} of the library."
    return {path: text for path, text in files.items() if path.endswith('.py') and path.startswith('rrn/')}


def function_lines(text) -> list:
    "[(lines, name)] of every function and method of a module, its docstring included."
    found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(n.end_lineno - n.lineno + 1, n.name) for n in found]


def defined(text) -> set:
    "Public names that a module defines at its top: functions, classes, constants."
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.Assign):
            found |= {name.id for target in node.targets for name in assigned(target) if isinstance(name, ast.Name)}
    return {name for name in found if not name.startswith('_') and name != 'main'}


def assigned(target) -> list:
    "What an assignment binds: `a, b = ...` binds both; `a[0] = ...` and `a.b = ...` bind no name."
    return target.elts if isinstance(target, ast.Tuple) else [target]


def defined_twice(library) -> dict:
    "{name: modules} of public names that more than one module defines."
    where = {}
    for path, text in library.items():
        for name in defined(text):
            where.setdefault(name, []).append(path)
    return {name: paths for name, paths in sorted(where.items()) if len(paths) > 1}


def long_lines(library, columns) -> list:
    "['rrn/x.py:12', ...]: lines that are longer than so many columns, without `__all__`, which nbdev writes."
    return [f'{path}:{n}' for path, text in library.items() for n, line in enumerate(text.splitlines(), 1)
            if len(line) > columns and n not in lines_of_all(text)]


def lines_of_all(text) -> set:
    "The numbers of the lines on which a module lists its names."
    found = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)
             and any(isinstance(t, ast.Name) and t.id == '__all__' for t in node.targets)]
    return {n for node in found for n in range(node.lineno, node.end_lineno + 1)}


# ---------------------------------------------------------------- figures

def share(part, whole) -> float:
    "Percent."
    return 100 * part / max(whole, 1)


def figures(files) -> dict:
    "{what is counted: number}, of the files of a checkout."
    return notebook_figures(files) | library_figures(files) | readme_figures(files)


def notebook_figures(files) -> dict:
    "What is counted of notebooks; shares in percent."
    books = notebooks(files)
    library = {path: cells for path, cells in books.items() if is_library(cells)}
    cells, exporting = code_cells(books), code_cells(library)
    exported = sum(code_lines(c) for c in exporting if is_exported(c))
    floors = Counter(floor_of(path) for path in books)
    return {
        'notebooks': len(books), 'that export a module': len(library),
        **{f'in nbs/{floor}': n for floor, n in sorted(floors.items())},
        'exported share of their code, %': share(exported, sum(map(code_lines, exporting))),
        'exported share of all notebooks\' code, %': share(exported, sum(map(code_lines, cells))),
        'code cells that show an output, %': share(sum(bool(c['outputs']) for c in cells), len(cells)),
        'pictures': sum(map(pictures, books.values())),
        'notebooks with a picture': sum(bool(pictures(cells)) for cells in books.values())}


def library_figures(files) -> dict:
    "What is counted of modules."
    library = modules(files)
    lengths = sorted(n for text in library.values() for n, _ in function_lines(text))
    return {
        'modules': sum(not path.endswith('__init__.py') for path in library),
        'library lines': sum(len(text.splitlines()) for text in library.values()),
        'function lines, median': statistics.median(lengths),
        'function lines, 90th percentile': lengths[round(.9 * (len(lengths) - 1))],
        'function lines, longest': lengths[-1],
        'library lines over 120 columns': len(long_lines(library, 120)),
        'library lines over 140 columns': len(long_lines(library, 140)),
        'names defined in two modules': len(defined_twice(library))}


def readme_figures(files) -> dict:
    "What is counted of README."
    lines = files['README.md'].splitlines()
    return {'README lines': len(lines), 'README table rows': sum(line.startswith('|') for line in lines)}


def table(columns:dict) -> str:
    "Figures of several states of the house as a Markdown table; `columns` is name -> figures."
    names = list(dict.fromkeys(name for found in reversed(columns.values()) for name in found))
    number = lambda v: '' if v is None else f'{v:,}' if isinstance(v, int) else f'{v:.0f}'
    rows = [[name, *(number(found.get(name)) for found in columns.values())] for name in names]
    lines = [['', *columns], ['---', *['---:'] * len(columns)], *rows]
    return '\n'.join(f"| {' | '.join(line)} |" for line in lines)


def main():
    "`python tools/house.py [REVISION ...]`"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('revisions', nargs='*', metavar='REVISION', help='commits to count beside what is there now')
    parser.add_argument('--names', action='store_true', help='also list the names that two modules define')
    given = parser.parse_args()
    print(table({rev: figures(files_of(rev)) for rev in given.revisions} | {'now': figures(files_now())}))
    if given.names:
        for name, paths in defined_twice(modules(files_now())).items():
            print(f"{name}: {', '.join(paths)}")


if __name__ == '__main__':
    main()
