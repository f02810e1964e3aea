"""Checkpoints: all that the learner needs to go on, in one folder that exists whole or not at all.

    step-00000010/
        config.json, model.safetensors, tokenizer files   loadable as they are by transformers
        adapter.safetensors                               of a policy with adapters: what is trained, bit for bit
        optimizer.safetensors                             exp_avg.NAME, exp_avg_sq.NAME, step.NAME; random.torch
        state.json                                        `CheckpointState`
        manifest.json                                     size and digest of each file, written last

A checkpoint is written into a temporary folder, every file and the folder are synced, and the rename is the commit:
after a crash at any moment the newest folder with the right name is whole. Sizes are checked when the newest is looked
for, digests when it is read. No pickle: tensors are safetensors, the rest is JSON.

It holds the plain model, however the learner holds it. With adapters model.safetensors is the merged policy, for others to
load; the learner itself goes on from adapter.safetensors over the base that the run began with, which is not stored.
Sharded over ranks, every tensor is gathered under its name and rank 0 writes, so that any number of ranks restores it.

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from safeladder.policies import lora, moments
from safeladder.policies.ledger import sync_directory
from safeladder.policies.parallel import plain_class
from safeladder.policies.ranks import Ranks
from safeladder.policies.tensors import Part, Stream, assign, write
from safeladder.policies.vision import Processor

COMMITTED: Final = re.compile(r"step-(\d{8,})")
TEMPORARY: Final = ".partial-"
RANDOM: Final = "random.torch"
ADAPTERS: Final = "adapter.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"

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
    ranks: Ranks | None = None,
    processor: Processor | None = None,
) -> Path:
    """Commits a checkpoint and returns its folder, `directory`/step-XXXXXXXX. One process writes a directory.

    A folder of the same step, which a run that fell back past it may meet, is replaced. All of `ranks` call this; the
    first one writes, and the others return, or raise, what it did.

    Raises CheckpointError when the disk refuses (full, read-only, over quota): the temporary folder is removed and
    every committed checkpoint is untouched. ValueError when `step` and `state.step` differ.
    """
    if step != state.step:
        raise ValueError(f"checkpoint of step {step} with the state of step {state.step}")
    ranks = ranks or Ranks.alone()
    final = Path(directory) / f"step-{step:08d}"
    # Gathered from all ranks one after the other, in this order, and to the end also when the disk refuses.
    try:
        kept = moments.parts(model, optimizer)
    except moments.MomentsError as error:
        raise CheckpointError(f"checkpoint of step {step}: {error}") from error
    random_state = {RANDOM: Part.of(torch.get_rng_state())}
    streams = [lora.merged_state(model), lora.adapter_state(model), Stream({**random_state, **kept})]
    with ranks.noticing("gathering a checkpoint"):
        fault = _write(final, model, tokenizer, processor, streams, state) if ranks.first else ""
        for stream in streams:
            stream.exhaust()
    fault = ranks.share(fault.encode()).decode()
    if fault:
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {final}: {fault}; "
            "earlier checkpoints are untouched, make room or correct the directory and go on from the newest"
        )
    return final


def _write(
    final: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    processor: Processor | None,
    streams: list[Stream],
    state: CheckpointState,
) -> str:
    """Writes and commits the folder; returns what the disk had against it, "" for nothing."""
    plain, adapters, kept = streams
    partial = final.parent / f"{TEMPORARY}{final.name}-{os.getpid()}-{threading.get_ident()}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_partial(final.parent)
        partial.mkdir()
        # Through transformers, which knows how each architecture lays its files out; it wants all tensors at once.
        model.save_pretrained(partial, state_dict=plain.collected())
        tokenizer.save_pretrained(partial)
        if processor is not None:
            processor.save(partial)
        attached = lora.attached(model)
        if attached is not None:
            write(partial / ADAPTERS, adapters, attached.metadata())
        write(partial / OPTIMIZER, kept)
        (partial / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        _seal(partial)
        _commit(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        return str(error)
    return ""


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

    A model with adapters must stand over the base that the run began with; its adapters are put back. A sharded one is
    restored by every rank for itself, from the same files, whatever number of ranks wrote them.

    Every digest is verified before anything is changed. Raises CheckpointError when a file is missing or altered, or
    when the checkpoint is of another model.
    """
    path = Path(path)
    fault = _fault(path, digests=True)
    if fault is not None:
        raise CheckpointError(f"{path} is not whole: {fault}; restore from an earlier checkpoint")
    state = read_state(path)
    adapters = _adapters(path, model)
    tensors = load_file(path / OPTIMIZER)
    random_state = tensors.pop(RANDOM)
    try:
        stored = moments.by_name(model, tensors)
    except moments.MomentsError as error:
        raise CheckpointError(f"{path / OPTIMIZER}: {error}") from error
    if adapters is not None:
        lora.load_adapter_state(model, adapters)
    else:
        _copy_weights(path, model)
    moments.put(model, optimizer, stored)
    torch.set_rng_state(random_state)
    return state


def _adapters(path: Path, model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The adapters in the checkpoint, checked against the model's; None where neither has any."""
    attached, stored = lora.attached(model) is not None, (path / ADAPTERS).exists()
    if attached != stored:
        raise CheckpointError(
            f"{path} holds {'adapters' if stored else 'a fully trained policy'} and the model has "
            f"{'adapters' if attached else 'none'}: go on as the run began, "
            "or begin another run with this folder as its model"
        )
    if not stored:
        return None
    with safe_open(path / ADAPTERS, framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    tensors: dict[str, Tensor] = load_file(path / ADAPTERS)
    try:
        lora.check_metadata(model, metadata)
        lora.check_adapter_state(model, tensors)
    except lora.LoraError as error:
        raise CheckpointError(f"{path / ADAPTERS} does not belong to this model: {error}") from error
    return tensors


def _copy_weights(path: Path, model: PreTrainedModel) -> None:
    """Reads through transformers, which knows how each architecture lays its files out, and copies in place."""
    kind: Any = plain_class(model)
    stored, report = kind.from_pretrained(path, dtype=model.dtype, output_loading_info=True)
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    weights: Mapping[str, Tensor] = stored.state_dict()
    own = model.state_dict()
    if wrong or {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in weights.items()}:
        raise CheckpointError(f"{path} holds another model than {kind.__name__}: {wrong or 'other shapes'}")
    for name, tensor in own.items():
        assign(tensor, weights[name])


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
