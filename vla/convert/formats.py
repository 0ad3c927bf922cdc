"""The formats that `vla convert` reads: one row each, and a reader's module is imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.convert.raw import Reader
from vla.convert.store import Store
from vla.errors import UnknownName, UserError


@dataclass(frozen=True)
class Format:
    summary: str
    reader: str
    """Where its class is: `module:Class`."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Other readers of the format, by the name that `--reader` takes."""


FORMATS = {
    "rlds": Format(
        "RLDS as tensorflow-datasets writes it: Open X-Embodiment",
        "vla.convert.rlds:Rlds",
        {"tfds": "vla.convert.rlds_tfds:TfdsRlds"},
    ),
    "lerobot": Format("LeRobot 2.0, 2.1 and 3.0: parquet, and video or images", "vla.convert.lerobot:LeRobot"),
    "hdf5": Format("HDF5 by layout: robomimic, LIBERO, ALOHA, DROID", "vla.convert.hdf5:Hdf5"),
    "mcap": Format("MCAP recordings: ROS 2 and JSON messages, at a fixed rate", "vla.convert.mcap:Mcap"),
    "video": Format("any video files, with a csv of captions", "vla.convert.video_folder:VideoFolder"),
    "epic_kitchens": Format("EPIC-KITCHENS: mp4 and a csv of actions", "vla.convert.video_epic:EpicKitchens"),
    "ego4d": Format("Ego4D: mp4 and narration.json", "vla.convert.video_ego4d:Ego4D"),
    "something_something": Format("Something-Something v2: webm and json", "vla.convert.video_something:SomethingSomething"),
    "egodex": Format("EgoDex: mp4, and hdf5 with the pose of camera and hands", "vla.convert.video_egodex:EgoDex"),
}


def open_reader(
    format_name: str, source: str | Path, options: Mapping[str, Any], cache: Path | None = None, plugin: str = "", other: str = ""
) -> Reader:
    """The reader of a source. `cache`: where files of a URL go. `plugin`: `path/to/file.py:Class` for a format from outside the
    package; the file is run. `other`: one of the format's other readers."""
    reader_class = _plugin_class(plugin) if plugin else find_reader(format_name, other)
    store = Store.of(source, cache)
    place: Store | Path = store if reader_class.streams else store.fetch_all()
    try:
        return reader_class(place, **options)  # type: ignore[call-arg]  # each has its own options
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rsplit("'", 2)[-2]
        raise UserError(f"the reader of {plugin or format_name} has no option '{option}' (`reader` in the card)") from error


def find_reader(name: str, other: str = "") -> type[Reader]:
    """The class behind a format's name; UnknownName with the choices."""
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS, "Or name a reader of your own: --plugin file.py:Class")
    row = FORMATS[name]
    if other and other not in row.others:
        raise UnknownName(f"reader of {name}", other, row.others)
    module, _, attribute = (row.others[other] if other else row.reader).partition(":")
    return getattr(importlib.import_module(module), attribute)


def _plugin_class(plugin: str) -> type[Reader]:
    path, _, attribute = plugin.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise UserError(f"--plugin {plugin}: give file.py:Class, a file that exists")
    import sys

    name = f"vla_reader_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Reader)):
        raise UserError(f"--plugin {plugin}: {attribute} is no class derived from vla.convert.raw.Reader")
    return found
