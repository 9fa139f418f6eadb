"""What a built page names and the site does not have; and what it would fetch from elsewhere to be shown."""
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    "The ids of a page, what it links to, and what it loads."
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ('id', 'name') if given.get(name)}
        if given.get('src') and tag != 'a':
            self.loads.append(given['src'])
        if given.get('href'):
            (self.loads if tag == 'link' and 'stylesheet' in given.get('rel', '') else self.links).append(given['href'])


@cache
def page_of(path: Path) -> Page:
    return Page(path.read_text())


def is_there(url: str, page: Path, root: Path) -> bool:
    "Whether a local address leads somewhere, to its anchor."
    parts = urlsplit(url)
    target = page if not parts.path else (page.parent/unquote(parts.path)).resolve()
    if target.is_dir():
        target = target/'index.html'
    if not target.is_file() or root not in target.parents:
        return False
    return not parts.fragment or target.suffix != '.html' or unquote(parts.fragment) in page_of(target).ids


def faults(root: Path) -> list:
    "'page: address' of every dead local link, and of everything that is loaded from elsewhere."
    root, found = root.resolve(), []
    apart = {'_static', '_downloads'}                    # templates of the theme; files to save and open elsewhere
    for path in sorted(p for p in root.rglob('*.html') if not apart & {*p.parts}):
        page = page_of(path)
        for url in dict.fromkeys([*page.links, *page.loads]):
            if urlsplit(url).scheme in ('http', 'https') or url.startswith('//'):
                wrong = url in page.loads
            else:
                wrong = not urlsplit(url).scheme and url != '#' and not is_there(url, path, root)
            if wrong:
                found.append(f'{path.relative_to(root)}: {url}')
    return found
