"""`vla doctor`: what this machine can do. Nothing is believed from a version number that can be tried instead."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

SUMMARY = "Check this machine: Python, torch, GPU, rendering, disk, memory, compilers."
EXAMPLES = """
vla doctor
vla doctor --json > machine.json
torchrun --nproc-per-node 2 -m vla doctor --nodes --path runs
"""

PACKAGES = {
    "": ("torch", "transformers", "numpy", "scipy", "safetensors", "pillow", "simplejpeg", "webdataset"),
    "sim": ("mujoco", "metaworld", "gymnasium", "gymnasium-robotics", "gym-aloha", "dm-control", "av"),
    "train": ("deepspeed", "accelerate", "peft", "tensorboard", "timm", "torchvision"),
    "serve": ("websockets", "msgpack"),
    "convert": ("av", "fsspec", "google-crc32c", "h5py", "pyarrow"),
}
"""Extra -> distributions whose presence is reported; '' is what every use needs."""
NO_ANSWER = "no answer in"
BACKENDS = ("egl", "osmesa", "glfw")
SYSTEM_LIBRARIES = "apt-get install -y libegl1 libgl1-mesa-dri"
LEAST_DISK_GB = 5.0
LEAST_MEMORY_GB = 6.0  # the peak that `vla demo` may reach

Status = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `note`: some uses are missing; `bad`: nothing works. `fix` is empty where all is well."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--path", type=Path, default=Path(), help="folder whose disk is meant to hold the data (default: here)")
    parser.add_argument(
        "--nodes", action="store_true", help="under a launcher: do all ranks share --path, versions and clocks, and how fast do they talk?"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0, or 1 if something that every use needs is bad."""
    checks = []
    for check in _nodes(args.path) if args.nodes else _checks(args.path):
        checks.append(check)
        if not args.json:
            print(f"{check.status:4}  {check.name:10}  {check.detail}", flush=True)
            if check.fix:
                print(f"{'':18}fix: {check.fix}", flush=True)
    good = all(check.status != "bad" for check in checks)
    if args.json and checks:
        print(json.dumps({"ok": good, "checks": [asdict(check) for check in checks]}, indent=2))
    return 0 if good else 1


