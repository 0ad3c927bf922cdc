r"""Does pretraining on other robots help a new one? An arm that pretraining never saw learns from few demonstrations, in arms.

    python -m benchmarks.new_robot --json                        # two cores, about an hour: one robot, 10 and 30 demonstrations, two seeds
    python -m benchmarks.new_robot --robots panda,robosuite_ur5e,robosuite_kinova3 --demonstrations 5,10,25,50 --seeds 3 --episodes 100 \
        --cores 16

scratch         fresh weights, `--steps` optimizer steps on the demonstrations
scratch_longer  fresh weights, and the steps of pretraining on top
pretrained      from `pretrain/demo.py`: eight Sawyer tasks and a Fetch arm, `--pretrain-steps`; then like `scratch`
permuted        the same pretraining on data whose actions were exchanged between episodes: images and words as before, motion without sense
one_robot       the same pretraining on the Sawyer alone, as many samples
latent          the frames and words of `pretrained` as video, no state, no action: a latent-action model says in codes what changes between
                frames, and pretraining predicts its codes alone, as many steps. Fine-tuning is of the model that every arm has: that
                backbone, a fresh head in the place of the one for codes (LAPA). `pretrain/few_labels.py` keeps the decoder of codes, for
                labels have taught its readout by then; here it would be as fresh, and no other arm's. Half of the episodes show injected
                noise, of which the labels that other arms learn from are clean
latent_permuted the same on the same video, whose codes were exchanged between episodes: what a warm start gives without what codes say

A seed chooses the demonstrations (those of fewer are among those of more), their order and the fresh weights. All arms meet the same
episodes, so that differences are paired (McNemar), each arm with `scratch`, `pretrained` and `latent`. Episodes of one trained network are
not independent trainings, and pretraining is run once: intervals and p-values speak of these networks, and `by_seed` shows how much they
differ. Of `latent` there is also how much of its codebook the video uses (`codes`), and how well a linear map tells from codes what the
robots did, on episodes that the map has not seen; the latent-action model, without labels, has. Every stage is a command of ours, logged in
`--out`; the same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.command import ROOT
from benchmarks.experiment import NOISY, arguments_of, command_line, facts, run_all, same_settings, success
from vla.data.format import MANIFEST, DatasetInfo
from vla.data.latents import read_latents, write_latents
from vla.data.reader import Dataset
from vla.data.writer import ShardWriter
from vla.demo.stages import Stage
from vla.evaluate.result import read_result
from vla.latent_action.checkpoint import load_latent
from vla.latent_action.health import Usage
from vla.latent_action.label import label_hash
from vla.latent_action.probe import probe
from vla.latent_action.run import LatentRun
from vla.train.run import Run, load_recipe
from vla.types import Episode

HERE, PRETRAIN, FINETUNE, WATCH = "benchmarks/new_robot.py", "pretrain/demo.py", "finetune/demo.py", "pretrain/demo_latent_action.py"
TARGETS = {
    "panda": ("panda", "lift"),
    "robosuite_ur5e": ("robosuite-ur5e", "lift"),
    "robosuite_kinova3": ("robosuite-kinova3", "lift"),
    "robosuite_iiwa": ("robosuite-iiwa", "lift"),
}
"""Robot -> its suite and task."""
SOURCES = {
    "sawyer": ("--suite", "metaworld-objects", "--episodes", "35"),
    "fetch": ("--suite", "fetch", "--tasks", "reach,push,lift", "--episodes", "25"),
}
"""What pretraining sees: dataset -> how `vla collect` makes it."""
VIDEO, MIXED_UP, WATCHER = "video", "video_permuted", "latent_action"
"""Folders of the same without labels, with each episode's codes another's, and of the model that says in codes what it shows."""


class Pretraining(NamedTuple):  # a recipe's module is not in sys.modules, where a dataclass would look for its own
    """`recipe`, and the `data` root that it learns from. `coded`: from codes of the video there, so that fine-tuning has a fresh head."""

    recipe: str
    data: str = "data"
    coded: bool = False


PRETRAINED = {
    "pretrained": Pretraining(PRETRAIN),
    "permuted": Pretraining(PRETRAIN, "permuted"),
    "one_robot": Pretraining(f"{HERE}:one_robot"),
    "latent": Pretraining(f"{HERE}:latent", VIDEO, coded=True),
    "latent_permuted": Pretraining(f"{HERE}:latent", MIXED_UP, coded=True),
}
ARMS = ("scratch", "scratch_longer", *PRETRAINED)
BASES = ("scratch", "pretrained", "latent")
"""Arms that every other is paired with, where they were asked for."""

_pretraining: Run = load_recipe(str(ROOT / PRETRAIN))
_tuning: Run = load_recipe(str(ROOT / FINETUNE))
_watching: LatentRun = load_recipe(f"{ROOT / WATCH}:two_robots")
RUN = one_robot = replace(_pretraining, name="one_robot", mixture="data_mixtures/sawyer.yaml", embodiments=("metaworld_sawyer",))
latent = replace(_pretraining, name="latent", model=load_recipe(f"{ROOT / PRETRAIN}:latent").model)
latent_action = replace(_watching, name="new_robot_latent_action", mixture="data_mixtures/new_robot_video.yaml")


def _recipes(robot: str) -> tuple[Run, Run, Run]:
    """Fine-tuning from `--init`, from all of it but the decoder, and from fresh weights; the same model each time."""
    tuned = replace(_tuning, name=f"new_robot_{robot}", mixture="data_mixtures/new_robot.yaml", embodiments=(robot,))
    new_head = replace(tuned, name=f"{tuned.name}_new_head", model=_pretraining.model)
    return tuned, new_head, replace(new_head, name=f"{tuned.name}_scratch", init=None)


panda, panda_new_head, panda_scratch = _recipes("panda")
robosuite_ur5e, robosuite_ur5e_new_head, robosuite_ur5e_scratch = _recipes("robosuite_ur5e")
robosuite_kinova3, robosuite_kinova3_new_head, robosuite_kinova3_scratch = _recipes("robosuite_kinova3")
robosuite_iiwa, robosuite_iiwa_new_head, robosuite_iiwa_scratch = _recipes("robosuite_iiwa")


def main() -> None:
    """Collects, chooses and permutes, trains and evaluates every arm; prints success by arm, or all of it as JSON."""
    args = _arguments()
    counts, robots, arms = _asked(args)
    out: Path = args.out
    settings = {"most": max(counts), "episodes": args.episodes, "steps": args.steps, "pretrain_steps": args.pretrain_steps}
    same_settings(out, settings, "most: the largest number of demonstrations")
    began = [run_all(collecting(robots, max(counts), out, args.cores), out / "collect", args.cores)]
    for robot in robots:
        for count in counts:
            for seed in range(args.seeds):
                choose(out / robot / "all", out / robot / f"{count}-{seed}" / "new_robot", count, seed)
    if "permuted" in arms:
        for name in SOURCES:
            permute(out / "data" / name, out / "permuted" / name)
    coded = _coded(arms)
    if coded:
        for name in SOURCES:
            unlabel(out / "data" / name, out / VIDEO / name)
        began.append(run_all(coding(out), out / "code", args.cores))
    if "latent_permuted" in arms:
        for name in SOURCES:
            unlabel(out / "data" / name, out / MIXED_UP / name)
            exchange_codes(out / VIDEO / name, out / MIXED_UP / name, label_hash(load_latent(out / WATCHER)))
    began.append(run_all(learning(robots, counts, arms, args), out / "learn", args.cores))
    found = {
        **facts(began),
        "steps": args.steps,
        "pretrain_steps": args.pretrain_steps,
        "seeds": args.seeds,
        "episodes": args.episodes,
        "robots": {robot: curves(robot, counts, arms, args.seeds, out) for robot in robots},
        **({"codes": codes(out)} if coded else {}),
        "command": command_line("benchmarks.new_robot", args),
    }
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for source, row in found.get("codes", {}).items():
        means = ", ".join(f"{what} {np.mean(r2_D):.2f}" for what, r2_D in row["probe_r2"].items())
        print(f"codes of {source}: {row['perplexity_share']:.0%} of the codebook in use; linear probe R2 {means}")
    for robot, rows in found["robots"].items():
        for count, by_arm in rows["demonstrations"].items():
            for arm, row in by_arm.items():
                print(f"{robot:20} {count:>3} {arm:15} {row['successes']:3}/{row['episodes']:<4} {row['low']:.0%} to {row['high']:.0%}")


def collecting(robots: Sequence[str], most: int, out: Path, cores: int) -> list[Stage]:
    """What pretraining sees, and the most demonstrations of each new robot."""

    def collect(folder: Path, *what: str) -> Stage:
        command = ("collect", *what, *NOISY, "--workers", str(cores), "--out", str(folder))
        return Stage(f"collect {folder.parent.name} {folder.name}", "collect", command, cores=cores, typical_s=100, makes=folder)

    targets = {robot: TARGETS[robot] for robot in robots}
    return [
        *(collect(out / "data" / name, *what) for name, what in SOURCES.items()),
        *(
            collect(out / robot / "all", "--suite", suite, "--tasks", task, "--episodes", str(most), "--image-every", "1")
            for robot, (suite, task) in targets.items()
        ),
    ]


def learning(robots: Sequence[str], counts: Sequence[int], arms: Sequence[str], args: argparse.Namespace) -> list[Stage]:
    """Pretraining, fine-tuning and evaluation of every arm; a core each."""
    out: Path = args.out
    found: list[Stage] = []

    def train(name: str, recipe: str, root: Path, steps: int, *more: str, needs: tuple[str, ...] = ()) -> str:
        command = ("train", recipe, "--data-root", str(root), "--out", str(out / "runs" / name), "--steps", str(steps), *more, "--resume")
        found.append(Stage(name, "train", command, needs, typical_s=0.35 * steps))
        return name

    for arm in arms:
        if arm in PRETRAINED:
            how = PRETRAINED[arm]
            told = ("--latents", str(out / WATCHER)) if how.coded else ()
            train(f"pretrain {arm}", how.recipe, out / how.data, args.pretrain_steps, *told)
    for robot in robots:
        suite, task = TARGETS[robot]
        for count in counts:
            for seed in range(args.seeds):
                for arm in arms:
                    name, root = f"{robot} {count}-{seed} {arm}", out / robot / f"{count}-{seed}"
                    seeded = ("--seed", str(seed))
                    if arm in PRETRAINED:
                        before = f"pretrain {arm}"
                        init = ("--init", str(out / "runs" / before))
                        head = "_new_head" if PRETRAINED[arm].coded else ""
                        train(name, f"{HERE}:{robot}{head}", root, args.steps, *init, *seeded, needs=(before,))
                    else:
                        more = args.pretrain_steps if arm == "scratch_longer" else 0
                        train(name, f"{HERE}:{robot}_scratch", root, args.steps + more, *seeded)
                    where = ("--suite", suite, "--tasks", task, "--episodes", str(args.episodes), "--seed", "0", "--workers", "1")
                    command = ("eval", str(out / "runs" / name), *where, "--json", str(_result(out, robot, count, seed, arm)))
                    found.append(Stage(f"evaluate {name}", "evaluate", command, (name,), typical_s=2.5 * args.episodes))
    return found


def coding(out: Path) -> list[Stage]:
    """A latent-action model of what pretraining sees, as video, and its codes beside that video."""
    model, video = out / WATCHER, out / VIDEO
    watching = ("train", f"{HERE}:latent_action", "--data-root", str(video), "--out", str(model), "--resume")
    labelling = ("label", str(model), *(str(video / name) for name in SOURCES), "--json")
    return [
        Stage("watch", "train", watching, typical_s=170),
        Stage("label", "label", labelling, ("watch",), typical_s=30),
    ]


def _coded(arms: Iterable[str]) -> bool:
    return any(PRETRAINED[arm].coded for arm in arms if arm in PRETRAINED)


def choose(every: Path, out: Path, count: int, seed: int) -> None:
    """`count` episodes of a dataset as one of its own; those of a smaller count are among those of a larger one."""
    dataset = Dataset.open(every)
    if count > len(dataset):
        sys.exit(f"{every} holds {len(dataset)} episodes, not {count}")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count])
    _write(out, dataset.info, (dataset.read(int(index)) for index in chosen))


def permute(every: Path, out: Path) -> None:
    """A dataset in which each episode has the actions of another, cut to its length or begun again."""
    dataset = Dataset.open(every)
    exchanged = (_with_actions(dataset.read(index), dataset.episode(giver).action) for index, giver in _exchange(len(dataset)).items())
    _write(out, dataset.info, exchanged)


def _exchange(episodes: int) -> dict[int, int]:
    """Episode -> the one that gives to it, in one cycle: nobody keeps its own."""
    order = np.random.default_rng(0).permutation(episodes)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def exchange_codes(labelled: Path, out: Path, name: str) -> None:
    """Writes beside `out`, the same video, codes of that name: each episode's are those of another, cut to its length or begun again."""
    source, target = Dataset.open(labelled), Dataset.open(out)
    ends_E = np.cumsum(source.anchors_E)
    codes = np.split(np.array(read_latents(source, name)), ends_E[:-1])
    giver = _exchange(len(source))
    mixed = [np.resize(codes[giver[index]], codes[index].shape) for index in range(len(source))]
    write_latents(target, name, np.concatenate(mixed), {"exchanged": True})


