"""Robots that do not exist but could: simulated, filmed and written as shards, clean; for the doctor's tests and its table.

Each obeys a first-order plant (a share of the way to its target in each step, after a latency), is led by a planned path with
tremor or by feedback, grasps, pauses, and is seen by a fixed camera and one on each wrist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import simplejpeg
from scipy.spatial.transform import Rotation

from vla.data.shard import DatasetInfo, ShardWriter
from vla.embodiment import Embodiment, Field, Space, from_rotation
from vla.types import Episode, Frames, Span

OBJECTS = ("red cube", "blue cup", "green plate", "spoon", "towel", "brick")
PICTURE = 48


@dataclass(frozen=True)
class Robot:
    """A recipe for a clean dataset. `frame`: of the recorded actions. `command`: dimensionless steps, 1.0 = 50 mm or 0.5 rad.
    `follow`: share of the way to the target in a step; `latency`: steps until a command begins to act."""

    name: str
    arms: int = 1
    control: str = "pose"
    rotation: str | None = "rot6d"
    frame: str = "absolute"
    command: bool = False
    rate_hz: Fraction = Fraction(20)
    latency: int = 0
    follow: float = 0.5
    feedback: bool = False
    noise: float = 3e-4
    pauses: bool = False
    gripper_unit: str = "open01"
    episodes: int = 12
    steps: int = 90
    image_every: int = 2
    wrists: bool = True
    seed: int = 0

    @property
    def sides(self) -> tuple[str, ...]:
        return ("left_", "right_") if self.arms == 2 else ("",)

    @property
    def cameras(self) -> tuple[str, ...]:
        wrists = tuple(f"wrist_{side}".rstrip("_") for side in self.sides) if self.wrists else ("side",)
        return ("third_person", *wrists)


@dataclass(frozen=True)
class Made:
    """A dataset before it is written: what a mutant changes."""

    info: DatasetInfo
    episodes: tuple[Episode, ...]

    def write(self, folder: Path) -> Path:
        with ShardWriter(folder, self.info) as writer:
            for episode in self.episodes:
                writer.add(episode)
        return folder

    def embodiment(self) -> Embodiment:
        robot = self.info.robot
        assert robot is not None
        return robot

    def each(self, change) -> Made:
        """`change(episode) -> episode` for all."""
        return replace(self, episodes=tuple(change(episode) for episode in self.episodes))

    def rows(self, kind: str, field: str, change, only: Sequence[int] | None = None) -> Made:
        """`change(rows of one field) -> rows` in the state or the action of the chosen episodes."""
        space = self.info.recorded_state if kind == "state" else self.info.recorded_action
        assert space is not None
        episodes = list(self.episodes)
        for number in range(len(episodes)) if only is None else only:
            values = np.array(getattr(episodes[number], kind))
            values[:, space.slices()[field]] = change(values[:, space.slices()[field]])
            episodes[number] = replace(episodes[number], **{kind: values})
        return replace(self, episodes=tuple(episodes))


def make(robot: Robot) -> Made:
    """The dataset of a recipe; the same for the same recipe."""
    embodiment = embodiment_of(robot)
    scene = _Scene(np.random.default_rng([robot.seed, 77]), robot)
    episodes = tuple(_episode(robot, embodiment, scene, number) for number in range(robot.episodes))
    return Made(DatasetInfo(robot.name, embodiment.to_json(), licence="CC0-1.0"), episodes)


def embodiment_of(robot: Robot) -> Embodiment:
    state, action = [], []
    for side in robot.sides:
        for name, size, unit in _parts(robot):
            state.append(Field(f"{side}{name}", size, unit))
            if robot.command:
                action.append(Field(f"{side}{'move' if name == 'hand' else 'turn'}", 3, "command", "step"))
            else:
                action.append(Field(f"{side}{name}", size, unit, robot.frame))
        state.append(Field(f"{side}gripper", 1, robot.gripper_unit))
        action.append(Field(f"{side}gripper", 1, "open01"))
    space = Space(tuple(action))
    return Embodiment(
        f"{robot.name}_robot", robot.cameras, Space(tuple(state)), space, space, robot.rate_hz, 8, ((-10.0, 10.0),) * space.size
    )


def _parts(robot: Robot) -> list[tuple[str, int, str]]:
    if robot.control == "joint":
        return [("joints", 6, "rad")]
    turns = {"rot6d": 6, "quat_xyzw": 4, "axis_angle": 3}
    return [("hand", 3, "m"), *([("rotation", turns[robot.rotation], robot.rotation)] if robot.rotation else [])]


class _Arm:
    """One arm: where it is, the plan that leads it, and its plant. `x`: (joints 6) or (position 3); `turn`: the hand's rotation."""

    def __init__(self, robot: Robot, rng: np.random.Generator, base: Rotation, steps: int) -> None:
        self.robot, self.rng, self.base = robot, rng, base
        dims = 6 if robot.control == "joint" else 3
        reach = np.full(6, 0.9) if robot.control == "joint" else np.array([0.2, 0.25, 0.15])
        self.centre = np.array([0.3, -0.5, 0.8, 0.1, 0.6, -0.2]) if robot.control == "joint" else np.array([0.45, 0.05, 0.25])
        count = max(int(steps / float(robot.rate_hz) / 1.6), 2) + 2
        self.ways = self.centre + rng.uniform(-1, 1, (count, dims)) * reach
        self.turns = rng.uniform(-1, 1, (count, 3)) * np.array([0.5, 0.5, 1.0])
        self.opening = np.resize([1.0, 0.0], count) if rng.uniform() < 0.8 else np.resize([0.0, 1.0], count)
        self.hold = rng.uniform(0.0, 0.3, count) + (rng.uniform(0.3, 1.0, count) if robot.pauses else 0.0)
        self.plan, self.turn_plan, self.grip_plan = self._path(steps, count)
        self.x, self.turn, self.grip = self.plan[0].copy(), self.turn_plan[0], float(self.grip_plan[0])
        self.queue: list[tuple] = []
        self.block = rng.uniform(0.2, 0.4)

    def _path(self, steps: int, count: int) -> tuple[np.ndarray, Rotation, np.ndarray]:
        rate = float(self.robot.rate_hz)
        leg = self.rng.uniform(0.9, 1.6, count)
        begin = np.concatenate([[0.0], np.cumsum(leg + self.hold)])[:count]
        t = np.arange(steps) / rate + (0.0 if not self.robot.pauses else -0.2)
        number = np.clip(np.searchsorted(begin, t, side="right") - 1, 0, count - 2)
        part = np.clip((t - begin[number]) / leg[number], 0, 1)[:, None]
        ease = 10 * part**3 - 15 * part**4 + 6 * part**5  # minimum jerk (Flash, Hogan 1985)
        tremor = _tremor(self.rng, steps, self.ways.shape[1], rate) * (0.02 if self.robot.control == "joint" else 0.004)
        plan = self.ways[number] * (1 - ease) + self.ways[number + 1] * ease + tremor
        vector = self.turns[number] * (1 - ease) + self.turns[number + 1] * ease + _tremor(self.rng, steps, 3, rate) * 0.02
        return plan, Rotation.from_rotvec(vector) * self.base, self.opening[number]

    def target(self, step: int) -> tuple[np.ndarray, Rotation, float]:
        """What the operator asks for: the plan, or a bounded move towards where the plan is going."""
        if not self.robot.feedback:
            return self.plan[step], self.turn_plan[step], float(self.grip_plan[step])
        ahead = min(step + max(int(float(self.robot.rate_hz) * 0.3), 1), len(self.plan) - 1)
        most = (1.2 if self.robot.control == "joint" else 0.3) / float(self.robot.rate_hz)
        move = np.clip(0.6 * (self.plan[ahead] - self.x), -2 * most, 2 * most)
        turn = (self.turn_plan[ahead] * self.turn.inv()).as_rotvec() * 0.5
        return self.x + move, Rotation.from_rotvec(turn) * self.turn, float(self.grip_plan[step])

    def advance(self, command: tuple[np.ndarray, Rotation, float]) -> None:
        self.queue.append(command)
        if len(self.queue) <= self.robot.latency:
            return
        x, turn, grip = self.queue[-1 - self.robot.latency]
        follow = self.robot.follow
        self.x = self.x + follow * (x - self.x) + self.rng.normal(0, self.robot.noise / 3, len(self.x))
        self.turn = Rotation.from_rotvec(follow * (turn * self.turn.inv()).as_rotvec()) * self.turn
        most = 3.0 / float(self.robot.rate_hz)
        self.grip += float(np.clip(max(grip, self.block) - self.grip, -most, most))

    def observed(self) -> list[np.ndarray]:
        robot, noise = self.robot, self.robot.noise
        rows = [self.x + self.rng.normal(0, noise, len(self.x))]
        if robot.control == "pose" and robot.rotation:
            seen = Rotation.from_rotvec(self.rng.normal(0, noise * 3, 3)) * self.turn
            rows.append(_numbers(seen, robot.rotation))
        grip = self.grip * (0.08 if robot.gripper_unit == "m" else 1.0)
        return [*rows, np.array([grip])]

    def recorded(self, target: tuple[np.ndarray, Rotation, float]) -> list[np.ndarray]:
        """A target in the frame that the dataset records."""
        x, turn, grip = target
        robot = self.robot
        if robot.command:
            rows = [(x - self.x) / 0.05, *([(turn * self.turn.inv()).as_rotvec() / 0.5] if robot.rotation else [])]
        elif robot.frame == "absolute":
            rows = [x, *([_numbers(turn, robot.rotation)] if robot.control == "pose" and robot.rotation else [])]
        else:
            relative = self.turn.inv() * turn
            rows = [x - self.x, *([_numbers(relative, robot.rotation)] if robot.control == "pose" and robot.rotation else [])]
        return [*rows, np.array([grip])]


