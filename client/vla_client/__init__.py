"""The robot's side of a policy server: ask it (PolicyClient), let through only what a motor may get (Guard), and both in a loop (Pilot)."""

from vla_client.client import Mismatch, PolicyClient, Refused, TooLate, Unavailable
from vla_client.codec import ProtocolError, pack, unpack
from vla_client.guard import Guard, Limits, Stale, Unsafe
from vla_client.pilot import Pilot

__all__ = [
    "Guard",
    "Limits",
    "Mismatch",
    "Pilot",
    "PolicyClient",
    "ProtocolError",
    "Refused",
    "Stale",
    "TooLate",
    "Unavailable",
    "Unsafe",
    "pack",
    "unpack",
]
