"""KUKA LBR iiwa of robosuite 1.5 with the Panda's hand, under OSC_POSE: the numbers mean what they mean for `panda`."""

from __future__ import annotations

from dataclasses import replace

from vla.embodiments.panda import EMBODIMENT as PANDA

EMBODIMENT = replace(PANDA, name="robosuite_iiwa")
