"""OpenVLA's REST protocol: POST /act with {image, instruction, unnorm_key} as JSON, arrays as json-numpy writes them.

The answer is one action, (A,), as OpenVLA's is. A client in the manner of OpenVLA-OFT (`full_image`, `..._wrist_image`, `state`) is
answered with the list of the chunk's actions. `{"encoded": "<JSON>"}`, for clients that have no json-numpy, is answered with JSON in JSON.
`unnorm_key` names the robot whose statistics are meant, and is refused if that is not the one served. POST /reset, which is ours, says that
an episode begins: what is recorded or replayed begins with it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from vla.serve.codec import from_json, to_json
from vla.serve.openpi import flat, heard
from vla.serve.service import Service
from vla.serve.wire import Refusal


class OpenVla:
    """All clients of the port; HTTP tells them apart by nothing, so that they share one session, until one begins an episode."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._session = self._service.session()

    def greeting(self) -> None:
        return None

    async def answer(self, message: bytes | str) -> bytes:
        payload = from_json(message if isinstance(message, bytes) else _bytes(message))
        encoded = isinstance(payload, dict) and "encoded" in payload
        if encoded:
            if len(payload) != 1 or not isinstance(payload["encoded"], str):
                raise Refusal("malformed", "`encoded` is a text and stands alone")
            payload = from_json(_bytes(payload["encoded"]))
        if not isinstance(payload, dict):
            raise Refusal("malformed", "a request is a map")
        key, robot = payload.pop("unnorm_key", None), self._service.robot
        if key is not None and not (isinstance(key, str) and key == robot.name):
            raise Refusal("mismatch", f"unnorm_key '{str(key)[:80]}' is not served here", (f"embodiment is {robot.name} here",))
        whole_chunk = "full_image" in payload
        # Clients that share a session do not share a count.
        said_by_one = replace(heard(self._ours(payload)), seq=None, execute=None if whole_chunk else 1)
        answer = await self._service.act(said_by_one, self._session)
        given: Any = list(answer.action_TA) if whole_chunk else answer.action_TA[0]
        return json.dumps(to_json(given).decode()).encode() if encoded else to_json(given)

    def refusal(self, refusal: Refusal) -> bytes:
        return json.dumps(refusal.to_json()).encode()

    def _ours(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The names of these clients are those of camera roles where that can only be meant one way."""
        cameras, given = self._service.robot.cameras, self._service.settings.names.given
        said = flat({name: value for name, value in payload.items() if name != "request"})
        for name in [name for name in said if name not in given]:
            first = name in ("image", "full_image")
            like = [role for role in cameras if role == "third_person"] if first else []
            like = like or ([role for role in cameras if "wrist" in role] if "wrist" in name and "." not in name else [])
            if len(like) == 1:
                said[f"images.{like[0]}"] = said.pop(name)
        if "full_image" in said and len(cameras) == 1:
            said[f"images.{cameras[0]}"] = said.pop("full_image")
        nested: dict[str, Any] = dict(said)
        if "request" in payload:
            nested["request"] = payload["request"]
        return nested


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refusal("malformed", "half of a surrogate pair is no letter; send whole ones") from error
