"""`vla serve`: a policy behind a port, for a robot, a benchmark or a recording to be looked at."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla import arguments
from vla.errors import UnknownName, UserError

if TYPE_CHECKING:
    from vla.embodiment import Embodiment
    from vla.serve.batcher import Actor
    from vla.serve.server import Server
    from vla.serve.service import Service, Settings

SUMMARY = "Serve a policy to robots and benchmarks: openpi, OpenVLA, vla-eval and GR00T clients, on one port."
EXAMPLES = """
vla serve runs/mine --embodiment metaworld_sawyer
vla serve runs/mine --deadline 0.5 --record runs/served
vla serve runs/mine --device cuda --optimize
vla serve --policy hold --embodiment my_robot.py
vla serve --policy replay --episode data/sawyer:3
vla serve runs/mine --host 0.0.0.0 --token-file token.txt
vla serve runs/mine --map observation/image=images.third_person --map observation/state=state
"""
WITHOUT_CHECKPOINT = ("replay", "hold", "random")
TOKEN_VARIABLE = "VLA_SERVE_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT", help="checkpoint or run folder")
    parser.add_argument("--policy", metavar="WHAT", help="instead of CKPT: replay, hold (no motion), random (uniform), or a folder")
    parser.add_argument("--embodiment", metavar="ROBOT", help="which robot: a name in the checkpoint; without one, a name or a .py file")
    parser.add_argument("--episode", metavar="DATASET[:N]", help="for replay: whose recorded commands (default: the first episode)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than 127.0.0.1 need a token (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"file with the clients' token (or set ${TOKEN_VARIABLE})")
    parser.add_argument("--deadline", type=float, metavar="S", help="longest time for an answer (default: as long as a chunk lasts)")
    parser.add_argument("--max-age", type=float, metavar="S", help="oldest observation to act on (default: as long as a chunk lasts)")
    parser.add_argument("--max-batch", type=int, default=32, help="most requests in one batch (default: 32)")
    parser.add_argument("--max-waiting", type=int, default=256, help="most requests that wait; more are refused (default: 256)")
    parser.add_argument("--max-change", metavar="A,B,...", help="fastest change per second of each number of a command, or inf")
    parser.add_argument("--max-jerk", metavar="A,B,...", help="fastest change of that change, per second squared, or inf")
    parser.add_argument(
        "--execute", type=int, metavar="N", help="commands of a chunk before the next, where clients do not say (vla-eval: 5/6, else all)"
    )
    parser.add_argument(
        "--map", action="append", default=[], metavar="THEIRS=OURS", help="a client's name for images.ROLE, state, instruction"
    )
    parser.add_argument("--no-state", action="store_true", help="take observations without a state (OpenVLA's clients send none)")
    parser.add_argument("--groot-port", type=int, metavar="PORT", help="also speak GR00T's protocol there (needs pyzmq)")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write every answered request there, for `vla show DIR`")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's noise (default: 0)")
    arguments.add_device(parser)
    parser.add_argument("--optimize", action="store_true", help="quicker calls; on a GPU the first of each batch size takes longer")
    arguments.add_evaluations(parser)
    parser.add_argument("--float8", action="store_true", help="with --optimize, on a GPU: 8-bit products; actions are close, not the same")
    arguments.add_plugin(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, then drains and exits 0. Exit code 1 if the policy breaks, 2 if it cannot be served."""
    from vla.serve.server import Server, check_door

    token = token_of(args.token_file)
    if args.groot_port is not None:
        from vla.serve.groot import check_groot

        check_groot(args.host, args.groot_port, token, args.port)
    check_door(args.host, args.port, token, listen=True)
    arguments.load_plugins(args)
    service = make_service(args)
    seconds = service.warm_up()
    print(
        f"{service.facts['policy']} for {service.robot.name}: {seconds * 1e3:.1f} ms for one observation; deadline {service.deadline_s:g} s"
    )
    server = Server(service, args.host, args.port, token)
    asyncio.run(_until_told(server, args.groot_port))
    if service.recorder is not None:
        service.recorder.close()
    print(f"stopped: {service.answered} answered, {sum(service.refused.values())} refused")
    return 1 if server.broken else 0


