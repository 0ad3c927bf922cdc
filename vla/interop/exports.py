"""Layouts of other projects that checkpoints can be written in, by name; each in a module that is imported when it is chosen."""

from __future__ import annotations

EXPORTS = {
    "openvla": ("OpenVLA's Hugging Face layout", "vla.interop.export_openvla"),
    "lerobot_policy": ("lerobot's layout of pi0 and pi0.5", "vla.interop.export_pi0"),
}
"""Name -> what it is, and the module whose `plan(contents, weights)` makes it."""