def _numbers(turn: Rotation, unit: str) -> np.ndarray:
    return from_rotation(Rotation.concatenate([turn]), unit)[0]


def _tremor(rng: np.random.Generator, steps: int, dims: int, rate_hz: float) -> np.ndarray:
    """A hand's unrest: an Ornstein-Uhlenbeck process of 0.3 s and unit deviation."""
    keep = np.exp(-1 / (0.3 * rate_hz))
    out = np.zeros((steps, dims))
    now = rng.normal(size=dims)
    for step in range(steps):
        now = keep * now + np.sqrt(1 - keep**2) * rng.normal(size=dims)
        out[step] = now
    return out


def _episode(robot: Robot, embodiment: Embodiment, scene: _Scene, number: int) -> Episode:
    rng = np.random.default_rng([robot.seed, number])
    steps = int(robot.steps * rng.uniform(0.8, 1.2))
    base = Rotation.from_euler("xyz", [np.pi - 0.5, 0.25, 0.4])  # a hand that points down, askew
    arms = [_Arm(robot, rng, base, steps) for _ in robot.sides]
    states, actions, pictures = [], [], {camera: [] for camera in embodiment.cameras}
    thing = rng.uniform(0.2, 0.8, 2)
    for step in range(steps):
        targets = [arm.target(step) for arm in arms]
        states.append(np.concatenate([part for arm in arms for part in arm.observed()]))
        actions.append(np.concatenate([part for arm, target in zip(arms, targets, strict=True) for part in arm.recorded(target)]))
        if step % robot.image_every == 0:
            for camera in embodiment.cameras:
                pictures[camera].append(scene.jpeg(camera, arms, thing))
        for arm, target in zip(arms, targets, strict=True):
            arm.advance(target)
    jitter = rng.uniform(-0.02, 0.02, steps) / float(robot.rate_hz)
    seen = np.arange(0, steps, robot.image_every)
    return Episode(
        id=f"e{number:03d}",
        embodiment=embodiment.name,
        rate_hz=robot.rate_hz,
        supervision="actions",
        instructions=(Span(f"pick up the {OBJECTS[number % len(OBJECTS)]}", 0, steps),),
        time_s=np.arange(steps) / float(robot.rate_hz) + jitter,
        frames={camera: Frames(seen, tuple(pictures[camera])) for camera in embodiment.cameras},
        state=np.array(states),
        action=np.array(actions),
        source="synthetic",
        info={"seed": robot.seed},
    )


