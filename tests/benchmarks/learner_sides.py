"""The two sides of `learner.py`: one process trains with `LearnerStep`, the other with TRL's GRPOTrainer, on the same batches.

Each side is a process of its own, so that its peak memory is its own. It loads the model, makes a first step that is not timed
and tells some of its gradients, and then makes one step for every number of a batch that it hears, until it hears None. What
counts as a step:

* SafeLadder: all of `LearnerStep.train`, from rewards to changed weights.
* TRL: from its callback `on_step_begin` to `on_step_end`, less the time inside `_generate_and_score_completions`. That leaves its
  forward, loss, backward, clipping and optimizer; decoding, rewards, advantages and padding cost it nothing here. The given
  completions come in through its own `rollout_func`, the given rewards through its own `reward_funcs`.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from learner_cases import Batch
from numpy.typing import NDArray

LEARNING_RATE = 1e-6
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1e6  # the norm is computed as ever, and the gradients that are compared are not scaled
GRADIENTS = 5  # parameters whose gradients are compared, spread evenly over the model
NUMBERS = 200_000  # of each of them; whole gradients would show in the memory
MODULES = {"safeladder": ["safeladder.policies.step"], "trl": ["datasets", "trl.trainer.grpo_trainer"]}
RANDOM_MODELS = {  # shapes that need no download; names as on the command line
    "random-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
}


@dataclass(frozen=True)
class Side:
    """What a process is asked to do. micro_batch is TRL's, token_budget is SafeLadder's."""

    system: str  # "safeladder" or "trl"
    model: str
    device: str
    dtype: str
    threads: int
    batches: list[Batch]
    micro_batch: int = 0
    token_budget: int | None = None


def main(side: Side, pipe: Connection) -> None:
    """The process. Sends what the model is, then one dict a step, then its memory."""
    import torch

    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(side.threads)
    torch.manual_seed(0)
    for module in MODULES[side.system]:  # before the memory is read, so that only the step counts
        importlib.import_module(module)
    model, tokenizer = load_model(side.model, side.device)
    loaded = _memory(side.device, resident=True)
    pipe.send({"shape": shape_of(model)})
    {"safeladder": safeladder, "trl": trl}[side.system](side, model, tokenizer, pipe)
    peak = _memory(side.device)
    pipe.send({"peak": peak, "above_model": peak - loaded})


def load_model(name: str, device: str) -> tuple[Any, Any]:
    """Model in float32 and a tokenizer; random models take the small built-in tokenizer, which nothing here depends on."""
    from safeladder.policies.model import load, load_tokenizer, resolve

    if name not in RANDOM_MODELS:
        return load(resolve(name), device=device)
    from transformers import AutoModelForCausalLM, Qwen2Config

    model = AutoModelForCausalLM.from_config(Qwen2Config(**RANDOM_MODELS[name]))
    return model.to(device), load_tokenizer(resolve("tiny"))


def shape_of(model: Any) -> dict[str, int]:
    """What the count of floating point operations needs to know about a model."""
    from torch import nn

    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "body": sum(m.weight.numel() for m in linear),
        "head": head.weight.numel(),
        "attention": config.num_hidden_layers * config.num_attention_heads * width,
    }


# ---------------------------------------------------------------------------------------------------------- SafeLadder


def safeladder(side: Side, model: Any, tokenizer: Any, pipe: Connection) -> None:
    from safeladder.policies.step import LearnerStep

    learner = LearnerStep(model, step_options(side))
    batches = [safeladder_groups(model, batch, side.dtype) for batch in side.batches]
    first: dict[str, Any] = {}
    hook = learner.optimizer.register_step_pre_hook(lambda *_: first.update(gradients=gradients(model)))
    report = learner.train(batches[0])
    hook.remove()
    pipe.send({**first, "loss": report.loss})
    while (number := pipe.recv()) is not None:
        _synchronize(side.device)
        start = time.perf_counter()
        learner.train(batches[number])
        _synchronize(side.device)
        pipe.send({"seconds": time.perf_counter() - start})


def step_options(side: Side) -> Any:
    from safeladder.policies.step import StepOptions

    given: dict[str, Any] = {"token_budget": side.token_budget} if side.token_budget else {}
    if side.dtype != "float32":
        given["compute_dtype"] = side.dtype
    return StepOptions(
        learning_rate=LEARNING_RATE,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        max_gradient_norm=MAX_GRADIENT_NORM,
        reference_kl=0.0,
        **given,
    )


def safeladder_groups(model: Any, batch: Batch, dtype: str) -> list[Any]:
    """The batch as the learner gets it, sampled by the loaded model itself as far as its probabilities say."""
    import torch

    from safeladder.policies.batch import TrainingGroup
    from safeladder.policies.scoring import completion_logprobs

    groups = []
    for index, (prompt, completions) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            pairs = [(prompt.tolist(), tokens.tolist()) for tokens in completions]
            behaviour = [logprobs.cpu().numpy() for logprobs in completion_logprobs(model, pairs)]
        groups.append(
            TrainingGroup(
                id=f"g{index}",
                prompt_ids=prompt,
                completion_ids=completions,
                behaviour=behaviour,
                versions=[np.zeros(len(tokens), np.int32) for tokens in completions],
                rewards=batch.rewards[index],
                valid=np.ones(len(completions), np.bool_),
            )
        )
    return groups


# ----------------------------------------------------------------------------------------------------------------- TRL


def trl(side: Side, model: Any, tokenizer: Any, pipe: Connection) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    class Trainer(GRPOTrainer):  # type: ignore[misc]
        """TRL's trainer, with a clock around its preparation and a record of its loss."""

        preparation = 0.0
        losses: list[Any]

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            _synchronize(side.device)
            self.preparation += time.perf_counter() - start
            return output

        def training_step(self, *arguments: Any) -> Any:
            loss = super().training_step(*arguments)
            self.losses.append(loss)
            return loss

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Tells the seconds of every step but the first, and holds the loop until the next one is asked for."""

        batch = side.batches[0]

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            trainer.preparation, trainer.losses = 0.0, []
            _synchronize(side.device)
            self.start = time.perf_counter()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.first = {"gradients": gradients(model)}

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _synchronize(side.device)
            seconds = time.perf_counter() - self.start - trainer.preparation
            if state.global_step == 1:
                pipe.send({**self.first, "loss": float(sum(trainer.losses))})
            else:
                pipe.send({"seconds": seconds, "preparation": trainer.preparation})
            number = pipe.recv()
            control.should_training_stop = number is None
            self.batch = None if number is None else side.batches[number]

    folder = tempfile.mkdtemp()  # the trainer wants one; nothing is saved
    turns = Turns()
    trainer = Trainer(
        model=model,
        args=trl_options(side, folder),
        train_dataset=Dataset.from_dict({"prompt": [str(group) for group in range(len(turns.batch.prompts))]}),
        processing_class=tokenizer,
        reward_funcs=lambda prompts, given_reward, **_: given_reward,
        rollout_func=lambda prompts, trainer: given(turns.batch, prompts),
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    shutil.rmtree(folder)


def trl_options(side: Side, folder: str) -> Any:
    from trl import GRPOConfig

    batch = side.batches[0]
    each = len(batch.completions[0])
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=side.micro_batch,
        gradient_accumulation_steps=len(batch.prompts) * each // side.micro_batch,
        num_generations=each,
        max_completion_length=max(len(tokens) for b in side.batches for group in b.completions for tokens in group),
        max_steps=10_000,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRADIENT_NORM,
        beta=0.0,
        loss_type="dapo",  # mean over the tokens of the whole batch, SafeLadder's token_mean
        gradient_checkpointing=False,
        bf16=side.dtype == "bfloat16",
        use_cpu=side.device == "cpu",
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def given(batch: Batch, prompts: list[str]) -> dict[str, Any]:
    """In place of generation: the completions of every prompt (its group's number) one after the other, with their rewards."""
    times: dict[str, int] = {}
    output: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": None, "given_reward": []}
    for prompt in prompts:
        group, sample = int(prompt), times.get(prompt, 0)
        times[prompt] = sample + 1
        output["prompt_ids"].append(batch.prompts[group].tolist())
        output["completion_ids"].append(batch.completions[group][sample].tolist())
        output["given_reward"].append(float(batch.rewards[group][sample]))
    return output


# ------------------------------------------------------------------------------------------------------- what both use


def gradients(model: Any) -> dict[str, NDArray[np.float32]]:
    """The first numbers of the gradients of a few parameters, spread over the depth of the model."""
    held = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
    places = np.linspace(0, len(held) - 1, GRADIENTS).astype(int)
    return {held[i][0]: held[i][1].grad.flatten()[:NUMBERS].float().cpu().numpy().copy() for i in places}


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _memory(device: str, resident: bool = False) -> float:
    """Bytes: the most that this process has held so far, or what it holds now. On a GPU, what torch has allocated there."""
    if device == "cuda":
        import torch

        return float(torch.cuda.memory_allocated() if resident else torch.cuda.max_memory_allocated())
    if resident:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
