"""The stages of `make demo`. Every number of the job that is not in a recipe or a mixture stands here."""

from __future__ import annotations

from pathlib import Path

from vla.demo.stages import Stage

DECODERS = ("parallel", "tokens", "masked", "dit", "latent")
"""Variants of pretrain/demo.py; the first does best and is the default."""

NEW_ROBOT = ("--suite", "panda", "--tasks", "lift")
"""The held-out robot's task; finetune/demo.py names the robot."""

DEMONSTRATIONS = 30
EPISODES = 40
FEWER_EPISODES = 30
"""Of what is no goal of pretraining: the new robot, whose simulator is the slowest, and tasks that were never trained."""


def stages(decoder: str, out: Path) -> list[Stage]:
    """The job for one decoder, in the folder `out`; earlier stages come first where cores are scarce."""
    data = out / "data"
    learns_latents = decoder == "latent"

    def collect(name: str, *what: str, cores: int, typical_s: float) -> Stage:
        command = ("collect", *what, "--workers", str(cores), "--out", str(data / name))
        return Stage(f"collect {name}", "collect", command, cores=cores, typical_s=typical_s, makes=data / name)

    def train(name: str, phase: str, recipe: str, *more: str, needs: tuple[str, ...], typical_s: float) -> Stage:
        run = out / name.replace(" ", "_")
        command = ("train", recipe, *more, "--data-root", str(data), "--out", str(run))
        return Stage(name, phase, command, needs, typical_s=typical_s, makes=run)

    def evaluate(name: str, run: str, *what: str, typical_s: float, cores: int = 1, episodes: int = EPISODES) -> Stage:
        result = out / f"{name.replace(' ', '_')}.json"
        files = ("--json", str(result), "--video", str(out / "videos" / name.replace(" ", "_")))
        how = ("--episodes", str(episodes), "--seed", "0", "--workers", str(cores))
        command = ("eval", str(out / run.replace(" ", "_")), *what, *how, *files)
        return Stage(name, "evaluate", command, (run,), cores, typical_s=typical_s, makes=result)

    noisy = ("--noise-share", "0.5")
    latents = ("--latents", str(out / "latent_action")) if learns_latents else ()
    initial = ("--init", str(out / "pretrain"))
    return [
        collect("sawyer", "--suite", "metaworld-objects", "--episodes", "35", *noisy, cores=2, typical_s=91),
        collect("fetch", "--suite", "fetch", "--tasks", "reach,push,lift", "--episodes", "25", *noisy, cores=2, typical_s=14),
        collect("video", "--suite", "metaworld-video", "--episodes", "8", "--seed", "200000", cores=1, typical_s=40),
        train("latent_action", "latent", "pretrain/demo_latent_action.py", needs=("collect video",), typical_s=85),
        Stage(
            "label",
            "latent",
            ("label", "--json", str(out / "latent_action"), *(str(data / name) for name in ("sawyer", "fetch", "video"))),
            ("latent_action", "collect sawyer", "collect fetch"),
            typical_s=20,
        ),
        train(
            "pretrain",
            "pretrain",
            f"pretrain/demo.py:{decoder}",
            *latents,
            needs=("label",) if learns_latents else ("collect sawyer", "collect fetch"),
            typical_s=345,
        ),
        collect("new_robot", *NEW_ROBOT, "--episodes", str(DEMONSTRATIONS), "--image-every", "1", *noisy, cores=1, typical_s=105),
        train("from scratch", "finetune", f"finetune/demo.py:scratch_{decoder}", needs=("collect new_robot",), typical_s=105),
        train("fine-tune", "finetune", "finetune/demo.py", *initial, needs=("pretrain", "collect new_robot"), typical_s=110),
        evaluate("evaluate", "pretrain", "--suite", "metaworld-objects", typical_s=120),
        evaluate("evaluate from scratch", "from scratch", *NEW_ROBOT, typical_s=85, episodes=FEWER_EPISODES),
        evaluate("evaluate fine-tuned", "fine-tune", *NEW_ROBOT, typical_s=65, episodes=FEWER_EPISODES),
        # The last: both cores are free.
        evaluate("zero-shot", "pretrain", "--suite", "metaworld-heldout", typical_s=40, cores=2, episodes=FEWER_EPISODES),
    ]
