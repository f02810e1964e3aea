"""No code of ours can be made to run what it reads: no pickle and its kin, no eval, no loader that unpickles, in any folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("protocol", "actors", "policies", "verifiers", "launch")
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized", "read_pickle", "to_pickle"}
ATTRIBUTES = {
    "torch": {"load", "save"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "full_load_all"},
}
ALIASES = {"np": "numpy", "th": "torch"}


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and what is wrong there. Follows `import a as b` and `from a import b as c`."""
    tree = ast.parse(source)
    modules = dict(ALIASES)  # local name -> module
    members: dict[str, tuple[str, str]] = {}  # local name -> module and its member
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                modules[name.asname or name.name.split(".")[0]] = name.name.split(".")[0]
                if name.name.split(".")[0] in MODULES:
                    yield node.lineno, f"import {name.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            root = node.module.split(".")[0]
            if root in MODULES:
                yield node.lineno, f"from {node.module} import"
            for name in node.names:
                members[name.asname or name.name] = (root, name.name)
                if name.name in MODULES:
                    yield node.lineno, f"from {node.module} import {name.name}"
                if name.name in ATTRIBUTES.get(root, ()):
                    yield node.lineno, f"from {root} import {name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = modules.get(node.value.id, node.value.id) if isinstance(node.value, ast.Name) else ""
            if node.attr in METHODS:
                yield node.lineno, node.attr
            elif node.attr in ATTRIBUTES.get(owner, ()):
                yield node.lineno, f"{owner}.{node.attr}"
            elif node.attr in MODULES:
                yield node.lineno, f"an attribute named {node.attr}"
            elif owner == "builtins" and node.attr in BUILTINS:
                yield node.lineno, f"builtins.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.lineno, node.id
        elif isinstance(node, ast.Call):
            yield from _call(node, modules, members)


def _call(node: ast.Call, modules: dict[str, str], members: dict[str, tuple[str, str]]) -> Iterator[tuple[int, str]]:
    for keyword in node.keywords:
        false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("allow_pickle", "trust_remote_code") and not false:
            yield node.lineno, f"{keyword.arg} that is not False"
        if keyword.arg == "weights_only" and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        ):
            yield node.lineno, "weights_only that is not True"
    named = ""
    if isinstance(node.func, ast.Name):
        named = ".".join(members.get(node.func.id, ("", "")))
    elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        named = f"{modules.get(node.func.value.id, '')}.{node.func.attr}"
    if named == "numpy.load" and len(node.args) >= 3:
        yield node.lineno, "numpy.load with allow_pickle by position"
    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if named == "importlib.import_module" and {text.split(".")[0] for text in texts} & MODULES:
        yield node.lineno, "importlib.import_module of one of them"


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_code_folder_holds_any_of_it() -> None:
    assert len(files()) > 20
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}" for path in files() for line, what in findings(path.read_text())
    ]
    assert not found


BAD = [
    "import pickle",
    "import cloudpickle as cp",
    "from dill import loads",
    "import os, marshal",
    "def f():\n    import shelve",
    "from torch.utils import pickle",
    "socket.recv_pyobj()",
    "link.socket.send_pyobj(x)",
    "import torch\ntorch.load(path)",
    "import torch as t\nt.save(x, path)",
    "from torch import load as read\nread(path)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "import numpy\nnumpy.load(path, None, True)",
    "from numpy import load\nload(path, allow_pickle=flag)",
    "import yaml\nyaml.load(text)",
    "from yaml import unsafe_load",
    "eval('1 + 1')",
    "run = exec",
    "__builtins__.eval\nimport builtins\nbuiltins.eval('1')",
    "Model.from_pretrained(name, trust_remote_code=True)",
    "Model.from_pretrained(name, trust_remote_code=config.trust)",
    "loader(path, weights_only=False)",
    "import importlib\nimportlib.import_module('pickle')",
    "import torch.multiprocessing\ntorch.multiprocessing.reductions.pickle.loads(b)",
    "frame.to_pickle(path)",
]
GOOD = [
    "model.eval()\nmodel.train()",
    "import re\nre.compile('x')",
    "import yaml\nyaml.safe_load(text)",
    "import numpy as np\nnp.load(path, allow_pickle=False)",
    "from safetensors.torch import load, save_file",
    "pickled = 'the word pickle in a string is no pickle'",
    "self.load(path)",
    "Model.from_pretrained(name, trust_remote_code=False)",
]


@pytest.mark.parametrize("snippet", BAD)
def test_the_scan_bites(snippet: str) -> None:
    assert list(findings(snippet))


@pytest.mark.parametrize("snippet", GOOD)
def test_the_scan_does_not_bite_what_is_harmless(snippet: str) -> None:
    assert not list(findings(snippet))
