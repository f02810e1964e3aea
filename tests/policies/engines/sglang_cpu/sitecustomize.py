"""Put this folder on PYTHONPATH and SGLang 0.5.23 runs on a CPU that its wheels are not made for: a test rig.

There is no torchvision for torch's CPU build at hand, and the CUDA build's import needs operators that only its own
library declares. Declared without an implementation, they let the Python part be imported; no text model calls them.
"""

import importlib.util

if importlib.util.find_spec("torchvision") and importlib.util.find_spec("torch"):
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
