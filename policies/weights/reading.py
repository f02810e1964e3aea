"""Reading publications: verified whole before a parameter is touched, full ones and chains of deltas alike.

A `Reader` keeps the newest complete weights that it has read, in memory of its own (one copy). It hashes while it reads into that
memory, so what was verified is what will be used, whoever writes into the folder afterwards, and a swap of weights is one plain
copy from warm memory. A delta is applied to what it keeps. One whose base it does not keep (it came late, or missed some) is reached
from the full version that its chain rests on, forwards. What does not follow from there is refused and nothing else changes: a reader
that failed has nothing kept, and begins again with the next publication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from torch import Tensor, nn

from safeladder.policies.tensors import Part, Stream, bits_of, distinct, dtype_of_name, header, raw_bytes
from safeladder.policies.weights import delta
from safeladder.policies.weights.folders import retire
from safeladder.policies.weights.manifest import DELTA, TENSORS, Manifest, WeightsError, folder, read_manifest
from safeladder.policies.weights.publishing import Publisher

CHUNK_BYTES: Final = 2**20  # hashed while it is still in the processor's cache


class Reader:
    """Reads the publications of one run, one at a time: not safe for use by several threads at once."""

    def __init__(self, key: bytes | None = None) -> None:
        """key: the run's secret. With one, what is not signed by it is refused; without, what is signed is."""
        self._key = key
        self._kept: Manifest | None = None
        self._tensors: dict[str, Tensor] = {}

    def read(self, path: Path) -> tuple[Manifest, dict[str, Tensor]]:
        """Manifest and complete tensors of the publication at `path`, both verified.

        The tensors are the reader's own and change with its next call. Raises WeightsError.
        """
        target = read_manifest(path, self._key)
        if self._kept is not None and self._kept.seal == target.seal:
            return target, self._tensors
        chain = self._chain(path.parent, target)
        # From here on the memory is neither the old version nor yet the new one.
        self._kept = None
        for manifest in chain:
            at = folder(path.parent, manifest.version)
            if manifest.base is None:
                self._fill(at / TENSORS, manifest)
            else:
                self._apply(at / DELTA, manifest)
        self._kept = target
        return target, self._tensors

    def complete(self, path: Path, directory: Path) -> Path:
        """A folder that holds all tensors of the publication at `path` in one file, for engines whose own processes read
        files: `path` itself where that is full, else one made below `directory`, in place of what was made there before.

        Raises WeightsError.
        """
        manifest, tensors = self.read(path)
        if manifest.base is None:
            return path
        made = folder(directory, manifest.version)
        if not made.exists():
            stream = Stream({name: Part.of(tensor) for name, tensor in tensors.items()}, in_order=True)
            Publisher(directory, self._key).publish(
                stream, manifest.version, step=manifest.step, probes=manifest.probes
            )
            retire(directory, 1, key=self._key)
        return made

    def _chain(self, directory: Path, target: Manifest) -> list[Manifest]:
        """What has to be read for `target`, in order: deltas on what is kept, or a full version and deltas on it."""
        chain = [target]
        while (base := chain[0].base) is not None:
            newest = chain[0]
            if base >= newest.version:
                raise WeightsError(f"version {newest.version} claims to be a difference to version {base}")
            if self._kept is not None and self._kept.version == base:
                found = self._kept
            else:
                try:
                    found = read_manifest(folder(directory, base), self._key)
                except WeightsError as error:
                    raise WeightsError(
                        f"version {newest.version} is a difference to version {base}, which cannot be had: {error}"
                    ) from error
            if found.seal != newest.base_seal:
                raise WeightsError(
                    f"version {newest.version} is a difference to another version {base} than the one that is here"
                )
            if found.tensors != newest.tensors:
                raise WeightsError(f"version {newest.version} names other tensors than version {base}, its base")
            if found is self._kept:
                break
            chain.insert(0, found)
        return chain

    def _fill(self, file: Path, manifest: Manifest) -> None:
        """Reads a full version into the memory that is kept."""
        self._allocate(manifest)
        expected = header({name: (tensor.dtype, tensor.shape) for name, tensor in self._tensors.items()})
        _check_size(file, manifest)
        digest = hashlib.sha256()
        try:
            with file.open("rb", buffering=0) as source:
                start = bytearray(len(expected))
                _read_into(source, memoryview(start), digest)
                for tensor in self._tensors.values():
                    _read_into(source, raw_bytes(tensor), digest)
        except OSError as error:
            raise WeightsError(f"cannot read the weights at {file.parent}: {error}") from error
        _check_digest(file, manifest, digest.hexdigest())
        if start != expected:
            raise WeightsError(f"{file} does not hold the tensors that its manifest names")

    def _allocate(self, manifest: Manifest) -> None:
        try:
            kinds = {entry.name: (dtype_of_name(entry.dtype), entry.shape) for entry in manifest.tensors}
        except ValueError as error:
            raise WeightsError(f"version {manifest.version}: {error}") from None
        if {name: (t.dtype, list(t.shape)) for name, t in self._tensors.items()} != kinds:
            self._tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
        # A dictionary compares without order, and the file has one.
        self._tensors = {name: self._tensors[name] for name in kinds}

    def _apply(self, file: Path, manifest: Manifest) -> None:
        """Changes the memory that is kept, which holds the base, by a delta."""
        _check_size(file, manifest)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise WeightsError(f"cannot read the weights at {file.parent}: {error}") from error
        _check_digest(file, manifest, hashlib.sha256(content).hexdigest())
        try:
            arrays = load_arrays(content)
            pieces: dict[str, dict[str, bytes]] = {}
            for label, array in arrays.items():
                name, _, kind = label.rpartition("/")
                pieces.setdefault(name, {})[kind] = array.tobytes()
            for name, parts in pieces.items():
                delta.apply(bits_of(self._tensors[name]), parts)
        except (SafetensorError, KeyError, delta.DeltaError) as error:
            raise WeightsError(f"{file} is no delta of version {manifest.base}: {error}") from error