def _checks(path: Path) -> Iterator[Check]:
    yield _python()
    yield _processor()
    yield _memory()
    yield _disk(path)
    yield _compiler()
    for extra, names in PACKAGES.items():
        yield _packages(extra, names)
    # Imports and renderings run two at a time, each in a process of its own: one that crashes is an answer, not an end.
    probes: list[Callable[[], Check]] = [_torch, _deepspeed, *(lambda name=name: _rendering(name) for name in BACKENDS)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        done = list(pool.map(lambda probe: probe(), probes))
    if any(check.name in BACKENDS and check.status == "ok" for check in done):
        done = [Check(c.name, c.status, c.detail) if c.name in BACKENDS else c for c in done]  # one backend is enough
    yield from done


def _nodes(path: Path) -> Iterator[Check]:
    """Nothing on other ranks than the first."""
    from vla.train.nodes import examine

    for found in examine(path):
        yield Check(found.name, "ok" if found.good else "bad", found.detail, found.fix)


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _processor() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("processor", "ok", f"{usable} cores, {platform.machine()}")


def _memory() -> Check:
    total_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    detail = f"{total_gb:.1f} GB"
    if total_gb < LEAST_MEMORY_GB:
        return Check("memory", "note", detail, f"`vla demo` may need {LEAST_MEMORY_GB:.0f} GB")
    return Check("memory", "ok", detail)


def _disk(path: Path) -> Check:
    if not path.is_dir():
        return Check("disk", "bad", f"no folder {path}", "give --path an existing folder")
    free_gb = shutil.disk_usage(path).free / 1e9
    if free_gb < LEAST_DISK_GB:
        fix = f"make {LEAST_DISK_GB:.0f} GB free, or give --path another disk"
        return Check("disk", "note", f"{free_gb:.1f} GB free at {path}", fix)
    return Check("disk", "ok", f"{free_gb:.1f} GB free at {path}")


def _compiler() -> Check:
    found = {name: shutil.which(name) for name in ("c++", "ninja", "nvcc")}
    # ninja also comes as a Python package, whose program lies beside the interpreter.
    found["ninja"] = found["ninja"] or shutil.which("ninja", path=str(Path(sys.executable).parent))
    detail = ", ".join(f"{name} {'found' if where else 'missing'}" for name, where in found.items())
    if not found["c++"] or not found["ninja"]:
        fix = "DeepSpeed compiles an operator at its first run: apt-get install -y g++ ninja-build"
        return Check("compiler", "note", detail, fix)
    return Check("compiler", "ok", detail)


def _packages(extra: str, names: tuple[str, ...]) -> Check:
    title = extra or "packages"
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    detail = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if not missing:
        return Check(title, "ok", detail)
    fix = f"pip install '{f'vla[{extra}]' if extra else 'vla'}', or `make setup` in a checkout"
    return Check(title, "note" if extra else "bad", detail, fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Check:
    found = _probe("probe_torch")
    if isinstance(found, str):
        return _late("torch", found) or Check("torch", "bad", found, "install torch, or the build of it that fits this machine")
    device = ", ".join(found["devices"]) or "no GPU (small models and simulators run on the processor)"
    return Check("torch", "ok", f"{found['version']}, CUDA {found['cuda'] or 'none'}, {device}")


def _deepspeed() -> Check:
    found = _probe("probe_deepspeed")
    if isinstance(found, str):
        return _late("deepspeed", found) or Check(
            "deepspeed", "note", found, "pip install 'vla[train]'; the local engine trains without it"
        )
    return Check("deepspeed", "ok", f"{found['version']} imports")


def _rendering(backend: str) -> Check:
    found = _probe("probe_rendering", MUJOCO_GL=backend)
    if isinstance(found, str):
        return _late(backend, found) or Check(backend, "note", found, f"one rendering backend is needed for simulators: {SYSTEM_LIBRARIES}")
    return Check(backend, "ok", f"renders {found['frames_per_s']} frames/s of 224 x 224 on {found['renderer']}")


def _late(name: str, found: str) -> Check | None:
    """A child that was given up says nothing about what is installed."""
    return Check(name, "note", found, "nothing is known of it: if the machine is busy, try again later") if NO_ANSWER in found else None


def _probe(function: str, timeout_s: float = 180.0, **environment: str) -> dict[str, Any] | str:
    """Runs one of the functions below in a process of its own: the facts it prints as its last line, or why there are none."""
    command = [sys.executable, "-c", f"from vla.commands.doctor import {function}; {function}()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **environment})
    except subprocess.TimeoutExpired:
        return f"{NO_ANSWER} {timeout_s:.0f} s"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        errors = done.stderr.split("Exception ignored in")[0].strip()  # what a destructor says afterwards is not the cause
        return errors.splitlines()[-1] if errors else f"exit code {done.returncode} without a word"
    return json.loads(done.stdout.splitlines()[-1])


def probe_torch() -> None:
    """Prints its version, and the devices that it finds."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    devices = [f"{device.name} {device.total_memory / 1e9:.0f} GB" for device in properties]
    print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}))


def probe_deepspeed() -> None:
    """Prints its version, if it can be imported at all."""
    import deepspeed

    print(json.dumps({"version": deepspeed.__version__}))


def probe_rendering(frames: int = 60) -> None:
    """Draws a small scene with the backend that MUJOCO_GL names; a black picture counts as a failure."""
    import time

    import mujoco
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(
        "<mujoco><visual><quality offsamples='0' shadowsize='0'/></visual><worldbody>"
        "<light pos='0 0 3'/><geom type='plane' size='1 1 .1' rgba='.5 .6 .7 1'/>"
        "<body pos='0 0 .3'><freejoint/><geom size='.1' rgba='1 0 0 1'/></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    with mujoco.Renderer(model, 224, 224) as renderer:
        start = time.perf_counter()
        for _ in range(frames):
            mujoco.mj_step(model, data)
            renderer.update_scene(data)
            picture = renderer.render()
        rate = frames / (time.perf_counter() - start)
        name = GL.glGetString(GL.GL_RENDERER).decode()
    if picture.max() == picture.min():
        raise RuntimeError("the picture is of one colour")
    print(json.dumps({"frames_per_s": round(rate), "renderer": name}))
