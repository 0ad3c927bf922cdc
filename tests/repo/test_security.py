"""Shipped code holds nothing that lets a file run code, and swallows no error; the guard itself is shown to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.repo.security import violations
from tests.repo.tracked import ROOT, SHIPPED, tracked

HERE = Path("vla/example.py")


def test_shipped_code_is_clean():
    files = tracked(".py", under=SHIPPED)
    assert len(files) > 20, "the guard found nothing to read"
    found = [line for path in files for line in violations((ROOT / path).read_text(), path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import dill as d",
        "from marshal import loads",
        "import joblib.memory",
        "eval('1')",
        "list(map(eval, words))",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "__import__(name)",
        "import os; os.system('ls')",
        "import os as o; o.popen('ls')",
        "from os import system",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess; subprocess.run('ls', shell=flag)",
        "from subprocess import getoutput",
        "import asyncio; asyncio.create_subprocess_shell('ls')",
        "import yaml; yaml.load(text, yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import numpy as np; np.load(path, allow_pickle=flag)",
        "import torch; torch.load(path, weights_only=True)",
        "import torch as t; t.load(path)",
        "import torch; reader = torch.load",
        "from torch import load",
        "import torch; torch.save(x, path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "try: pass\nexcept: pass",
        "try: pass\nexcept Exception: pass",
        "try: pass\nexcept (OSError, Exception) as error: raise error",
        "try: pass\nexcept BaseException: clean()",
        "def f():\n    print('x')",
    ],
)
def test_it_sees(source):
    assert violations(source, HERE)


@pytest.mark.parametrize("source", ["torch.load(path)", "torch.load(path, weights_only=flag)", "read = torch.load"])
def test_an_importer_reads_a_pickle_for_its_tensors_alone(source):
    assert violations(f"import torch; {source}", Path("vla/interop/example.py"))
    assert not violations("import torch; torch.load(path, mmap=True, weights_only=True)", Path("vla/interop/example.py"))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "spec.loader.exec_module(module)",
        "import re; re.compile('x')",
        "import torch; torch.compile(model)",
        "import yaml; yaml.safe_load(text)",
        "import numpy as np; np.load(path, allow_pickle=False)",
        "import subprocess; subprocess.run(['ls'], shell=False)",
        "import json; json.load(file)",
        "try: pass\nexcept (OSError, ValueError): raise",
        "try: pass\nexcept BaseException:\n    clean()\n    raise",
        "'pickle, eval(), torch.load'  # pickle",
    ],
)
def test_it_lets_pass(source):
    assert not violations(source, HERE)


def test_commands_may_print():
    assert not violations("print('x')", Path("vla/commands/show.py"))
