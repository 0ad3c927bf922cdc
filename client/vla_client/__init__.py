"""The robot's side of a policy server: ask it (PolicyClient), and let through only what a motor may get (Guard)."""

from vla_client.client import Mismatch, PolicyClient, Refused, TooLate, Unavailable
from vla_client.codec import ProtocolError, pack, unpack
from vla_client.guard import Guard, Limits, Stale, Unsafe

__all__ = [
    "Guard",
    "Limits",
    "Mismatch",
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
