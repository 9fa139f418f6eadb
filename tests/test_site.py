"""What the site adds to Sphinx: comments on parameters, equations, links. (`docs/site/build.py` builds it.)"""
import ast
import sys
from pathlib import Path
import pytest

SITE = Path(__file__).resolve().parents[1]/'docs'/'site'
sys.path.insert(0, str(SITE))
from docments import documented          # noqa: E402
from links import faults                 # noqa: E402

SOURCE = '''
LIMIT = 3     # of tries
class Thing:
    "What `it` is: a*b_c*d."
    side: int = 2        # in pixels
def asked(picture,       # (H, W, 3) uint8
          size=(1, 2),   # [rows, columns]
          plain=1
         ) -> int:       # how many
    "Ask <it>."
def brief(x, y):         # (B, C), (S,)
    return x
'''


def test_comments_become_docstrings():
    tree = ast.parse(documented(SOURCE))
    docs = {n.name: ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert docs['asked'] == 'Ask \\<it\\>.\n\n:param picture: (H, W, 3) uint8\n:param size: \\[rows, columns\\]\n:returns: how many'
    assert docs['brief'] == ':arguments: (B, C), (S,)' and docs['Thing'] == 'What `it` is: a\\*b\\_c\\*d.'
    assert [n.value.value for n in ast.walk(tree) if isinstance(n, ast.Expr)].count('of tries') == 1 and "'in pixels'" in documented(SOURCE)


def test_the_library_stays_itself():
    "With its docstrings moved, every module still says what it said."
    for path in (SITE.parents[1]/'rrn').rglob('*.py'):
        compile(documented(path.read_text()), str(path), 'exec')


def test_dead_links_and_what_comes_from_elsewhere(tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'b.html').write_text('<h1 id="one"></h1><a href="../c.html#two">x</a><img src="no.png"><a href="https://x.y/z"></a>')
    (tmp_path/'c.html').write_text('<p id="two"></p><a href="a/b.html#none"></a><a href="a/b.html#one"></a><script src="https://x.y/z.js"></script>')
    assert faults(tmp_path) == ['a/b.html: no.png', 'c.html: a/b.html#none', 'c.html: https://x.y/z.js']


def test_equations():
    pytest.importorskip('sphinx')
    from extension import mathml
    drawn = mathml(r'\begin{aligned} i_t &= \sigma(x) \\ c_t &= 1 \end{aligned} \tag{2}', 'block')
    assert drawn.count('<mtr>') == 2 and drawn.endswith('<span class="eqno">(2)</span>') and '\\' not in drawn
