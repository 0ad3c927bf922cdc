"""What holds for every test: one thread a process, no screen, and a longer limit for what is marked slow."""

from __future__ import annotations

import os

import pytest

# Before torch or a simulator is imported; two test processes of one thread each are faster than of several.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

SLOW_TIMEOUT_S = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        slow = item.get_closest_marker("slow") or item.get_closest_marker("faults")
        if slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
