"""What TensorFlow makes of pictures, in a process of its own: `python -m tests.sim.tf_pictures IN.npy OUT.npz SIZE AREA`.

OpenVLA's evaluations, `experiments/robot/openvla_utils.py` and `libero_utils.py`: JPEG as RLDS stored it, Lanczos, the middle of the area.
"""

from __future__ import annotations

import sys

import numpy as np


def main(source: str, target: str, size: int, area: float) -> None:
    import tensorflow as tf

    image_NHWC = tf.constant(np.load(source))
    jpeg = tf.stack([tf.io.decode_image(tf.image.encode_jpeg(image), expand_animations=False) for image in image_NHWC])
    resized = tf.image.resize(image_NHWC, (size, size), method="lanczos3", antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    side = (1 - area**0.5) / 2
    boxes = tf.tile([[side, side, 1 - side, 1 - side]], (len(resized), 1))
    cropped = tf.image.crop_and_resize(tf.image.convert_image_dtype(resized, tf.float32), boxes, tf.range(len(resized)), (size, size))
    cropped = tf.image.convert_image_dtype(tf.clip_by_value(cropped, 0, 1), tf.uint8, saturate=True)
    np.savez(target, jpeg=jpeg.numpy(), resized=resized.numpy(), cropped=cropped.numpy())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
