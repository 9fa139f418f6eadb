"""Comments on parameters, as this library writes them, moved into docstrings, where autodoc2 looks."""
import ast
import io
import re
import tokenize


def comments_by_line(source: str) -> dict:
    "Line number -> the text of its comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('#').strip() for t in tokens if t.type == tokenize.COMMENT}


def as_markdown(text: str) -> str:
    "Plain text for MyST: what would be markup is not, but for `code`."
    parts = text.split('`')
    parts[::2] = [re.sub(r'([\\*_<>\[\]$|#])', r'\\\1', part) for part in parts[::2]]
    return '`'.join(parts)


def arguments_of(node) -> list:
    "The arguments of a function, in their order."
    a = node.args
    return [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]


def fields_of(node, comments: dict) -> list:
    "What the comments of a signature say, as lines of a field list."
    arguments = arguments_of(node)
    ends = node.body[0].lineno
    if comments.get(node.lineno) and ends > node.lineno and all(a.lineno == node.lineno for a in arguments):
        return [f':arguments: {as_markdown(comments[node.lineno])}']         # one comment for a signature of one line
    found = [f':param {a.arg}: {as_markdown(comments[a.lineno])}' for a in arguments if comments.get(a.lineno)]
    after = range(max([node.lineno, *(a.lineno for a in arguments)]) + 1, ends)
    returned = [comments[line] for line in after if comments.get(line)]
    return found + [f':returns: {as_markdown(text)}' for text in returned[:1]]


def set_docstring(node, text: str):
    "Give a function, class or module a docstring, instead of what it has."
    if ast.get_docstring(node) is not None:
        node.body.pop(0)
    node.body.insert(0, ast.Expr(ast.Constant(text)))


def told(body: list, comments: dict) -> list:
    "Statements, with what a comment says of a constant or a field as the docstring below it."
    found = []
    for statement in body:
        found.append(statement)
        said = comments.get(statement.lineno) or comments.get(statement.end_lineno)
        if said and isinstance(statement, (ast.Assign, ast.AnnAssign)):
            found.append(ast.Expr(ast.Constant(as_markdown(said))))
    return found


def documented(source: str) -> str:
    "A module's source with its comments on parameters, fields and constants in docstrings, as MyST."
    tree, comments = ast.parse(source), comments_by_line(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            fields = fields_of(node, comments)
            text = '\n\n'.join(filter(None, [as_markdown(ast.get_docstring(node) or ''), '\n'.join(fields)]))
            if text:
                set_docstring(node, text)
        elif isinstance(node, (ast.ClassDef, ast.Module)):
            node.body = told(node.body, comments)
            if ast.get_docstring(node):
                set_docstring(node, as_markdown(ast.get_docstring(node)))
    return ast.unparse(ast.fix_missing_locations(tree))
