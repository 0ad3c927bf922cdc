"""A run beside another policy's finished one that ends as soon as its rule says which of the two is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla.errors import UserError
from vla.evaluate.result import EvalResult, Row
from vla.evaluate.sequential import Sequential, StoppingRule

ROUND = 5
"""Episodes of each task between two looks: environments are kept busy, and no task runs ahead of the others."""
_WORDS = {"A": "worse", "B": "better", "none": "no difference shown"}


class Rival:
    """The other policy (A) and the rule; the policy that runs is B. Pairs come by episode, then by task, whatever finishes first."""

    def __init__(self, name: str, result: EvalResult, level: float = 0.05) -> None:
        self.name, self.level = name, level
        self._result = result
        self._success = {(row.task, row.episode): (row.seed, row.success) for row in result.rows}
        self._test: Sequential | None = None

    def rounds(self, tasks: Sequence[str], episodes: int, declared: Mapping[str, Any]) -> list[list[tuple[str, int]]]:
        """The (task, episode)s to run before each look, with which the rule is fixed. UserError if the other did not run all of them by the
        same rules, or if outcomes had a say in which it ran."""
        for key in ("suite", "seed", "probe"):
            ours, theirs = declared[key], getattr(self._result, key)
            if ours != theirs:
                there, here = ((each or {}).get("spec", "none") if key == "probe" else each for each in (theirs, ours))
                raise UserError(f"{self.name} was run with {key} {there}, this with {here}; episodes pair up only if they are the same")
        end = self._result.stopping
        if end is not None and len(self._result.rows) < end["planned"]:
            raise UserError(
                f"{self.name} was itself ended early by its outcomes ({end['verdict']}), so that what it holds is no fair sample; run that "
                "policy without --against first"
            )
        for task in tasks:
            ours, theirs = declared["max_steps"][task], self._result.max_steps.get(task)
            if theirs is not None and ours != theirs:
                raise UserError(f"{self.name} had {theirs} steps for an episode of {task}, this has {ours}; they are no pair")
        order = [(task, episode) for episode in range(episodes) for task in tasks]
        missing = [f"{task} {episode}" for task, episode in order if (task, episode) not in self._success]
        if missing:
            raise UserError(f"{self.name} lacks {len(missing)} of these {len(order)} episodes, such as {missing[0]}; give fewer --episodes")
        self._test = Sequential(StoppingRule(len(order), self.level))
        size = ROUND * len(tasks)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def decided(self, rows: Sequence[Row]) -> bool:
        """Looks at a round's rows, in the round's order; True if the run should end."""
        assert self._test is not None
        for row in rows:
            seed, success = self._success[row.task, row.episode]
            if seed != row.seed:
                raise UserError(f"{self.name} ran {row.task} {row.episode} from seed {seed}, this from {row.seed}; they are no pair")
            if self._test.finished:
                break
            self._test.add(success, row.success)
        return self._test.finished

    def to_json(self) -> dict[str, Any]:
        """As results hold it. `pairs`: how many the verdict rests on; later ones of its round were run and count in the rates only."""
        assert self._test is not None
        return {
            "rule": str(self._test.rule),
            "against": self.name,
            "level": self.level,
            "planned": self._test.rule.pairs,
            "pairs": self._test.pairs,
            "only_other": self._test.only_a,
            "only_this": self._test.only_b,
            "verdict": _WORDS[self._test.verdict],
        }