def _with_actions(episode: Episode, action: np.ndarray | None) -> Episode:
    assert action is not None
    return replace(episode, action=np.resize(action, (episode.steps, action.shape[1])))


def unlabel(every: Path, out: Path) -> None:
    """A dataset as video of its robot: the same frames and words, in the same order and under the same names, so that a mixture draws the
    same; no state, no action."""
    dataset = Dataset.open(every)
    info = replace(dataset.info, supervision="none", state_space=None, action_space=None)
    episodes = (dataset.read(index) for index in range(len(dataset)))
    _write(out, info, (replace(episode, supervision="none", state=None, action=None) for episode in episodes))


def _write(out: Path, info: DatasetInfo, episodes: Iterable[Episode]) -> None:
    """Unless it is there; what an earlier call left unfinished is finished."""
    if (out / MANIFEST).is_file():
        return
    with ShardWriter(out, info, resume=True) as writer:
        for episode in episodes:
            if not writer.has(episode.id):
                writer.add(episode)


def _asked(args: argparse.Namespace) -> tuple[list[int], list[str], list[str]]:
    """Numbers of demonstrations, robots and arms; leaves with what is wrong."""
    words = args.demonstrations.split(",")
    robots, arms = (list(dict.fromkeys(names.split(","))) for names in (args.robots, args.arms))
    if not all(word.isdecimal() and int(word) > 1 for word in words):
        sys.exit(f"--demonstrations {args.demonstrations}: give numbers of at least 2, such as 10,30")
    if unknown := [name for names, known in ((robots, TARGETS), (arms, ARMS)) for name in names if name not in known]:
        sys.exit(f"{', '.join(unknown)}: robots are {', '.join(TARGETS)}; arms {', '.join(ARMS)}")
    if "scratch" not in arms or min(args.seeds, args.episodes, args.steps, args.pretrain_steps, args.cores) < 1:
        sys.exit("`scratch` is what the other arms are compared with; seeds, episodes, steps and cores are at least 1")
    return sorted(map(int, words)), robots, arms


