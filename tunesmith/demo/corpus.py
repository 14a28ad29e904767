"""Reads the documentation of Python's standard library from its source files, which every machine has.

The files are parsed, never imported. The text depends only on the version of Python.
"""

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import TypeGuard

# Modules in every CPython since 3.11, on Linux and macOS, even if a distribution packages tkinter or tests separately.
MODULES = """
abc argparse ast base64 bdb bisect bz2 calendar cmd code codecs codeop collections collections.abc colorsys
compileall concurrent.futures configparser contextlib contextvars copy copyreg csv ctypes ctypes.util curses.ascii
curses.panel dataclasses dbm.dumb decimal difflib dis doctest email email.charset email.encoders email.errors
email.generator email.header email.headerregistry email.iterators email.message email.parser email.policy email.utils
encodings enum filecmp fileinput fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip hashlib
heapq hmac html html.entities html.parser http http.client http.cookiejar http.cookies http.server imaplib importlib
importlib.abc importlib.machinery importlib.util inspect io ipaddress json json.decoder json.encoder keyword linecache
locale logging logging.config logging.handlers lzma mailbox mimetypes modulefinder multiprocessing
multiprocessing.connection multiprocessing.managers multiprocessing.pool multiprocessing.shared_memory netrc numbers
opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile
pstats pty py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched secrets selectors shelve
shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess
symtable sysconfig tabnanny tarfile tempfile textwrap threading timeit token tokenize tomllib trace traceback
tracemalloc tty types typing unittest unittest.case unittest.loader unittest.mock unittest.suite urllib.error
urllib.parse urllib.request urllib.response urllib.robotparser uuid warnings wave weakref webbrowser wsgiref.handlers
wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom xml.dom.minidom xml.dom.pulldom
xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp
zipfile zipimport zoneinfo
""".split()

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Entry:
    """A public function or class at the top level of a module. `doc` is its docstring, or empty."""

    module: str
    name: str
    doc: str
    parsed: Definition


def texts() -> Iterator[tuple[str, str]]:
    """Yields (name, text) of each documentation topic and each module, in a fixed order."""
    for name, text in sorted(topics().items()):
        yield f"topic {name}", text
    for module in MODULES:
        yield module, _page(module)


def topics() -> dict[str, str]:
    """Returns the language reference that `help()` shows, by topic."""
    assignment = next(node for node in parsed("pydoc_data.topics").body if isinstance(node, ast.Assign))
    return ast.literal_eval(assignment.value)


@cache
def entries() -> tuple[Entry, ...]:
    """Returns the public functions and classes of the modules, in the order of MODULES and of their sources."""
    return tuple(
        Entry(module, node.name, _doc(node), node)
        for module in MODULES
        for node in parsed(module).body
        if isinstance(node, Definition) and node.name in _public(parsed(module))
    )


@cache
def parsed(module: str) -> ast.Module:
    """Returns the syntax tree of a module of the standard library."""
    stem = Path(sysconfig.get_path("stdlib"), *module.split("."))
    file = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return ast.parse(file.read_bytes(), str(file))


def _public(tree: ast.Module) -> set[str]:
    """Returns the names in `__all__` if that is a plain list, else all names without a leading underscore."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or getattr(node.targets[0], "id", "") != "__all__":
            continue
        if isinstance(node.value, ast.List | ast.Tuple):
            return {str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)}
    return {node.name for node in tree.body if isinstance(node, Definition) and not node.name.startswith("_")}


def _page(module: str) -> str:
    """Returns a module's docstrings, each under a heading like that of `help()`."""
    tree = parsed(module)
    parts = [f"{module}\n\n{_doc(tree)}".strip()]
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            parts.append(_section(node, f"{module}."))
            if isinstance(node, ast.ClassDef):
                parts += [_section(inner, f"{node.name}.") for inner in node.body if _is_documented(inner)]
    return "\n\n".join(parts)


def _is_documented(node: ast.stmt) -> TypeGuard[Definition]:
    return isinstance(node, Definition) and not node.name.startswith("_") and bool(_doc(node))


def _section(node: Definition, prefix: str) -> str:
    bases_or_arguments = (
        ", ".join(map(ast.unparse, node.bases)) if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
    )
    return f"{prefix}{node.name}({bases_or_arguments})\n{_doc(node)}".strip()


def _doc(node: ast.Module | Definition) -> str:
    return cleandoc(ast.get_docstring(node, clean=False) or "")
