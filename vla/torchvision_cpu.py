"""torchvision beside a CPU-only torch: there is no such build, and importing the common one fails.

`import torchvision` 0.2x registers fake kernels for operators that its compiled library defines; with a torch without CUDA that library
does not load, and the import stops with "operator torchvision::nms does not exist". The schemas alone are enough for the import:
transforms.v2, timm and the model classes of transformers (which import it too) then work. torchvision.io and ops.nms do not.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def prepare_torchvision() -> Any:
    """Call before torchvision, timm or an image processor of transformers is imported. Does nothing where torch has CUDA.

    Returns the library object that must stay alive (the cache keeps it), or None.
    """
    import importlib.metadata
    import sys

    import torch

    if torch.version.cuda is not None or "torchvision" in sys.modules:
        return None
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # a build that brings the operators itself
        return None
    return library
