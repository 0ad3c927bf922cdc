"""Steps far out of what is usual: a batch with broken labels, say. They move nothing, and are written down.

Usual is what the last updates were: loss and gradient norm lie, in logarithms (both are positive and skewed), so many standard
deviations around their mean. Of plain values the norm's tail alone would pass ten deviations once in some ten thousand clean steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla.train.engine import Limits, Update

WINDOW = 128
"""Updates that say what is usual, as in OLMo-core's optimizers that skip steps."""
FEWEST = 64
LEAST = math.log(2)
"""Less than twice the usual is no spike, however calm it has been."""


def limits(recent: Sequence[tuple[float, float]], sigmas: float) -> Limits:
    """The largest loss and gradient norm that are no spike; without limit while too little is known, or for `sigmas` = 0."""
    if not sigmas or len(recent) < FEWEST:
        return Limits()
    losses, norms = zip(*recent, strict=True)
    return Limits(_limit(losses, sigmas), _limit(norms, sigmas))


def remembered(recent: tuple[tuple[float, float], ...], update: Update, limit: Limits) -> tuple[tuple[float, float], ...]:
    """With this step's. A spike counts as what the limit was: so a lasting change is taken for usual after some steps."""
    if not (math.isfinite(update.loss) and math.isfinite(update.grad_norm)):
        return recent
    return (*recent, (min(update.loss, limit.loss), min(update.grad_norm, limit.grad_norm)))[-WINDOW:]


def _limit(values: Sequence[float], sigmas: float) -> float:
    logs = [math.log(value) for value in values if value > 0]  # a batch without labels has the loss 0, and says nothing
    if len(logs) < FEWEST:
        return math.inf
    mean = math.fsum(logs) / len(logs)
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in logs) / len(logs))
    return math.exp(min(mean + max(sigmas * deviation, LEAST), 700.0))
