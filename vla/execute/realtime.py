"""Real-time chunking: the next chunk is computed while the robot moves, and continues what is being executed.

Black et al. 2025, "Real-Time Execution of Action Chunking Flow Policies". A chunk that takes d steps to compute begins with the d commands
that will have been sent by then; the rest of the old chunk pulls on it less and less. How a decoder takes that in is its own affair
(`ActionDecoder.resume`): guided denoising, in-filling of hidden codes, codes said as they are, or mixing.

    pacer = Pacer(ChunkQueue(robot, execute=8))
    while not done:
        if pacer.due:                                 # from a thread of its own on a robot
            continuation = pacer.begin()
            pacer.finish(policy.continue_batch([observation()], [key], [continuation])[0])
        step(pacer.queue.pop())
"""

from __future__ import annotations

from collections import deque

from vla.errors import UserError
from vla.execute.queue import ChunkQueue
from vla.types import Chunk, Continuation

REMEMBERED = 10
"""Past delays of which the longest is expected next (the paper's buffer b)."""


class Pacer:
    """When to ask for a chunk, and what it has to continue, in steps of the robot's control.

    `delay`: the steps a chunk is expected to take, at first; then the longest of the last ten. `warm`: see `Continuation`.
    """

    def __init__(self, queue: ChunkQueue, delay: int = 0, warm: float = 0.0) -> None:
        if delay < 0 or not 0 <= warm < 1:
            raise UserError(f"a delay of at least 0 steps and 0 <= warm < 1, please; not {delay} and {warm}")
        self.queue, self.warm = queue, warm
        self.delays: deque[int] = deque([delay], maxlen=REMEMBERED)
        self._begun: int | None = None

    @property
    def expected(self) -> int:
        """Steps that the next chunk is expected to take."""
        return max(self.delays)

    @property
    def due(self) -> bool:
        """True when a chunk is wanted and none is being computed."""
        return self._begun is None and self.queue.wants_chunk

    @property
    def computing(self) -> bool:
        """Whether a chunk was begun and is not finished."""
        return self._begun is not None

    @property
    def waited(self) -> int:
        """Steps since the observation of the chunk that is being computed."""
        assert self._begun is not None, "no chunk was begun"
        return self.queue.step - self._begun

    def begin(self) -> Continuation | None:
        """Call when the observation is taken. What the chunk has to continue; None where nothing is left to continue."""
        self._begun = self.queue.step
        left_RA = self.queue.remaining()
        return Continuation(left_RA, min(self.expected, len(left_RA)), self.warm) if len(left_RA) else None

    def finish(self, chunk: Chunk) -> None:
        """Call when the chunk is there: its rows whose time has gone are never sent."""
        assert self._begun is not None, "finish without begin"
        if self.queue.started:
            self.delays.append(self.waited)
        self.queue.put(chunk, self._begun)
        self._begun = None
