"""The manifest of a publication: what it holds, what it is a difference to, and the seal that says who made it.

The seal is an HMAC-SHA256 (RFC 2104) under the run's secret, over all other fields. They hold the digest of the tensors and, of a
delta, the seal of its base: one seal therefore stands for a whole chain back to its full version, and whoever can write
into the folder without knowing the secret can stop a run but not feed it weights. Every process of a run that reads weights has
the secret (`weights.key` in the run's folder, mode 0600) and could forge: they are trusted with more than that already.

Without a secret the seal is a plain SHA-256. That finds damage and proves no origin; a reader that has a secret refuses it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

MANIFEST: Final = "manifest.json"
TENSORS: Final = "model.safetensors"
DELTA: Final = "delta.safetensors"
FOLDER: Final = re.compile(r"v(\d{8,12})")
MAX_MANIFEST_BYTES: Final = 64 * 2**20


class WeightsError(Exception):
    """A publication is missing, damaged, foreign, or does not fit; the message names the place and the difference."""


class TensorEntry(Struct, frozen=True):
    name: str
    dtype: str  # as torch writes it, without the "torch."
    shape: list[int]


class Probe(Struct, frozen=True):
    """A known completion and what the publisher's own weights make of it: ln p of each token, at temperature 1."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float] = []


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What a publication holds. `bytes` and `digest` are of its one file of tensors, `seal` is of the other fields."""

    version: int
    step: int  # optimizer steps behind these weights; after a rollback steps repeat and versions do not
    base: int | None  # the version that these are a difference to; None: complete
    base_seal: str  # the base's seal, "" where there is none
    tensors: list[TensorEntry]  # of the complete weights, in the order of the file
    bytes: int
    digest: str  # "sha256:" and hex
    created: str  # UTC, ISO 8601
    created_by: str
    probes: list[Probe] = []
    seal: str = ""  # "hmac-sha256:KEY:" or "sha256:", and hex; KEY names the secret without giving it away

    @property
    def file(self) -> str:
        """The name of the file of tensors."""
        return TENSORS if self.base is None else DELTA


def folder(directory: Path, version: int) -> Path:
    """Where `version` stands or would stand in `directory`."""
    return directory / f"v{version:08d}"


def sealed(manifest: Manifest, key: bytes | None) -> Manifest:
    """The manifest with its seal under the secret `key`; under None with a plain digest."""
    content = msgspec.json.encode(msgspec.structs.replace(manifest, seal=""))
    if key is None:
        return msgspec.structs.replace(manifest, seal=f"sha256:{hashlib.sha256(content).hexdigest()}")
    seal = hmac.new(key, content, hashlib.sha256).hexdigest()
    return msgspec.structs.replace(manifest, seal=f"hmac-sha256:{name_of(key)}:{seal}")


def name_of(key: bytes) -> str:
    """Tells one secret from another."""
    return hmac.new(key, b"name of this key", hashlib.sha256).hexdigest()[:8]


def read_manifest(path: Path, key: bytes | None = None) -> Manifest:
    """The manifest of the publication at `path`, its seal verified; the tensors are not looked at. Raises WeightsError."""
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise WeightsError(f"{file} has {file.stat().st_size:,} bytes, {MAX_MANIFEST_BYTES:,} may be")
        raw = file.read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
    except OSError as error:
        raise WeightsError(f"cannot read the weights at {path}: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{file} is no manifest: {error}") from error
    _verify_seal(file, raw, manifest, key)
    if path.name != folder(path.parent, manifest.version).name:
        raise WeightsError(f"{path} holds the manifest of version {manifest.version}")
    return manifest


def _verify_seal(file: Path, raw: bytes, manifest: Manifest, key: bytes | None) -> None:
    kind, _, rest = manifest.seal.partition(":")
    if key is not None and kind == "sha256":
        raise WeightsError(f"{file} is unsigned: it was not published by this run, which signs its weights")
    if key is not None and kind == "hmac-sha256" and rest.partition(":")[0] != name_of(key):
        raise WeightsError(f"{file} is signed with key {rest.partition(':')[0]!r}, this run's key is {name_of(key)!r}")
    if key is None and kind == "hmac-sha256":
        raise WeightsError(f"{file} is signed; the run's weights.key is needed to verify it")
    # Compared as bytes too: a damaged byte may still decode to the same value.
    if not hmac.compare_digest(manifest.seal.encode(), sealed(manifest, key).seal.encode()) or raw != encoded(manifest):
        raise WeightsError(f"{file} was altered: its seal does not match")


def encoded(manifest: Manifest) -> bytes:
    """The manifest's file."""
    return msgspec.json.encode(manifest)
