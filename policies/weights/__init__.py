"""Publication of weights: how a policy travels from the learner to whoever samples from it.

A publication is a directory `v00000007/` with a manifest and one safetensors file, which holds either every tensor (full) or what
changed since an earlier version (delta). `manifest` says what is in one and who made it, `publishing` writes, `reading` verifies and
puts together, `delta` is the encoding of changes, `folders` says where publications stand and which may go, `attestation` proves
that an engine computes what the learner does. docs/weights.md is the page for readers of other programs.
"""

from safeladder.policies.weights.folders import home, latest, retire, versions
from safeladder.policies.weights.manifest import (
    DELTA,
    MANIFEST,
    TENSORS,
    Manifest,
    Probe,
    TensorEntry,
    WeightsError,
    folder,
    read_manifest,
)
from safeladder.policies.weights.publishing import Publisher, publish
from safeladder.policies.weights.reading import Reader, copy_into, load_into, read, read_tensors

__all__ = [
    "DELTA",
    "MANIFEST",
    "TENSORS",
    "Manifest",
    "Probe",
    "Publisher",
    "Reader",
    "TensorEntry",
    "WeightsError",
    "copy_into",
    "folder",
    "home",
    "latest",
    "load_into",
    "publish",
    "read",
    "read_manifest",
    "read_tensors",
    "retire",
    "versions",
]
