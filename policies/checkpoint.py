"""Checkpoints: all that the learner needs to go on, in one folder that exists whole or not at all.

    step-00000010/
        config.json, model.safetensors, tokenizer files   loadable as they are by transformers
        optimizer.safetensors                             exp_avg.NAME, exp_avg_sq.NAME, step.NAME; random.torch
        state.json                                        `CheckpointState`
        manifest.json                                     size and digest of each file, written last

A checkpoint is written into a temporary folder, every file and the folder are synced, and the rename is the commit:
after a crash at any moment the newest folder with the right name is whole. Sizes are checked when the newest is looked
for, digests when it is read. No pickle: tensors are safetensors, the rest is JSON.

The learning rate and the other options of the optimizer are not stored: they follow from the run's configuration and
from the step. The random state stored is torch's on the CPU; the learner draws no random number on a device.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from safeladder.policies.ledger import sync_directory

COMMITTED: Final = re.compile(r"step-(\d{8,})")
TEMPORARY: Final = ".partial-"
MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")
RANDOM: Final = "random.torch"

logger = structlog.get_logger()


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or cannot be restored; what stood before still stands."""


class CheckpointState(Struct, omit_defaults=True):
    """What a learner must know beside tensors.

    step: optimizer steps made. version: of the weights in the checkpoint. ledger_head: hash of the ledger's entry of
    the last step. feeder_cursor: first sequence number not accounted for. config_digest: of the run's resolved
    configuration. extra: any JSON (constraint multipliers, counters).
    """

    step: int
    version: int
    ledger_head: str = ""
    feeder_cursor: int = 0
    config_digest: str = ""
    extra: dict[str, Any] = {}


class StoredFile(Struct, frozen=True):
    bytes: int
    digest: str  # blake2b, 32 bytes


class _Manifest(Struct):
    files: dict[str, StoredFile]


# ------------------------------------------------------------------------------------------------------- writing