class _Scene:
    """What the cameras see: a textured table, an object and the hands; from the wrist the table goes by under a fixed gripper."""

    def __init__(self, rng: np.random.Generator, robot: Robot) -> None:
        self.robot = robot
        self.table = _texture(rng, PICTURE)
        self.floor = _texture(rng, 4 * PICTURE)
        self.side = _texture(rng, PICTURE)
        self.colours = rng.uniform(0.2, 0.9, (2, 3))
        self.y, self.x = np.mgrid[:PICTURE, :PICTURE] / PICTURE

    def jpeg(self, camera: str, arms: list[_Arm], thing: np.ndarray) -> bytes:
        image = self._wrist(camera, arms) if camera.startswith("wrist") else self._fixed(camera, arms, thing)
        pixels = np.ascontiguousarray((image * 255).clip(0, 255).astype(np.uint8))
        return simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444")

    def _fixed(self, camera: str, arms: list[_Arm], thing: np.ndarray) -> np.ndarray:
        image = (self.table if camera == "third_person" else self.side).copy()
        _blob(image, self.x, self.y, thing, 0.07, self.colours[0])
        for number, arm in enumerate(arms):
            place = _hand(arm)
            across, up = place[1] if camera == "third_person" else place[0], place[2]
            at = np.array([0.5 + across * 1.2 + 0.25 * (2 * number - len(arms) + 1), 0.75 - up * 1.2])
            _blob(image, self.x, self.y, at, 0.1, self.colours[1] * (1 - 0.4 * number))
        return image

    def _wrist(self, camera: str, arms: list[_Arm]) -> np.ndarray:
        arm = arms[1 if camera == "wrist_right" else 0]
        place = _hand(arm)
        room = 3 * PICTURE - 1
        left, top = (np.clip(0.5 + place[[1, 0]] * 0.9, 0, 1) * room).astype(int)
        image = self.floor[top : top + PICTURE, left : left + PICTURE] * (0.8 + 0.4 * place[2])
        finger = 0.12 + 0.2 * arm.grip
        image[(self.y > 0.75) & (np.abs(np.abs(self.x - 0.5) - finger) < 0.05)] = 0.1
        return image


