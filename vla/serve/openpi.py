"""openpi's protocol: metadata on connecting, then an answer to each observation, msgpack over a websocket.

An observation is a map by name: `prompt`, `images` (role -> uint8 (H, W, 3)), `state`. An answer holds `actions`, float64 (T, A), and
`server_timing`. What openpi's own server tells as a traceback in a text message is a short JSON text here. Beside the observation a client
of ours puts `request`: {seq, age_s, timeout_s, offsets_s, executed}, each optional.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from vla.serve.codec import packer, unpack
from vla.serve.service import Service
from vla.serve.wire import Heard, Refusal


class OpenPi:
    """One client of openpi's protocol."""

    def __init__(self, service: Service) -> None:
        self._service, self._session, self._pack = service, service.session(), packer()

    def greeting(self) -> bytes:
        return self._pack(self._service.facts)

    async def answer(self, message: bytes | str) -> bytes:
        if isinstance(message, str):
            raise Refusal("malformed", "send observations as binary messages")
        answer = await self._service.act(heard(unpack(message)), self._session)
        timing = {"infer_ms": answer.policy_s * 1e3, "total_ms": answer.total_s * 1e3}
        return self._pack({"actions": answer.action_TA, "server_timing": timing})

    def refusal(self, refusal: Refusal) -> str:
        return json.dumps(refusal.to_json())


REQUEST = "request"


def heard(message: Any) -> Heard:
    """A map by name, in which maps may lie -> Heard. Raises Refusal."""
    if not isinstance(message, dict):
        raise Refusal("malformed", "an observation is a map")
    message = dict(message)
    request = message.pop(REQUEST, {})
    if not isinstance(request, dict):
        raise Refusal("malformed", f"{REQUEST} is a map")
    offsets_s = request.get("offsets_s", [0.0])
    if not isinstance(offsets_s, list):
        raise Refusal("malformed", "offsets_s is a list of seconds")
    age_s = number(request, "age_s")
    return Heard(
        flat(message),
        tuple(_number("offsets_s", value) for value in offsets_s),
        None if request.get("seq") is None else int(_finite("seq", request["seq"])),
        0.0 if age_s is None else age_s,
        number(request, "timeout_s"),
        request.get("executed"),
    )


def flat(message: Mapping[Any, Any]) -> dict[str, Any]:
    """{images: {wrist: x}} -> {images.wrist: x}. Raises Refusal for deeper maps and names that are no text."""
    found: dict[str, Any] = {}
    for name, value in message.items():
        for inner, item in value.items() if isinstance(value, dict) else [("", value)]:
            if not isinstance(name, str) or not isinstance(inner, str) or isinstance(item, dict):
                raise Refusal("malformed", "names are texts, and maps lie at most two deep")
            found[f"{name}.{inner}" if inner else name] = item
    return found


def number(message: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a message, or None if it is not said. Raises Refusal for anything else."""
    return None if message.get(name) is None else _number(name, message[name])


def _number(name: str, value: Any) -> float:
    return float(_finite(name, value))


def _finite(name: str, value: Any) -> int | float:
    # Compared, not converted: JSON's integers may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise Refusal("malformed", f"{name} must be a finite number")
    return value