def save(
    directory: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    state: CheckpointState,
) -> Path:
    """Commits a checkpoint and returns its folder, `directory`/step-XXXXXXXX. One process writes a directory.

    A folder of the same step, which a run that fell back past it may meet, is replaced.

    Raises CheckpointError when the disk refuses (full, read-only, over quota): the temporary folder is removed and
    every committed checkpoint is untouched. ValueError when `step` and `state.step` differ.
    """
    if step != state.step:
        raise ValueError(f"checkpoint of step {step} with the state of step {state.step}")
    directory = Path(directory)
    final = directory / f"step-{step:08d}"
    partial = directory / f"{TEMPORARY}{final.name}-{os.getpid()}-{threading.get_ident()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_partial(directory)
        partial.mkdir()
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
        (partial / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        _seal(partial)
        _commit(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {final}: {error}; "
            "earlier checkpoints are untouched, make room or correct the directory and go on from the newest"
        ) from error
    return final


def _optimizer_tensors(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name; a parameter that was never stepped has none."""
    tensors = {RANDOM: torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if kind not in MOMENTS:
                raise CheckpointError(f"optimizer state {kind!r} of {name} is not AdamW's: {', '.join(MOMENTS)}")
            tensors[f"{kind}.{name}"] = value.detach().contiguous()
    return tensors


def _seal(folder: Path) -> None:
    """Syncs and digests every file, then writes and syncs the manifest and the folder."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with ThreadPoolExecutor(max_workers=2) as threads:  # hashing and syncing release the interpreter lock
        stored = dict(zip((path.name for path in paths), threads.map(_sync_and_digest, paths), strict=True))
    manifest = folder / "manifest.json"
    manifest.write_bytes(msgspec.json.format(msgspec.json.encode(_Manifest(stored))))
    _sync_and_digest(manifest)
    sync_directory(folder)


def _commit(partial: Path, final: Path) -> None:
    aside = partial.with_name(f"{TEMPORARY}replaced-{final.name}")
    if final.exists():
        final.rename(aside)
    partial.rename(final)
    sync_directory(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_and_digest(path: Path) -> StoredFile:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return StoredFile(os.fstat(file.fileno()).st_size, _digest(file))


def _digest(file: Any) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _remove_partial(directory: Path) -> None:
    """What a crash left half written. This process is the only writer, so nobody is writing it now."""
    for left in directory.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- reading


def committed(directory: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest step first. A torn one is named in a warning and left out."""
    found: list[tuple[int, Path]] = []
    for path in Path(directory).iterdir() if Path(directory).is_dir() else ():
        name = COMMITTED.fullmatch(path.name)
        if name is None or not path.is_dir():
            continue
        fault = _fault(path)
        if fault is None:
            found.append((int(name[1]), path))
        else:
            logger.warning("checkpoint.ignored", path=str(path), reason=fault)
    return [path for _, path in sorted(found)]


def latest(directory: Path) -> Path | None:
    """The whole checkpoint with the largest step, or None."""
    return next(reversed(committed(directory)), None)


def read_state(path: Path) -> CheckpointState:
    """The state alone, without its tensors: what the audit reads. CheckpointError when it cannot be read."""
    try:
        return msgspec.json.decode((Path(path) / "state.json").read_bytes(), type=CheckpointState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}/state.json cannot be read: {error}") from error


def restore(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> CheckpointState:
    """Puts model, optimizer and torch's random state exactly back, in place: the next step is the same bit for bit.

    Every digest is verified before anything is changed. Raises CheckpointError when a file is missing or altered, or
    when the checkpoint is of another model.
    """
    path = Path(path)
    fault = _fault(path, digests=True)
    if fault is not None:
        raise CheckpointError(f"{path} is not whole: {fault}; restore from an earlier checkpoint")
    state = read_state(path)
    tensors = load_file(path / "optimizer.safetensors")
    random_state = tensors.pop(RANDOM)
    moments = _moments_by_name(tensors, model, path)
    _copy_weights(path, model)
    for name, parameter in model.named_parameters():
        optimizer.state.pop(parameter, None)
        if name in moments:
            optimizer.state[parameter] = {
                # torch keeps the step counter on the CPU unless the optimizer is fused on a device
                kind: value if kind == "step" else value.to(parameter.device)
                for kind, value in moments[name].items()
            }
    torch.set_rng_state(random_state)
    return state


def _copy_weights(path: Path, model: PreTrainedModel) -> None:
    """Reads through transformers, which knows how each architecture lays its files out, and copies in place."""
    stored, report = type(model).from_pretrained(path, dtype=model.dtype, output_loading_info=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    weights: Mapping[str, Tensor] = stored.state_dict()
    own = model.state_dict()
    if wrong or {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in weights.items()}:
        raise CheckpointError(f"{path} holds another model than {type(model).__name__}: {wrong or 'other shapes'}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _moments_by_name(tensors: Mapping[str, Tensor], model: PreTrainedModel, path: Path) -> dict[str, dict[str, Tensor]]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in MOMENTS or name not in shapes or (kind != "step" and tensor.shape != shapes[name]):
            raise CheckpointError(f"{path}/optimizer.safetensors: {key} does not belong to this model")
        moments.setdefault(name, {})[kind] = tensor
    return moments


def _fault(path: Path, digests: bool = False) -> str | None:
    """Why a folder is not a whole checkpoint, or None."""
    try:
        manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=_Manifest)
        for name, stored in manifest.files.items():
            size = (path / name).stat().st_size
            if size != stored.bytes:
                return f"{name} has {size} bytes instead of {stored.bytes}"
            if digests:
                with (path / name).open("rb") as file:
                    if _digest(file) != stored.digest:
                        return f"{name} was altered"
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------------------ retiring


def retire(directory: Path, keep: int) -> list[Path]:
    """Removes whole checkpoints but the `keep` (>= 1) newest, and returns what it removed.

    Each is renamed away first, so that a crash in the middle leaves no folder that looks committed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: the newest checkpoint is what a crash goes back to")
    removed: Iterable[Path] = committed(directory)[:-keep]
    for path in removed:
        aside = path.with_name(f"{TEMPORARY}retired-{path.name}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    return list(removed)
