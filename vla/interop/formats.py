"""Formats by name, each in a module of its own that is imported when it is chosen."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla.interop.plan import Plan, Report
    from vla.interop.source import Source

IMPORTS = {
    "openvla": ("OpenVLA and its merged fine-tunes (Hugging Face layout)", "vla.interop.openvla"),
    "openvla_oft": ("OpenVLA-OFT (merged folder, L1 action head, projector of proprioception, FiLM)", "vla.interop.oft"),
    "pi0": ("pi0, openpi's or lerobot's safetensors", "vla.interop.pi0"),
    "pi05": ("pi0.5, likewise", "vla.interop.pi0"),
    "pi0_fast": ("pi0-FAST, lerobot's safetensors", "vla.interop.pi0_fast"),
    "cogact": ("CogACT (checkpoints/*.pt)", "vla.interop.cogact"),
    "univla": ("UniVLA fine-tuned for a robot (Hugging Face layout and action_decoder*.pt)", "vla.interop.univla"),
    "discrete_diffusion_vla": (
        "Discrete Diffusion VLA (merged folder, projector of proprioception)",
        "vla.interop.discrete_diffusion",
    ),
    "vlm": ("a vision-language model of a supported family, to be fine-tuned: its decoder is fresh", "vla.interop.vlm"),
    "spatialvla": ("SpatialVLA (Hugging Face layout)", "vla.interop.spatialvla"),
}
"""Name -> what it is, and the module whose `plan` reads it."""


def plan_import(name: str, source: Source) -> Plan:
    """What an import would do. Raises UserError or SchemaError for what cannot be mapped."""
    return importlib.import_module(IMPORTS[name][1]).plan(source, name)


def import_checkpoint(name: str, source: Source, out: Path) -> Report:
    """Writes `out`, complete or not at all."""
    from vla.interop.plan import carry_out

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        source = replace(source, scratch=Path(scratch))
        plan = plan_import(name, source)
        return carry_out(plan, source.stored if plan.stored is None else plan.stored, source.name, out)
