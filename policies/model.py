"""How a policy is held: found by name, loaded, and spoken to through its chat template.

Everything here works on a plain folder of safetensors, config and tokenizer, which is also what a checkpoint is. Any
causal language model of `transformers` 5 with attention in every layer will do.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from safeladder.policies.builtin import BUILTIN, ModelError

__all__ = [
    "ModelError",
    "default_cache",
    "encode_prompt",
    "load",
    "load_tokenizer",
    "resolve",
]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUILD_DEADLINE_S: Final = 900.0
HUB_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What a model folder of the hub is made of. Pickled weights are left out on purpose.
HUB_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")

log = structlog.get_logger()

# Its bars would be drawn into the logs of every process that loads a model.
transformers_logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------- finding


def default_cache() -> Path:
    """Where built models are kept: `safeladder/models` below XDG_CACHE_HOME, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "safeladder" / "models"


def resolve(name: str, cache: Path | None = None) -> Path:
    """The folder of the model called `name`.

    `name` is, in this order: `embedded` or `tiny` (built into `cache` on first use), a local folder with a
    `config.json`, or a hub id `owner/name` (fetched by `huggingface_hub` into its own cache, which alone is asked when
    HF_HUB_OFFLINE is set). Raises ModelError saying what was tried.
    """
    if name in BUILTIN:
        return _built(name, cache or default_cache())
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"the folder {folder} holds no config.json, so it is not a model")
    if HUB_ID.fullmatch(name):
        return _fetched(name)
    raise ModelError(f"no model {name!r}: it is none of {sorted(BUILTIN)}, no local folder, and no hub id (owner/name)")


def _built(name: str, cache: Path) -> Path:
    """The built-in model's folder. It appears by a rename once complete, and one process builds while others wait."""
    folder_name, build = BUILTIN[name]
    folder = cache / folder_name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{folder_name}.lock", BUILD_DEADLINE_S):
        if folder.is_dir():
            return folder
        start = time.monotonic()
        log.info("model.building", model=name, folder=str(folder))
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder_name}.", suffix=".partial", dir=cache))
        try:
            build(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        log.info("model.built", model=name, folder=str(folder), seconds=round(time.monotonic() - start, 2))
    return folder


@contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Holds an exclusive file lock, which the kernel lets go of when its holder dies."""
    end = time.monotonic() + deadline_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ModelError(f"waited {deadline_s:.0f} s for {path}: another process holds it") from None
                time.sleep(0.05)
        yield


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # what huggingface_hub raises for no network, no such model, no access
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        raise ModelError(
            f"no model {name!r}: there is no such local folder, and the hub "
            f"({'its cache only: HF_HUB_OFFLINE is set' if offline else 'online'}) answered {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}. "
            f"Give a folder, or one of {sorted(BUILTIN)}, which need no network"
        ) from error


# ------------------------------------------------------------------------------------------------------- loading


def load(path: Path, dtype: str = "float32", device: str = "cpu") -> tuple[PreTrainedModel, Any]:
    """Model (evaluation mode: no dropout) and tokenizer of the folder `path`.

    `dtype` is float32, bfloat16 or float16. Raises ModelError for a folder without model or safetensors.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is none of {sorted(DTYPES)}")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {error}") from error
    return model.to(device).eval(), load_tokenizer(path)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of the folder `path`. Raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load a tokenizer from {path}: {error}") from error


def encode_prompt(
    tokenizer: Any,
    prompt: str,
    system: str | None = None,
    prefix: str = "",
    shots: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of a conversation that ends where the assistant is about to speak.

    `shots` are (user, assistant) pairs put before `prompt` as worked examples; `prefix` is text that the assistant has
    already begun with, which the completion continues. With `system` None the template's own default applies.
    Raises ModelError when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruction-tuned model, "
            "or put a chat_template.jinja into its folder"
        )
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in shots:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": prompt})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template has written every special token already, so the tokenizer must not add its own.
    ids: list[int] = tokenizer(text + prefix, add_special_tokens=False)["input_ids"]
    return ids
