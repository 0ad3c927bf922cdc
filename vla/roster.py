"""Which robots a model is built for, the sizes that follow, and how weights move from one roster to another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.embodiment import Embodiment
from vla.errors import SchemaError, UnknownName


@dataclass(frozen=True)
class Roster:
    """Robot names in bank order, and the horizon T, action width A and state width P of the largest of them."""

    names: tuple[str, ...]
    horizon: int
    action_width: int
    state_width: int

    @staticmethod
    def of(embodiments: Iterable[Embodiment]) -> Roster:
        """Rows in the given order, padded widths and times being the largest of all. UserError for a repeated name."""
        robots = tuple(embodiments)
        if len({robot.name for robot in robots}) != len(robots) or not robots:
            raise SchemaError(f"a roster needs distinct embodiments, at least one; got {[robot.name for robot in robots]}")
        return Roster(
            tuple(robot.name for robot in robots),
            max(robot.horizon for robot in robots),
            max(robot.action.size for robot in robots),
            max(1, *(robot.state.size for robot in robots)),
        )

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The embodiment's place in banks. UnknownName lists those there are."""
        if name not in self.names:
            raise UnknownName("embodiment", name, self.names, "The model was not built for it; fine-tune one that is (finetune/forkme.py).")
        return self.names.index(name)


def carry_over(model: nn.Module, roster: Roster, weights: Mapping[str, Tensor], old: Roster) -> dict[str, list[str]]:
    """Loads weights trained for the roster `old` into a model of another; in place.

    Parameters that depend on the roster say how (`roster_axes` of their module: E robots, T steps, A actions, P state, T3A every
    third step and the actions, flattened); known robots keep their rows, new ones keep the model's fresh values. Everything else
    must fit exactly.
    Returns {"carried": names, "adapted": names, "fresh": robots new to the model}.
    """
    axes = {
        f"{prefix}.{name}" if prefix else name: letters
        for prefix, module in model.named_modules()
        for name, letters in getattr(module, "roster_axes", {}).items()
    }
    state = model.state_dict()
    missing, extra = sorted(set(state) - set(weights)), sorted(set(weights) - set(state))
    if missing or extra:
        raise SchemaError(f"these weights are of another model: missing {missing[:3]}, unexpected {extra[:3]}")
    carried, adapted = [], []
    with torch.no_grad():
        for name, mine in state.items():
            theirs = weights[name]
            if name in axes and old != roster:
                _copy_overlap(mine, theirs, axes[name], old, roster)
                adapted.append(name)
            elif mine.shape == theirs.shape:
                mine.copy_(theirs)
                carried.append(name)
            else:
                raise SchemaError(f"weight '{name}' has shape {tuple(theirs.shape)}; the model needs {tuple(mine.shape)}")
    return {"carried": carried, "adapted": adapted, "fresh": [name for name in roster.names if name not in old.names]}


def _copy_overlap(mine: Tensor, theirs: Tensor, letters: tuple[str | None, ...], old: Roster, new: Roster) -> None:
    grid = re.fullmatch(r"T(\d+)A", letters[0] or "")
    if grid:  # slots of a flattened chunk: widen (T, A) as a grid
        tail, every = theirs.shape[1:], int(grid[1])
        theirs = theirs.view(-(-old.horizon // every), old.action_width, *tail)
        mine = mine.view(-(-new.horizon // every), new.action_width, *tail)
        letters = ("T", "A", *letters[1:])
    pairs = [(slice(0, min(a, b)),) * 2 for a, b in zip(mine.shape, theirs.shape, strict=True)]
    if letters[0] != "E":
        mine[tuple(p[0] for p in pairs)] = theirs[tuple(p[1] for p in pairs)].to(mine.dtype)
        return
    for row, name in enumerate(new.names):
        if name in old.names:
            mine[(row, *(p[0] for p in pairs[1:]))] = theirs[(old.names.index(name), *(p[1] for p in pairs[1:]))].to(mine.dtype)
