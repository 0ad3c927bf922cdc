"""The files of a plan: the robot, the card, the mixture and the recipe. What was neither read nor said is a blank."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vla.blanks import MARK
from vla.convert.vocabulary import ROTATION_WIDTHS
from vla.data.format import check_name
from vla.embodiment import Embodiment, Space
from vla.errors import UserError
from vla.new_robot.fields import EULER, FieldPlan
from vla.new_robot.source import Column
from vla.new_robot.wizard import Part, Plan

EPOCHS = 9
"""Times that a short fine-tuning sees each sample (finetune/forkme.py)."""
BATCH = 64


@dataclass(frozen=True)
class Files:
    """What was written; `card` is None for shards, which need no conversion. `blanks`: how many are left."""

    robot: Path
    card: Path | None
    mixture: Path
    recipe: Path
    blanks: int


def write(plan: Plan, out: Path, dataset: str) -> Files:
    """`dataset`: the shards' place under the data root, for the mixture. UserError where a file is in the way: it may hold your work."""
    texts = {
        f"{plan.name}.py": robot_text(plan),
        f"{plan.name}_mixture.yaml": mixture_text(plan, dataset),
        f"{plan.name}_recipe.py": recipe_text(plan, out),
    }
    if plan.robot is None:
        texts[f"{plan.name}_card.yaml"] = card_text(plan)
    there = [name for name in texts if (out / name).exists()]
    if there:
        raise UserError(f"{out / there[0]} exists and may hold your work; choose another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    blanks = sum(text.count("blank(") + text.count(MARK) for text in texts.values())
    card = out / f"{plan.name}_card.yaml" if plan.robot is None else None
    return Files(out / f"{plan.name}.py", card, out / f"{plan.name}_mixture.yaml", out / f"{plan.name}_recipe.py", blanks)


def robot_text(plan: Plan) -> str:
    """The embodiment's file: Python, to be read and corrected."""
    if plan.robot is not None:
        unknown = _blank(f"limits: one (low, high) for each of the {plan.robot.command.size} numbers of a command")
        return _file(plan.name, "vla new-robot", f"the robot in {plan.offer.path}", _known_robot(plan.robot, unknown))
    assert plan.state is not None and plan.action is not None
    origin = f"{plan.offer.path} ({plan.offer.format}) and what was said"
    return _file(plan.name, "vla new-robot", origin, _planned_robot(plan, plan.state, plan.action))


def known_robot_text(robot: Embodiment, command: str) -> str:
    """The file of a robot that is known by value, for what `command` writes; limits that nobody has published stay unknown."""
    check_name(robot.name, "name of the robot")
    return _file(robot.name, command, "the robot that the shards hold", _known_robot(robot, "None"))


def _file(name: str, command: str, origin: str, body: str) -> str:
    imports = ["from fractions import Fraction", ""]
    imports += ["from vla.blanks import blank"] if "blank(" in body else []
    imports += ["from vla.embodiment import Embodiment, Field, Space"]
    warning = "Read every line before a motor moves: units, frames, polarity, limits."
    from_where = _one_line(origin).replace('"', "'")
    note = f'"""{name}: written by `{command}` from {from_where}.\n\n{warning}\n"""'
    return "\n".join([note, "", *imports, "", body])


def card_text(plan: Plan) -> str:
    """The dataset's card; `data_mixtures/sources/README.md` is its vocabulary."""
    import yaml

    assert plan.state is not None and plan.action is not None
    data: dict[str, Any] = {
        "name": plan.name,
        "title": plan.name,
        "homepage": "none",
        "licence": plan.licence or "unknown",
        "citation": "none",
        "facts": [
            f"names, widths and rate: the dataset itself ({plan.offer.path.name})",
            "units, frames, polarity: said to `vla new-robot`",
        ],
        "format": plan.offer.format,
        "source": {"name": plan.offer.path.name},
        **({"reader": dict(plan.offer.options)} if plan.offer.options else {}),
        "embodiment": plan.name,
        "rate_hz": str(plan.rate_hz) if plan.rate_hz else f"{MARK} commands per second",
        "supervision": "actions",
        "cameras": {role: {"from": column} for role, column in plan.cameras.items()},
        "state": {each.name: _source(each, plan.state.column) for each in plan.state.fields},
        "action": {each.name: _source(each, plan.action.column) for each in plan.action.fields},
        "instruction": _instruction(plan),
    }
    return f"# Written by `vla new-robot`; what each number means decides what moves.\n{yaml.safe_dump(data, sort_keys=False, width=1000)}"


def mixture_text(plan: Plan, dataset: str) -> str:
    """What the recipe trains on, with the way against forgetting in a comment."""
    why, path = (_scalar(text) for text in (f"demonstrations of {plan.name}, from {plan.offer.path.name}", dataset))
    return textwrap.dedent(f"""\
        name: {plan.name}
        why: {why}
        val_fraction: 0.06
        sources:
          - path: {path}
            weight: 9
            why: the task at hand
          # To keep what the checkpoint could do before, add a share of what it was trained on (docs/finetune.md), and its robots to the
          # recipe's `embodiments`:
          # - mixture: path/to/pretraining.yaml
          #   weight: 1
          #   why: against forgetting
        """)


def recipe_text(plan: Plan, out: Path) -> str:
    """A recipe of the ways that `docs/finetune.md` describes."""
    samples = plan.offer.steps
    steps = min(max(round(EPOCHS * samples / BATCH, -1), 200), 30_000) if samples else 700
    basis = f"{samples:,} steps of data seen about {EPOCHS} times" if samples else "the number of steps in the data is not known"
    path = shlex.quote((out / f"{plan.name}_recipe.py").as_posix())
    return textwrap.dedent(f'''\
        """Fine-tune a checkpoint for {plan.name}. Written by `vla new-robot`; change what is marked <-.

        What      every weight trains; what is about this robot alone starts fresh (its proprioception in, its actions out).
        Hardware  what the checkpoint's own pretraining needed, or less; `--dry-run` says how much.      <-
        Hours     `--dry-run` says.                                                                      <- what it took you
        Expect    nothing is known yet.                                                                  <- what it reached
        Command   vla train {path} --init {plan.init} --dry-run
                  vla train {path} --init {plan.init}
        """

        from dataclasses import replace

        from vla.train.optim import AdamW, Cosine
        from vla.train.run import Run

        RUN = Run(
            name="{plan.name}",
            init="{plan.init}",
            model=None,  # that of the checkpoint
            mixture="{plan.name}_mixture.yaml",
            embodiments=("{plan.name}.py",),
            steps={steps},  # <- {basis}; more overfits without more data
            batch_size={BATCH},
            optim=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0),  # <- a large backbone: a tenth of pretraining's
            schedule=Cosine(warmup_steps={min(50, steps // 4)}),
            ema_decay=0.99,
            validate_every={steps // 2},
        )

        frozen = replace(RUN, name="{plan.name}_frozen", freeze=("backbone",))  # least memory; enough where scenes look alike
        new_head = replace(RUN, name="{plan.name}_new_head", init_parts=("backbone", "state_in"))  # the decoder from fresh weights
        scratch = replace(RUN, name="{plan.name}_scratch", init_parts=())  # the control: nothing carried
        ''')


def _planned_robot(plan: Plan, state: Part, action: Part) -> str:
    rate = _fraction(plan.rate_hz) if plan.rate_hz else _blank("commands per second (Hz), as Fraction(30)")
    return "\n".join(
        [
            _planned_space("STATE", state, framed=False),
            _planned_space("COMMAND", action, framed=True),
            "EMBODIMENT = Embodiment(",
            f'    name="{plan.name}",',
            f"    cameras=({''.join(f'{role!r}, ' for role in plan.cameras)}),".replace("'", '"'),
            "    state=STATE,",
            "    command=COMMAND,  # what the controller takes",
            '    action=COMMAND,  # what is learned: the same; or with the frame "from_state", relative to the state of that name',
            f"    rate_hz={rate},",
            f"    horizon={plan.horizon},  # commands per chunk",
            "    limits=(  # nothing outside is ever sent",
            *(f"        {_limits(each, action.column)}" for each in action.fields),
            "    ),",
            ")",
            "",
        ]
    )


def _planned_space(name: str, part: Part, framed: bool) -> str:
    rows = [f"{name} = Space(", "    ("]
    for each in part.fields:
        unit = (
            f'"{each.unit}"' if each.unit else _blank(f"unit of '{each.name}': rad, m, open01 (a gripper), command (the controller's own)")
        )
        frame = f', "{each.frame}"' if each.frame else ", " + _blank(f"frame of '{each.name}': absolute targets, or step from the last")
        rows.append(f'        Field("{each.name}", {each.size}, {unit}{frame if framed else ""}),  # {_origin(each, part.column)}')
    return "\n".join([*rows, "    )", ")", ""])


def _limits(each: FieldPlan, column: Column) -> str:
    known = each.known_limits
    if known is None:
        reach = _reach(each, column)
        unit = each.unit or "its unit"
        return f"*{_blank(f'limits of {each.name!r}: ((low, high),) * {each.size} in {unit}; the data reach {reach}')},"
    if len(set(known)) == 1:
        return f"*((({known[0][0]!r}, {known[0][1]!r}),) * {len(known)}),  # {each.name}"
    return f"*({', '.join(f'({low!r}, {high!r})' for low, high in known)}),  # {each.name}"


def _known_robot(robot: Embodiment, unknown_limits: str) -> str:
    """Names may come from a stranger's data, and this is code: each is written as a literal."""
    limits = unknown_limits
    if robot.limits is not None:
        limits = "(" + "".join(f"({low!r}, {high!r}), " for low, high in robot.limits) + ")"
    spaces = [_space("STATE", robot.state), _space("COMMAND", robot.command)]
    learned = "COMMAND" if robot.action == robot.command else "ACTION"
    spaces += [_space("ACTION", robot.action)] if learned == "ACTION" else []
    return "\n".join(
        [
            *spaces,
            "EMBODIMENT = Embodiment(",
            f"    name={json.dumps(robot.name)},",
            f"    cameras=({''.join(f'{json.dumps(role)}, ' for role in robot.cameras)}),",
            "    state=STATE,",
            "    command=COMMAND,",
            f"    action={learned},",
            f"    rate_hz={_fraction(robot.rate_hz)},",
            f"    horizon={robot.horizon},",
            f"    limits={limits},",
            ")",
            "",
        ]
    )


def _space(name: str, space: Space) -> str:
    rows = [f"        Field({json.dumps(f.name)}, {f.size}, {json.dumps(f.unit)}, {json.dumps(f.frame)})," for f in space.fields]
    return "\n".join([f"{name} = Space(", "    (", *rows, "    )", ")", ""])


def _fraction(rate_hz: Fraction) -> str:
    return f'Fraction("{rate_hz}")'


def _source(each: FieldPlan, column: Column) -> dict[str, Any]:
    """A field of the card."""
    row: dict[str, Any] = {"from": column.name}
    if (each.start, each.stop) != (0, column.width):
        row |= {"slice": [each.start, each.stop]}
    if each.recorded in (*ROTATION_WIDTHS, *EULER):
        return {**row, "rotation": each.recorded}
    if each.recorded == "open01":
        ends: Mapping[str, Any] = {"open": f"{MARK} its value when open", "closed": f"{MARK} its value when closed"}
        if each.ends is not None:
            ends = {"open": each.ends[0], "closed": each.ends[1]}
        return {**row, "gripper": dict(ends)}
    if not each.recorded:
        return {**row, "unit": f"{MARK} unit as recorded, if it is not the robot's own; else remove this line"}
    return row if each.recorded == each.unit else {**row, "unit": each.recorded}


def _instruction(plan: Plan) -> dict[str, str]:
    if plan.texts:
        return {"from": plan.texts}
    return {"text": plan.instruction or f"{MARK} what the robot is told to do"}


def _origin(each: FieldPlan, column: Column) -> str:
    names: Sequence[str] = column.names[each.start : each.stop]
    named = f": {', '.join(names)}" if names else ""
    return f"{_one_line(f'{column.name}[{each.start}:{each.stop}]{named}')}; reached {_reach(each, column)}, as recorded"


def _reach(each: FieldPlan, column: Column) -> str:
    if not column.low_A:
        return "unknown"
    return f"{min(column.low_A[each.start : each.stop]):.4g} .. {max(column.high_A[each.start : each.stop]):.4g}"


def _one_line(text: str) -> str:
    """What a comment may hold: names come from a stranger's data, and whatever followed a line end in one would be code."""
    return repr(text)[1:-1]


def _scalar(text: str) -> str:
    """A text as YAML takes it back, quoted where it must be."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("\n...\n").rstrip("\n")


def _blank(what: str) -> str:
    return f"blank({what!r})"
