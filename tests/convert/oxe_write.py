"""Writes miniatures of the collection with tensorflow-datasets itself: `python -m tests.convert.oxe_write OUT NAME...`.

A process of its own, so that TensorFlow is in no test process. OUT/NAME is then what `tfds.builder_from_directory` takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.convert.oxe import EPISODES, Miniature, facts, features, kind_of
from vla.convert.raw import RawEpisode


def feature_of(spec: str) -> Any:
    from tensorflow_datasets.core import features as f

    kind, dtype, shape = kind_of(spec)
    if kind == "pictures":
        return f.Image(shape=shape, dtype=np.dtype(dtype), encoding_format="png" if dtype == "uint16" else "jpeg")
    return f.Text() if kind == "text" else f.Tensor(shape=shape, dtype=np.dtype(dtype))


def nested(flat: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """{`action/move`: x} -> {action: {move: x}}, for the first name alone: `future/xyz_residual` is one name."""
    for name, value in flat.items():
        outer, _, inner = name.partition("/")
        if inner:
            tree.setdefault(outer, {})[inner] = value
        else:
            tree[outer] = value
    return tree


def example(name: str, raw: RawEpisode) -> dict[str, Any]:
    import simplejpeg

    steps = []
    for step in range(raw.steps):
        flat: dict[str, Any] = {key: rows[step] for key, rows in raw.columns.items()}
        flat |= {key: texts[step] for key, texts in raw.texts.items()}
        for key, pictures in raw.pictures.items():
            _, dtype, shape = kind_of(features(name)[key])
            flat[key] = simplejpeg.decode_jpeg(pictures.data[step]) if dtype == "uint8" else np.zeros(shape, dtype)
        steps.append(nested(flat, {}))
    return nested({key: raw.facts[key] for key in facts(name)}, {"steps": steps})


def main(out: Path, *names: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import features as f

    for name in names:
        inner = nested({key: feature_of(spec) for key, spec in features(name).items()}, {})
        outer = nested({key: feature_of(spec) for key, spec in facts(name).items()}, {"steps": f.Dataset(inner)})
        reader = Miniature(name)
        made = [example(name, reader.episode(number)[0]) for number in range(EPISODES)]
        builder = tfds.dataset_builders.AdhocBuilder(
            name=name, version="1.0.0", features=f.FeaturesDict(outer), split_datasets={"train": list(enumerate(made))}, data_dir=str(out)
        )
        builder.download_and_prepare()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