async def _until_told(server: Server, groot_port: int | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    beside = None
    if groot_port is not None:
        from vla.serve.groot import serve_groot

        beside = await serve_groot(server, groot_port)

    def ready() -> None:
        print(f"serving on http://{server.address} and ws://{server.address}; stop with Ctrl-C", flush=True)

    try:
        await server.run(ready)
    finally:
        if beside is not None:
            beside.cancel()


def make_service(args: argparse.Namespace) -> Service:
    """The policy that the arguments name, behind a service."""
    from vla.serve.service import Service

    settings = _settings(args)
    actor, robot, facts = _policy(args)
    settings.names.check(robot)
    recorder = None
    if args.record is not None:
        from vla.serve.record import Recorder

        recorder = Recorder(args.record, robot, facts["policy"])
    return Service(actor, robot, settings, recorder=recorder, **facts)


def token_of(path: Path | None) -> str | None:
    """The token: from a file, else from the environment; never from the command line, which others can read."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    return path.read_text().strip()


def _policy(args: argparse.Namespace) -> tuple[Actor, Embodiment, dict[str, Any]]:
    what = args.policy or args.checkpoint
    if what is None or (args.policy and args.checkpoint):
        raise UserError(f"give a checkpoint folder, or --policy {', '.join(WITHOUT_CHECKPOINT)}")
    if args.float8 and not args.optimize:
        raise UserError("--float8 goes with --optimize")
    if args.episode and what != "replay":
        raise UserError("--episode is for --policy replay")
    if what in WITHOUT_CHECKPOINT:
        if args.optimize or args.evaluations is not None:
            raise UserError(f"{'--optimize' if args.optimize else '--evaluations'} is for a checkpoint")
        return _without_checkpoint(what, args)
    return _checkpoint(Path(what), args)


def _without_checkpoint(what: str, args: argparse.Namespace) -> tuple[Actor, Embodiment, dict[str, Any]]:
    from vla.embodiment import load_embodiment
    from vla.evaluate.baselines import Hold, Random

    if what == "replay":
        from vla.serve.replay import Replay

        if args.episode is None:
            raise UserError("--policy replay needs --episode DATASET or DATASET:NUMBER")
        robot = load_embodiment(args.embodiment) if args.embodiment else None
        replay = Replay.of(args.episode, robot)
        return replay, replay.robot, {"policy": "replay"}
    if args.embodiment is None:
        raise UserError(f"--policy {what} needs --embodiment: a built-in robot, or a .py file that defines EMBODIMENT")
    robot = load_embodiment(args.embodiment)
    return (Hold(robot) if what == "hold" else Random(robot)), robot, {"policy": what}


def _checkpoint(folder: Path, args: argparse.Namespace) -> tuple[Actor, Embodiment, dict[str, Any]]:
    from vla.checkpoint import acting, sha256
    from vla.policy import Policy
    from vla.serve.facts import digest

    policy = Policy.load(folder, args.device, args.seed, evaluations=args.evaluations)
    if args.optimize:
        policy.optimize_for_inference(args.float8)
    robots = {robot.name: robot for robot in policy.contents.embodiments}
    if args.embodiment is None and len(robots) > 1:
        raise UserError(f"the checkpoint knows several robots; give --embodiment, one of {', '.join(robots)}")
    name = args.embodiment or next(iter(robots))
    if name not in robots:
        raise UnknownName("embodiment of this checkpoint", name, robots, "Fine-tune for another robot (finetune/forkme.py).")
    manifest = sha256(acting(folder) / "manifest.json")
    statistics = digest(policy.contents.normalizers[name].to_json())
    asked = "" if args.evaluations is None else f", {args.evaluations} evaluations"
    return policy, robots[name], {"policy": f"checkpoint {manifest[:16]}{asked}", "statistics": statistics}


def _settings(args: argparse.Namespace) -> Settings:
    from vla.serve.observe import Names
    from vla.serve.service import Settings

    pairs = [text.partition("=") for text in args.map]
    for theirs, equals, ours in pairs:
        if not (theirs and equals and ours):
            raise UserError(f"--map {theirs}{equals}{ours}: write THEIRS=OURS, as observation/image=images.third_person")
    return Settings(
        deadline_s=args.deadline,
        max_age_s=args.max_age,
        max_batch=args.max_batch,
        max_waiting=args.max_waiting,
        execute=args.execute,
        max_change_per_s=_numbers("--max-change", args.max_change),
        max_jerk_per_s2=_numbers("--max-jerk", args.max_jerk),
        state_optional=args.no_state,
        names=Names({theirs: ours for theirs, _, ours in pairs}),
    )


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{name} must be numbers separated by commas, not '{text}'") from error
