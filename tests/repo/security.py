"""What shipped code may not contain, found in its syntax tree. There is no list of exceptions.

One rule has two halves: nothing unpickles, but importers may call `torch.load(..., weights_only=True)`, which builds tensors alone.

No data, weight, config or checkpoint file may run code (DESIGN P5), and no error may be swallowed whole.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MODULES = {"pickle", "cPickle", "_pickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "jsonpickle"}
"""Modules that turn bytes into objects, code included."""
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "yaml.load": "yaml tags that build objects; use yaml.safe_load",
    "yaml.load_all": "yaml tags that build objects; use yaml.safe_load_all",
    "yaml.full_load": "yaml tags that build objects; use yaml.safe_load",
    "yaml.full_load_all": "yaml tags that build objects; use yaml.safe_load_all",
    "yaml.unsafe_load": "yaml tags that build objects; use yaml.safe_load",
    "yaml.unsafe_load_all": "yaml tags that build objects; use yaml.safe_load_all",
    "torch.load": "pickle; use safetensors",
    "torch.save": "pickle; use safetensors",
    "pandas.read_pickle": "pickle",
    "torch.hub.load": "code from the network",
}
FLAGS = {"shell": "a shell", "allow_pickle": "pickle", "trust_remote_code": "code from the network"}
"""Keyword arguments that may only be given as a literal False."""
CATCH_ALL = {"Exception", "BaseException"}
IMPORTERS, TENSORS_ALONE = "vla/interop/", "weights_only"
PRINTING = ("vla/commands/", "vla/cli.py", "pretrain/", "finetune/", "benchmarks/", "checkpoints/")
"""Command-line programs, whose output print is; a library's is not."""


def violations(source: str, path: Path) -> list[str]:
    """One line for each thing in a file that must not be there."""
    nodes = [*ast.walk(ast.parse(source, filename=str(path)))]
    names = _imported_names(nodes)
    found = []
    allowed = {id(node.func) for node in nodes if _loads_tensors_alone(node, names)} if str(path).startswith(IMPORTERS) else set()
    for node in nodes:
        if id(node) not in allowed:
            found += [f"{path}:{node.lineno}: {what}" for what in _in_node(node, names, path)]
    return found


def _loads_tensors_alone(node: ast.AST, names: dict[str, str]) -> bool:
    given = {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}
    said = given.get(TENSORS_ALONE)
    return isinstance(said, ast.Constant) and said.value is True and _full_name(node.func, names) == "torch.load"


def _in_node(node: ast.AST, names: dict[str, str], path: Path) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        yield from (f"imports {module}" for module in modules if module.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (f"imports {name}: {CALLS[name]}" for name in imported if name in CALLS)
    elif isinstance(node, (ast.Name, ast.Attribute)):
        name = _full_name(node, names)
        if name in CALLS:  # named at all: also as an argument, or under another name
            yield f"{name}: {CALLS[name]}"
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield f"{node.id} runs text as code"
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg in FLAGS and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                yield f"{keyword.arg}={ast.unparse(keyword.value)}: {FLAGS[keyword.arg]}"
        if isinstance(node.func, ast.Name) and node.func.id == "print" and not str(path).startswith(PRINTING):
            yield "print outside a command"
    elif isinstance(node, ast.ExceptHandler):
        caught = [] if node.type is None else node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if node.type is None or any(_full_name(each, names) in {"Exception", "builtins.Exception"} for each in caught):
            yield "catches every error"
        elif any(_full_name(each, names) in CATCH_ALL for each in caught) and not _raises_again(node):
            yield "catches BaseException without raising it again"


def _imported_names(nodes: list[ast.AST]) -> dict[str, str]:
    """Local name -> full name, for every import in the file: `np` -> numpy, `load` -> torch.load."""
    names = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(
                {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names}
            )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return ""


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether the handler, which may first clean up, ends in a bare `raise`."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
