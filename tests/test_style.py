"""How the library is written: lines that fit a screen, one statement a line, one meaning a name (tools/house.py counts)."""
import importlib.util
import io
import tokenize
from pathlib import Path
import pytest

REPO = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location('house', REPO/'tools'/'house.py')
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)
LIBRARY = house.modules(house.files_now())


def test_no_line_is_longer_than_120_columns():
    assert house.long_lines(LIBRARY, 120) == []


@pytest.mark.parametrize('path', LIBRARY)
def test_a_line_holds_one_statement(path):
    tokens = tokenize.generate_tokens(io.StringIO(LIBRARY[path]).readline)
    assert [t.start[0] for t in tokens if t.type == tokenize.OP and t.string == ';'] == []


def test_a_public_name_is_defined_in_one_module():
    assert house.defined_twice(LIBRARY) == {}


def test_what_is_defined():
    text = 'LIMIT, other = 1, 2\nkind: int = 3\nLIMITS = {}\nLIMITS["x"] = 3\ndef f(): inner = 1\nclass A: pass\ndef _f(): pass\n'
    assert house.defined(text) == {'LIMIT', 'other', 'kind', 'LIMITS', 'f', 'A'}


def test_what_nbdev_writes_does_not_count():
    names = ', '.join(f"'name{i}'" for i in range(40))
    assert house.long_lines({'a.py': f'__all__ = [{names}]\n' + 'x' * 121}, 120) == ['a.py:2']
