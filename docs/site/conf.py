"""How Sphinx makes the site. `build.py` beside it calls Sphinx with a copy of the files that git knows."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project, author = 'rrn', 'The rrn developers'
project_copyright = f'2026 onwards, {author}'
language = 'en'
root_doc = 'nbs/index'
extensions = ['myst_nb', 'autodoc2', 'extension']
include_patterns = ['nbs/**', 'docs/**', 'reports/**', 'data/*.md', '*.md', 'apidocs/rrn/**', 'rrn/assets/models/**']
exclude_patterns = ['reports/runs/*/*/*.ipynb']      # executed copies of the drivers

# notebooks as they are committed
nb_execution_mode = 'off'
nb_mime_priority_overrides = [('html', 'application/vnd.jupyter.widget-view+json', None)]
nb_ipywidgets_js = {}                               # nothing is fetched from elsewhere
myst_enable_extensions = ['dollarmath', 'fieldlist']
myst_heading_anchors = 4
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']      # a page may begin with any level of heading

# the library from its source; `build.py` has put comments on parameters into the docstrings
autodoc2_packages = ['rrn']
autodoc2_render_plugin = 'myst'
autodoc2_docstring_parser_regexes = [('.*', 'myst')]
autodoc2_hidden_objects = ['private', 'dunder', 'inherited']

html_context = {'default_mode': 'auto'}
html_theme = 'pydata_sphinx_theme'
html_title = 'rrn'
html_static_path = ['static']
html_favicon = 'static/icon.svg'
html_css_files = ['site.css']
html_js_files = ['tables.js']
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_math_renderer = 'mathml'
html_theme_options = dict(header_links_before_dropdown=5, show_prev_next=False, navigation_with_keys=False,
                          secondary_sidebar_items=['page-toc'], footer_start=['copyright'], footer_end=[])