def codes(out: Path) -> dict[str, dict[str, Any]]:
    """Source -> what its video's codes say. `probe_r2`: of a linear map from them to what the demonstrations, whose labels no training has
    seen, say of the same frames; one R2 per dimension. `perplexity`: of each code."""
    model = load_latent(out / WATCHER)
    found = {}
    for name in SOURCES:
        code_XN = np.array(read_latents(Dataset.open(out / VIDEO / name), label_hash(model)), np.int64)[:, : model.codes]
        r2 = probe(Dataset.open(out / "data" / name), code_XN, model.vocabulary, model.check_gap(None))
        usage = Usage.of(code_XN, model.vocabulary)
        found[name] = {
            "probe_r2": {what: r2_D.tolist() for what, r2_D in r2.items()},
            "vocabulary": model.vocabulary,
            "perplexity": usage.perplexity_N.tolist(),
            "perplexity_share": usage.perplexity_share,
            "dead_share": usage.dead_share,
        }
    return found


def curves(robot: str, counts: Sequence[int], arms: Sequence[str], seeds: int, out: Path) -> dict[str, Any]:
    """Success of every arm by the number of demonstrations, each against `BASES` on the same episodes and seeds."""
    table: dict[str, dict[str, Any]] = {}
    for count in counts:
        results = {arm: [read_result(_result(out, robot, count, seed, arm)) for seed in range(seeds)] for arm in arms}
        table[str(count)] = {
            arm: success(every, {base: results[base] for base in BASES if base != arm and base in results})
            for arm, every in results.items()
        }
    scratch = {count: table[str(count)]["scratch"]["rate"] for count in counts}
    multiplier = {
        arm: {str(count): demonstrations_for(scratch, table[str(count)][arm]["rate"], count) for count in counts}
        for arm in arms
        if arm != "scratch"
    }
    suite, task = TARGETS[robot]
    return {"suite": suite, "task": task, "demonstrations": table, "multiplier": multiplier}


