"""The policy that an evaluation is asked for: a checkpoint, a baseline or an object, and whether it fits the suite's robot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.embodiment import Embodiment
from vla.errors import UnknownName, UserError
from vla.evaluate.baselines import BASELINES, Actor, Expert, baseline
from vla.sim.env import Suite

if TYPE_CHECKING:
    from vla.policy import Policy


def resolve(
    policy: str | Path | Actor | Expert, suite: Suite, device: str, optimize: bool = False, evaluations: int | None = None
) -> tuple[Actor | Expert, dict[str, Any], Embodiment]:
    """The policy, what the result says of it, and the robot as the policy knows it (its chunks' length).

    `optimize`: `Policy.optimize_for_inference`. `evaluations`: as in `Policy.load`.
    """
    if (optimize or evaluations is not None) and not (isinstance(policy, (str, Path)) and policy not in BASELINES):
        raise UserError(f"{'optimize is' if optimize else 'evaluations are'} for a checkpoint; leave {'it' if optimize else 'them'} out")
    if isinstance(policy, str) and policy in BASELINES:
        return baseline(policy, suite.embodiment), {"name": policy}, suite.embodiment
    if isinstance(policy, (str, Path)):
        return _load(Path(policy), suite, device, optimize, evaluations)
    contents = getattr(policy, "contents", None)
    facts: dict[str, Any] = {"name": type(policy).__name__.lower()}
    if contents is None:
        return policy, facts, suite.embodiment
    if (model := getattr(policy, "model", None)) is not None:
        facts["fingerprint"] = _fingerprint(model)
    facts |= {"offsets_s": list(contents.offsets_s), **_image_size(contents)}
    return policy, facts, _robot_of(contents, suite)


@dataclass(frozen=True)
class Sampling:
    """How a checkpoint's chunks are drawn. `samples` of them for each observation, of which `value` (a file of `vla train-value`) chooses
    one, and which are executed as far as they spread by no more than `agree` (`vla.execute.several`). `guidance`: the weight of
    self-guidance (`vla.execute.selfguide`), 0 for none."""

    samples: int = 1
    value: Path | None = None
    agree: float | None = None
    guidance: float = 0.0

    def of(self, actor: Actor | Expert, facts: dict[str, Any], execute: int) -> tuple[Actor | Expert, dict[str, Any]]:
        """The policy that draws so, and what the result says of it. Of the `execute` commands a quarter is executed in any case."""
        if self == Sampling():
            return actor, facts
        if "manifest_sha256" not in facts:
            raise UserError("--samples, --value, --agree and --self-guidance are for a checkpoint")
        from vla.policy import Policy

        assert isinstance(actor, Policy)
        if self.guidance:
            if self.samples > 1 or self.value is not None or self.agree is not None:
                raise UserError("self-guidance draws one chunk; leave out --samples, --value and --agree, or --self-guidance")
            from vla.execute.selfguide import SelfGuided

            return SelfGuided(actor, self.guidance), {**facts, "self_guidance": self.guidance}
        if self.samples < 2 or (self.value is None and self.agree is None):
            raise UserError(
                "--samples goes with --value, which chooses one of them (`vla train-value` learns it), or --agree, which says how far they "
                "are executed"
            )
        from vla.checkpoint import sha256
        from vla.execute.several import Agreement, Several
        from vla.execute.value import Value

        told: dict[str, Any] = {**facts, "samples": self.samples}
        value = agreement = None
        if self.value is not None:
            value, told["value_sha256"] = Value.load(self.value, facts["manifest_sha256"]), sha256(self.value)
        if self.agree is not None:
            agreement, told["agree"] = Agreement(self.agree, least=max(1, execute // 4)), self.agree
        return Several(actor, self.samples, value, agreement), told


def _load(folder: Path, suite: Suite, device: str, optimize: bool, evaluations: int | None) -> tuple[Policy, dict[str, Any], Embodiment]:
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}. Give one, or a baseline: {', '.join(BASELINES)}.")
    from vla.checkpoint import acting, sha256
    from vla.policy import Policy

    folder = acting(folder)
    policy = Policy.load(folder, device, evaluations=evaluations)
    robot = _robot_of(policy.contents, suite)
    if robot is not next(known for known in policy.contents.embodiments if known.name == robot.name):
        robots = tuple(robot if known.name == robot.name else known for known in policy.contents.embodiments)
        policy = Policy(replace(policy.contents, embodiments=robots), policy.model)
    if optimize:
        policy.optimize_for_inference()
    model = policy.contents.model
    facts = {
        "name": str(folder),
        "manifest_sha256": sha256(folder / "manifest.json"),
        "backbone": model.backbone.kind,
        "decoder": model.decoder.kind,
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "device": device,
        **({"optimized": True} if optimize else {}),
        **({"evaluations": evaluations} if evaluations is not None else {}),
        "offsets_s": list(policy.contents.offsets_s),
    }
    return policy, {**facts, **_image_size(policy.contents)}, robot


def _image_size(contents: Any) -> dict[str, int]:
    """What its backbone sees, where that is one size."""
    size = getattr(getattr(contents.model, "backbone", None), "image_size", None)
    return {"image_size": size} if size else {}


def _fingerprint(model: Any) -> str:
    """Tells a policy that was given as an object from another, or from itself after more training: their rows must not be mixed. Of sums,
    which are quickly made of billions of numbers wherever they lie."""
    sums = [(name, value.double().sum().item(), value.double().abs().sum().item()) for name, value in model.state_dict().items()]
    return hashlib.sha256(repr(sorted(sums)).encode()).hexdigest()


def _robot_of(contents: Any, suite: Suite) -> Embodiment:
    """The checkpoint's own robot of the suite's name; it must mean the same numbers, and see by the suite's cameras or some of them, which
    a mixture that leaves one out has decided. Where nobody published the robot's limits, those of the simulation hold, whose motors nothing
    can break."""
    robots = {robot.name: robot for robot in contents.embodiments}
    name = suite.embodiment.name
    if name not in robots:
        raise UnknownName("embodiment of this checkpoint", name, robots, f"Suite {suite.name} needs it: fine-tune (finetune/forkme.py).")
    found = robots[name] if robots[name].limits is not None else replace(robots[name], limits=suite.embodiment.limits)
    ours, theirs = suite.embodiment.to_json(), found.to_json()
    differ = [key for key in ("state", "command", "rate_hz", "limits") if ours[key] != theirs[key]]
    differ += ["cameras"] if set(found.cameras) - set(suite.embodiment.cameras) else []
    if differ:
        raise UserError(
            f"the checkpoint's '{name}' differs from the suite's in {', '.join(differ)}: "
            + "; ".join(f"{key} {theirs[key]} against {ours[key]}" for key in differ)
        )
    return found