def read(directory: Path, version: int, key: bytes | None = None) -> Manifest:
    """The manifest of `version`, after its seal and the digest of its tensors were verified. Raises WeightsError."""
    path = folder(directory, version)
    manifest = read_manifest(path, key)
    _check_size(path / manifest.file, manifest)
    try:
        with (path / manifest.file).open("rb") as file:
            _check_digest(path / manifest.file, manifest, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise WeightsError(f"cannot read the weights at {path}: {error}") from error
    return manifest


def read_tensors(path: Path, key: bytes | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and complete tensors of the publication at `path`, both verified. Raises WeightsError."""
    return Reader(key).read(path)


def load_into(model: nn.Module, path: Path, key: bytes | None = None) -> Manifest:
    """Puts the publication at `path` into `model`, in place, after verifying all of it. Raises WeightsError, and then
    the model is as it was."""
    manifest, tensors = read_tensors(path, key)
    copy_into(model, tensors)
    return manifest


def copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors` over the model's own, in place, so optimizers and caches that refer to them go on working.

    The set must be the model's `distinct` one in names and shapes; a floating type may differ (a generator in bfloat16
    under a learner in float32). All of it is compared before the first copy. Raises WeightsError naming the difference.
    """
    own = distinct(model)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise WeightsError(f"not this model's weights: missing {_some(missing)}; unexpected {_some(unexpected)}")
    wrong = [
        f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, the model has {tensor.dtype} {list(tensor.shape)}"
        for name, tensor in own.items()
        if tensors[name].shape != tensor.shape
        or (
            tensors[name].dtype != tensor.dtype
            and not (tensors[name].is_floating_point() and tensor.is_floating_point())
        )
    ]
    if wrong:
        raise WeightsError(f"not this model's weights: {_some(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _read_into(source: Any, target: memoryview, digest: Any) -> None:
    """Fills `target` from the file, hashing as it goes. A file that ends early shows in the digest."""
    for start in range(0, len(target), CHUNK_BYTES):
        part = target[start : start + CHUNK_BYTES]
        got = 0
        while got < len(part) and (count := source.readinto(part[got:])):
            got += count
        digest.update(part[:got])


def _check_size(file: Path, manifest: Manifest) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise WeightsError(f"cannot read the weights at {file.parent}: {error}") from error
    if size != manifest.bytes:
        raise WeightsError(f"{file} has {size:,} bytes, its manifest says {manifest.bytes:,}")


def _check_digest(file: Path, manifest: Manifest, found: str) -> None:
    if f"sha256:{found}" != manifest.digest:
        raise WeightsError(f"{file} is damaged: digest sha256:{found}, its manifest says {manifest.digest}")


def _some(names: list[str], limit: int = 5) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