def _hand(arm: _Arm) -> np.ndarray:
    """Where the hand is, about in -0.5..0.5: the position off its centre, or a made-up forward kinematics."""
    if arm.robot.control == "pose":
        return (arm.x - arm.centre) * 1.2
    q = arm.x - arm.centre
    return np.array([np.sin(q[1]) + 0.5 * np.sin(q[1] + q[2]), np.sin(q[0]), 0.6 * np.sin(q[2] + q[4]) + 0.3 * np.sin(q[3] + q[5])]) * 0.3


def _blob(image: np.ndarray, x: np.ndarray, y: np.ndarray, at: np.ndarray, radius: float, colour: np.ndarray) -> None:
    cover = np.clip((radius - np.hypot(x - at[0], y - at[1])) * PICTURE / 3 + 0.5, 0, 1)[..., None]  # a soft edge moves smoothly
    image += cover * (colour - image)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth random colours, (size, size, 3) in 0..1."""
    from scipy.ndimage import zoom

    coarse = rng.uniform(0.1, 0.9, (size // 8 + 1, size // 8 + 1, 3))
    return zoom(coarse, (8, 8, 1), order=1)[:size, :size].copy()


CLEAN: tuple[Robot, ...] = (
    Robot("pose_rot6d", seed=1),
    Robot("pose_quat", rotation="quat_xyzw", seed=2, rate_hz=Fraction(30)),
    Robot("pose_axis_angle", rotation="axis_angle", seed=3, rate_hz=Fraction(10), follow=0.8),
    Robot("pose_position", rotation=None, seed=4, rate_hz=Fraction(5), steps=60, follow=0.9),
    Robot("step_rot6d", frame="step", seed=5),
    Robot("step_quat", frame="step", rotation="quat_xyzw", seed=6, rate_hz=Fraction(15), latency=1),
    Robot("step_axis_angle", frame="step", rotation="axis_angle", seed=7, feedback=True),
    Robot("from_state_rot6d", frame="from_state", seed=8, rate_hz=Fraction(50), steps=160, follow=0.3, image_every=5),
    Robot("from_state_quat", frame="from_state", rotation="quat_xyzw", seed=9, pauses=True, gripper_unit="m"),
    Robot("command_turns", command=True, rotation="quat_xyzw", seed=10, feedback=True),
    Robot("command_moves", command=True, rotation=None, seed=11, feedback=True, latency=1, noise=1e-3),
    Robot("joints", control="joint", rotation=None, seed=12, rate_hz=Fraction(50), steps=200, follow=0.2, image_every=5),
    Robot("joints_slow", control="joint", rotation=None, seed=13, rate_hz=Fraction(3), steps=50, follow=0.9, image_every=1, latency=1),
    Robot("joint_steps", control="joint", rotation=None, frame="step", seed=14, feedback=True, noise=1e-3),
    Robot("joints_late", control="joint", rotation=None, seed=15, latency=2, pauses=True, noise=2e-3),
    Robot("two_arms_joints", arms=2, control="joint", rotation=None, seed=16, rate_hz=Fraction(50), steps=200, follow=0.2, image_every=5),
    Robot("two_arms_pose", arms=2, seed=17, pauses=True),
    Robot("two_arms_quat", arms=2, rotation="quat_xyzw", seed=18, latency=2, gripper_unit="m"),
    Robot("two_arms_steps", arms=2, frame="step", rotation="axis_angle", seed=19, feedback=True),
    Robot("fixed_cameras", wrists=False, rotation="axis_angle", seed=20, noise=2e-3, rate_hz=Fraction(30000, 1001), pauses=True),
)
"""Twenty clean datasets: one and two arms, joints and poses, all frames and rotations, 3 to 50 Hz, with noise, pauses and latency."""
