"""The metadata agree with each other, and a wheel brings what a plain installation needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repo.tracked import ROOT, tracked
from vla import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
EXACT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)?)")


def constraints() -> dict[str, str]:
    matches = [EXACT.fullmatch(line) for line in CONSTRAINTS]
    return {canonicalize_name(match["name"]): match["version"] for match in matches if match}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(each for name in extras for each in extras[name])]]


def test_constraints_are_exact_versions_alone():
    # A local version (torch 2.13.0+cpu) or an address would bind everyone to one machine's registry.
    assert not [line for line in CONSTRAINTS if not EXACT.fullmatch(line)]
    assert not re.search(r"://|@|--", (ROOT / "constraints.txt").read_text())
    assert len(constraints()) == len(CONSTRAINTS), "a package is there twice"
    assert list(constraints()) == sorted(constraints())


def test_every_dependency_is_constrained_within_its_bounds():
    found = constraints()
    for requirement in [*requirements(), *map(Requirement, CLIENT["dependencies"])]:
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


def test_what_make_installs_beside_the_extras_is_constrained():
    needs = re.search(r"^ROBOSUITE_NEEDS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    assert {canonicalize_name(name) for name in ["robosuite", "gym-pusht", *needs]} <= set(constraints())


def test_no_file_of_the_build_names_a_registry():
    for name in ("constraints.txt", "pyproject.toml", "client/pyproject.toml", "Makefile", ".ci/run"):
        assert not re.search(r"--?(extra-)?index(-url)?\b|--find-links|--trusted-host", (ROOT / name).read_text()), name


def test_one_version():
    assert PROJECT["version"] == __version__


def test_the_client_needs_no_torch():
    names = {canonicalize_name(Requirement(line).name) for line in CLIENT["dependencies"]}
    assert names == {"numpy", "websockets", "msgpack"}


def test_the_client_does_not_import_vla():
    for path in tracked(".py", under=("client",)):
        assert not re.search(r"^\s*(from|import) (vla|torch)\b", (ROOT / path).read_text(), re.MULTILINE), path


def pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build(folder: Path, out: Path) -> Path:
    """A wheel of a source folder, with the build backend that is installed here: no network."""
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(folder))
    (wheel,) = out.glob("*.whl")
    return wheel


def install(wheel: Path, target: Path) -> None:
    pip("install", "--quiet", "--no-deps", "--no-compile", "--target", str(target), str(wheel))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where a wheel of `vla` was installed, far from the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    install(build(ROOT, place / "dist"), place / "site")
    return place / "site"


def test_the_wheel_carries_every_card_and_mixture(installed):
    paths = tracked(under=("data_mixtures",))
    assert paths
    for path in paths:
        carried = installed / "vla" / "_data" / path
        assert carried.read_bytes() == (ROOT / path).read_bytes()
        if path.suffix == ".yaml":
            yaml.safe_load(carried.read_text())


def test_the_wheel_carries_every_module_and_nothing_else(installed):
    carried = {path.relative_to(installed) for path in installed.rglob("*.py") if path.parts[-2] != "bin"}
    assert carried == set(tracked(".py", under=("vla",)))
    assert {path.name for path in installed.iterdir()} <= {"vla", "bin", f"vla-{__version__}.dist-info"}


def test_the_installed_command_answers_away_from_the_checkout(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "vla"), "--version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vla {__version__}\n", "")


def test_cards_are_found_by_name_away_from_the_checkout(installed, tmp_path):
    cards = [path.stem for path in tracked(".yaml", under=("data_mixtures",)) if path.parts[1] == "sources"]
    code = f"from vla.convert.card import Card, card_names; print(*card_names()); print(Card.find({cards[0]!r}).name)"
    env = {"PYTHONPATH": str(installed), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    listed, found = done.stdout.splitlines()
    assert listed.split() == sorted(cards) and found == cards[0], done.stderr


@pytest.mark.thorough
def test_the_clients_wheel_holds_the_client_alone(tmp_path):
    install(build(ROOT / "client", tmp_path / "dist"), tmp_path / "site")
    assert {path.name.split("-")[0] for path in (tmp_path / "site").iterdir()} == {"vla_client"}


def _rendering(folder: Path, user: int, libraries: str) -> subprocess.CompletedProcess[str]:
    """`make system` on a machine that says so of its libraries and its user, and writes down what is asked of apt-get."""
    says = {"ldconfig": f"echo '{libraries}'", "id": f"echo {user}", "apt-get": f'echo "$@" >> {folder / "asked"}'}
    for name, line in says.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # where `make test` runs this
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    return subprocess.run(["make", "system"], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring their own")
def test_libraries_for_rendering_are_installed_where_that_is_allowed(tmp_path):
    done = _rendering(tmp_path, user=0, libraries="libc.so.6 (libc6,x86-64) => /lib/libc.so.6")
    assert done.returncode == 0, done.stderr
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update == "update -qq"
    assert install.startswith("install -y") and install.endswith("libegl1 libgl1-mesa-dri")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring their own")
def test_who_may_not_install_them_is_told_the_line_to_run(tmp_path):
    done = _rendering(tmp_path, user=1000, libraries="")
    assert done.returncode == 0 and not (tmp_path / "asked").exists()
    assert "sudo apt-get install -y libegl1 libgl1-mesa-dri" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring their own")
def test_libraries_that_are_there_are_left_alone(tmp_path):
    there = "libEGL.so.1 (libc6) => x\n\tlibEGL_mesa.so.0 (libc6) => y"
    done = _rendering(tmp_path, user=0, libraries=there)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not (tmp_path / "asked").exists()
