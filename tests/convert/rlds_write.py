"""Writes a miniature RLDS dataset with tensorflow-datasets itself: `python rlds_write.py OUT [EPISODES STEPS SIZE SHARDS]`.

Run as a process of its own, so that TensorFlow is in no test process. Every encoding that RLDS datasets use is in it once. What went in
is written beside it as `expected.npz`, from numpy and not from TensorFlow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def features(size: int):
    from tensorflow_datasets.core import features as f

    return f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "observation": f.FeaturesDict(
                        {
                            "image": f.Image(shape=(size, size, 3), dtype=np.uint8, encoding_format="jpeg"),
                            "wrist": f.Image(shape=(size // 2, size, 3), dtype=np.uint8, encoding_format="png"),
                            "tensor": f.Tensor(shape=(8, 8, 3), dtype=np.uint8),
                            "zlib": f.Tensor(shape=(8, 8, 3), dtype=np.uint8, encoding="zlib"),
                            "bytes": f.Tensor(shape=(8, 8, 3), dtype=np.uint8, encoding="bytes"),
                            "depth": f.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"),
                            "state": f.Tensor(shape=(8,), dtype=np.float32),
                            "pose": f.Tensor(shape=(4, 4), dtype=np.float64),
                            "history": f.Sequence(f.Tensor(shape=(2,), dtype=np.float32)),
                        }
                    ),
                    "action": f.FeaturesDict({"move": f.Tensor(shape=(3,), dtype=np.float32), "open_gripper": f.Scalar(dtype=np.bool_)}),
                    "is_first": f.Scalar(dtype=np.bool_),
                    "is_last": f.Scalar(dtype=np.bool_),
                    "is_terminal": f.Scalar(dtype=np.bool_),
                    "reward": f.Scalar(dtype=np.float32),
                    "stamp": f.Scalar(dtype=np.int64),
                    "language_instruction": f.Text(),
                    "language_embedding": f.Tensor(shape=(16,), dtype=np.float32),
                    "phase": f.ClassLabel(names=["reach", "grasp"]),
                }
            ),
            "episode_metadata": f.FeaturesDict(
                {"file_path": f.Text(), "success": f.Scalar(dtype=np.bool_), "target": f.Tensor(shape=(3,), dtype=np.float32)}
            ),
        }
    )


def episode(number: int, steps: int, size: int) -> dict:
    rng = np.random.default_rng([7, number])

    def step(i: int) -> dict:
        image = np.full((size, size, 3), (20 * i, 60 + number, 100), np.uint8)
        wrist = rng.integers(0, 255, (size // 2, size, 3), dtype=np.uint8)
        small = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(3)]
        observation = {
            "image": image,
            "wrist": wrist,
            "tensor": small[0],
            "zlib": small[1],
            "bytes": small[2],
            "depth": rng.integers(0, 65535, (8, 8, 1), dtype=np.uint16),
            "state": rng.normal(size=8).astype(np.float32),
            "pose": rng.normal(size=(4, 4)),
            "history": [rng.normal(size=2).astype(np.float32) for _ in range(i % 2)],
        }
        return {
            "observation": observation,
            "action": {"move": rng.normal(size=3).astype(np.float32), "open_gripper": bool(i % 2)},
            "is_first": i == 0,
            "is_last": i == steps - 1,
            "is_terminal": i == steps - 1,
            "reward": float(i == steps - 1),
            "stamp": -5 + 10**17 + i * 10**8,
            "language_instruction": f"put block {number} into the bowl, später",
            "language_embedding": rng.normal(size=16).astype(np.float32),
            "phase": i % 2,
        }

    metadata = {"file_path": f"/raw/{number}.h5", "success": number % 2 == 0, "target": rng.normal(size=3).astype(np.float32)}
    return {"steps": [step(i) for i in range(steps)], "episode_metadata": metadata}


def main(out: Path, episodes: int = 5, steps: int = 4, size: int = 32, shards: int = 2) -> None:
    import tensorflow_datasets as tfds

    made = [episode(number, steps + number % 3, size) for number in range(episodes)]
    builder = tfds.dataset_builders.AdhocBuilder(
        name="mini", version="1.0.0", features=features(size), split_datasets={"train": list(enumerate(made))}, data_dir=str(out)
    )
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    expected = {}
    for number, row in enumerate(made):
        every = row["steps"]
        expected[f"{number}/state"] = np.stack([step["observation"]["state"] for step in every])
        expected[f"{number}/move"] = np.stack([step["action"]["move"] for step in every])
        expected[f"{number}/wrist"] = np.stack([step["observation"]["wrist"] for step in every])
        expected[f"{number}/stamp"] = np.array([step["stamp"] for step in every])
    np.savez(out / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