def demonstrations_for(scratch: Mapping[int, float], rate: float, count: int) -> dict[str, float]:
    """How many times `count` demonstrations training from scratch needs for this success: roughly, between two measured counts by the
    logarithm of the number. `at_least` where no count reaches it, `at_most` where the least one does."""
    counts = sorted(scratch)
    reached = np.maximum.accumulate([scratch[number] for number in counts])
    if rate == scratch[count]:
        return {"about": 1.0}
    place = int(np.searchsorted(reached, rate))
    if place == len(counts):
        return {"at_least": counts[-1] / count}
    if place == 0:
        return {"at_most": counts[0] / count}
    share = (rate - reached[place - 1]) / (reached[place] - reached[place - 1])
    low, high = math.log(counts[place - 1]), math.log(counts[place])
    return {"about": math.exp(low + share * (high - low)) / count}


def _result(out: Path, robot: str, count: int, seed: int, arm: str) -> Path:
    return out / "results" / f"{robot}-{count}-{seed}-{arm}.json"


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, "new_robot")
    parser.add_argument("--robots", default="panda", help=f"of {', '.join(TARGETS)} (default: %(default)s)")
    parser.add_argument("--demonstrations", default="10,30", help="numbers of them (default: %(default)s)")
    parser.add_argument("--arms", default=",".join(ARMS), help="scratch and any others (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=40, help="of each evaluation (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--pretrain-steps", type=int, default=1000, help="of pretraining (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
