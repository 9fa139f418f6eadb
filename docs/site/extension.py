"""What Sphinx lacks for this site: equations without scripts, and a table of contents below the start page."""
import html
import json
import re
from pathlib import Path
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

CONTENTS = ['paper', 'data', 'experiments', 'common', 'doors', 'drivers', 'guides', 'results', 'demo']
logger = logging.getLogger(__name__)


def mathml(latex: str, display: str) -> str:
    "An equation as MathML, which browsers draw by themselves. Its number stands beside it."
    number = re.search(r'\\tag\{(.*?)\}', latex)
    latex = re.sub(r'\\tag\{.*?\}', '', latex).replace('{aligned}', '{align*}')
    drawn = convert(latex.strip(), display=display)
    if left := re.findall(r'\\\w+', drawn):
        logger.warning('equation with %s, which is not known: %s', left, latex)
    return drawn + (f'<span class="eqno">({html.escape(number[1])})</span>' if number else '')


def visit_math(self, node):
    self.body.append(mathml(node.astext(), 'inline'))
    raise nodes.SkipNode


def visit_math_block(self, node):
    self.body.append(f'<div class="equation">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def add_contents(app, docname, source):
    "The start page is a notebook; what belongs to the site is put below it."
    if docname != app.config.root_doc:
        return
    book = json.loads(source[0])
    pages = [f'../docs/site/pages/{name}' for name in CONTENTS] + ['../apidocs/rrn/rrn']
    lines = ['```{toctree}', ':hidden:', '', *pages, '```']
    book['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source='\n'.join(lines)))
    source[0] = json.dumps(book)


def folder_as_text(app, env, node, content):
    "A link to a folder of the checkout, which the site does not have, stays as text."
    target = Path(env.doc2path(node.get('refdoc', app.config.root_doc))).parent/node.get('reftarget', '')
    return content if target.is_dir() else None


def links_of_outputs(app, doctree, docname):
    "Markdown that a cell has put out links to notebooks; here these are pages."
    for reference in doctree.findall(nodes.reference):
        uri = reference.get('refuri', '')
        if uri and '://' not in uri:
            reference['refuri'] = re.sub(r'\.(ipynb|md)(?=#|$)', '.html', uri)


def setup(app):
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
    app.connect('source-read', add_contents)
    app.connect('missing-reference', folder_as_text)
    app.connect('doctree-resolved', links_of_outputs)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
