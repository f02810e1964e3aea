"""The little learner of test_parallel.py and test_ranks.py, run with one rank in the tests' own process and with two in others."""

from __future__ import annotations

import os
import resource
import signal

import torch
from safetensors.torch import save_file

from safeladder.policies import checkpoint, lora, parallel, weights
from safeladder.policies.checkpoint import CheckpointError, CheckpointState
from safeladder.policies.model import load
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.tensors import full

OPTIONS = lora.LoraOptions(rank=3, alpha=6.0)  # 3 rows over 2 ranks: shares of unequal size


def make(folder, ranks, adapted):
    """Model, tokenizer and optimizer of a learner that has not begun."""
    model, tokenizer = load(folder)
    if adapted:
        lora.attach(model, OPTIONS)
    parallel.shard(model, ranks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, tokenizer, torch.optim.AdamW(trained, lr=1e-3, fused=True)


def packs(step, count=5):
    """Packs of (prompt, completion) pairs with an advantage each, of unequal lengths: five do not divide by two."""
    draw = torch.Generator().manual_seed(step)

    def tokens(least, most):
        length = int(torch.randint(least, most, (1,), generator=draw))
        return tuple(torch.randint(0, 300, (length,), generator=draw).tolist())

    result = []
    for _ in range(count):
        prompt = tokens(2, 6)
        result.append([((prompt, tokens(1, 12)), float(torch.randn(1, generator=draw))) for _ in range(3)])
    return result


def cost(pack):
    return len(pack[0][0][0]) + sum(len(completion) for (_, completion), _ in pack)


def backward(model, ranks, batch):
    """Adds the gradient of the batch; the loss is a sum over the denominator of the whole batch."""
    tokens = sum(len(completion) for pack in batch for (_, completion), _ in pack)
    for index in parallel.divide([cost(pack) for pack in batch], ranks.world)[ranks.rank]:
        if index is None:
            parallel.idle_pass(model)
            continue
        logprobs = completion_logprobs(model, [pair for pair, _ in batch[index]])
        loss = (
            sum(-advantage * part.sum() for part, (_, advantage) in zip(logprobs, batch[index], strict=True)) / tokens
        )
        torch.autograd.backward(loss)


def train(model, optimizer, ranks, steps):
    """Makes the given steps; returns gradients by parameter name, and the norm, of the last."""
    for step in steps:
        optimizer.zero_grad()
        backward(model, ranks, packs(step))
        gradients = {name: full(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
        norm = parallel.clip_gradient(model.parameters(), 0.5)
        optimizer.step()
    return gradients, norm


def scores_around_a_step(model, optimizer, ranks):
    """Scores after the gradient is there, before the step that uses it and after; every rank scores the same."""

    def scores():
        with torch.no_grad():
            return torch.cat(completion_logprobs(model, [pair for pair, _ in packs(0)[0]])).tolist()

    optimizer.zero_grad()
    backward(model, ranks, packs(3))
    before = scores()
    optimizer.step()
    return before, scores()


def save(directory, step, learner, ranks):
    model, tokenizer, optimizer = learner
    return checkpoint.save(
        directory, step, model, tokenizer, optimizer, CheckpointState(step=step, version=step), ranks
    )


# --------------------------------------------------------------------------------------------------------------- cases


def learn(ranks, folder, adapted=False):
    """Three steps with a checkpoint before the third; then the third again from a checkpoint that one rank wrote."""
    learner = model, _, optimizer = make(folder / "model", ranks, adapted)
    gradients, norm = train(model, optimizer, ranks, [0])
    if ranks.first:
        save_file(gradients, folder / "gradients.safetensors")
    train(model, optimizer, ranks, [1])
    save(folder / "two", 2, learner, ranks)
    train(model, optimizer, ranks, [2])
    publish(model, ranks, folder, 3)

    found = {"norm": norm, "disk": refused(learner, ranks, folder)}
    found["scores"] = scores_around_a_step(model, optimizer, ranks)
    other, _, moments = make(folder / "model", ranks, adapted)
    state = checkpoint.restore(folder / "one" / "step-00000002", other, moments)
    train(other, moments, ranks, [2])
    publish(other, ranks, folder, 4)
    share = sum(p.to_local().numel() for p in other.parameters()) / sum(p.numel() for p in other.parameters())
    return {**found, "restored": state.version, "share": share}


def learn_adapters(ranks, folder):
    return learn(ranks, folder, adapted=True)


def publish(model, ranks, folder, version):
    if ranks.first:
        weights.publish(model, folder / "weights", version)
    else:
        lora.merged_state(model).exhaust()


def refused(learner, ranks, folder):
    """The system refuses rank 0's files beyond a size; both ranks must hear of it, and can go on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.first:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        save(folder / "two", 3, learner, ranks)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


def lose(ranks, folder, ending, where):
    """Rank 1 ends or stops in the second step; rank 0 must come to know."""
    model, _, optimizer = make(folder / "model", ranks, adapted=False)
    train(model, optimizer, ranks, [0])
    if where == "message" and not ranks.first:
        os.kill(os.getpid(), ending)
    with ranks.noticing("the second step"):
        if where == "message":
            ranks.sum([1.0])  # a shared message may be on its way before its reader dies; a sum needs an answer
        elif ranks.first:
            train(model, optimizer, ranks, [1])
        else:
            completion_logprobs(model, [pair for pair, _ in packs(1)[0]])
            os.kill(os.getpid(), ending)
    return {}


def killed_in_backward(ranks, folder):
    return lose(ranks, folder, signal.SIGKILL, "backward")


def killed_before_message(ranks, folder):
    return lose(ranks, folder, signal.SIGKILL, "message")


def stopped_in_backward(ranks, folder):
    return lose(ranks, folder, signal.SIGSTOP, "backward")
