"""`vla import`: a public checkpoint as one of ours; everything it does is in `vla/interop/`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla.interop.formats import IMPORTS

SUMMARY = "Import a public checkpoint (OpenVLA, pi0, CogACT, ...) as one that acts."
EXAMPLES = """
vla import openvla downloads/openvla-7b runs/openvla --embodiment widowx --key bridge_orig
vla import openvla_oft downloads/oft-libero runs/oft --embodiment libero_panda --cameras third_person,wrist --platform libero
vla import pi0 downloads/pi0_base runs/pi0 --embodiment my_robot.py --cameras third_person,wrist --tokenizer downloads/paligemma
vla import cogact downloads/CogACT-Base runs/cogact --embodiment widowx --key bridge_orig --tokenizer downloads/openvla-7b
vla import univla downloads/univla-libero runs/univla --embodiment libero_panda --cameras third_person --platform libero
vla import vlm downloads/paligemma2-3b-pt-224 runs/start --embodiment my_arm.py --preset pi0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=sorted(IMPORTS), help="; ".join(f"{name}: {what}" for name, (what, _) in sorted(IMPORTS.items())))
    parser.add_argument("source", type=Path, help="folder as it was published")
    parser.add_argument("out", type=Path, help="checkpoint folder to write; it must not exist")
    parser.add_argument(
        "--embodiment", required=True, help="robot, by name or .py file: units, frames, limits, which the public file lacks"
    )
    parser.add_argument("--cameras", default="", help="roles of the robot in the order of the model's images, comma-separated")
    parser.add_argument("--key", default="", help="which statistics, where the file has those of several datasets")
    parser.add_argument("--platform", default="", help="whose constants it was trained with: libero, aloha, bridge, calvin")
    parser.add_argument("--preset", default="", help="vlm: whose decoder to put on it, fresh (`vla presets` lists them)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of the language model, or its folder, where the source has none")
    parser.add_argument("--action-tokenizer", type=Path, help="folder of the FAST tokenizer (pi0_fast)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; anything missing, left over or mis-shaped is an error by name, and nothing is written."""
    from vla.embodiment import load_embodiment
    from vla.errors import UserError
    from vla.interop.formats import import_checkpoint
    from vla.interop.source import Source

    if not args.source.is_dir():
        raise UserError(f"no folder {args.source}; download the whole repository first (`hf download OWNER/NAME --local-dir FOLDER`)")
    cameras = tuple(filter(None, args.cameras.split(",")))
    robot = load_embodiment(args.embodiment)
    source = Source(args.source, robot, cameras, args.key, args.tokenizer, args.action_tokenizer, args.platform, args.preset)
    report = import_checkpoint(args.format, source, args.out)
    print(f"wrote {args.out}: {report.taken} tensors of {args.source.name}")
    for why, count in report.left.items():
        print(f"  left out: {count} tensors, {why}")
    for note in report.notes:
        print(f"  note: {note}")
    return 0
