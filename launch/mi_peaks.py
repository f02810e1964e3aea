"""`safeladder mi-peaks`: what a rung did to the information peaks of a policy's thoughts.

Each of two models answers the same items greedily. A token's state is the last layer's before the head, read while the model sees
prompt and thought; the answer's is that of the reference's last token, with the reference in place of the thought (ours: MI-Peaks
leaves open how a short reference is read). `policies/mi_peaks.py` has the estimate and the peaks. It stands in
`launch/` because it loads models and writes files.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safeladder.launch.config import ConfigError
from safeladder.launch.export.sink import needed
from safeladder.launch.readers import rows
from safeladder.launch.sections import Columns
from safeladder.policies import model as models
from safeladder.policies.engines.registry import create
from safeladder.policies.mi_peaks import TokenAtPeaks, peaks, tokens_at_peaks, trajectory
from safeladder.policies.thought import thought_length
from safeladder.protocol.messages import Sampling

GENERATE_S = 120.0  # for one item


class ItemError(ConfigError):
    """An item that cannot be analysed; the message names file, line and field."""


@dataclass(frozen=True)
class Request:
    """before, after: what `policy.model` takes. prefix: text that every thought continues."""

    before: str
    after: str
    items: Path
    out: Path
    system: str | None = None
    prefix: str = "<think>"
    max_new_tokens: int = 96


@dataclass(frozen=True)
class Item:
    id: str
    prompt: str
    reference: str


@dataclass(frozen=True)
class Thought:
    """The tokens of one item's thought, their estimates, and which positions are peaks."""

    id: str
    tokens: list[str]
    values: list[float]
    peaks: list[int]


@dataclass(frozen=True)
class Analysis:
    """What one model came to. share: peaks over tokens. mean, at_peaks: of the estimates, over all tokens and at peaks."""

    model: str
    thoughts: list[Thought]
    count: int
    share: float
    mean: float
    at_peaks: float | None
    tokens: list[TokenAtPeaks]


def read_items(path: Path) -> list[Item]:
    """Records with `prompt` and `reference` (a text, or a list of which the first is taken). Raises ItemError."""
    items = []
    for where, record in rows(str(path), path, Columns()):
        prompt, reference = record.get("prompt"), record.get("reference")
        if isinstance(reference, list) and reference:
            reference = reference[0]
        for name, value in (("prompt", prompt), ("reference", reference)):
            if not isinstance(value, str) or not value.strip():
                raise ItemError(f"{where}: {name}: a text is needed here, not {value!r}")
        items.append(Item(str(record.get("id", where)), str(prompt), str(reference)))
    if not items:
        raise ItemError(f"{path}: no items")
    return items


def analyse(request: Request) -> dict[str, Analysis]:
    """Both models, `before` and `after`; writes mi-peaks.json and mi-peaks.png into `request.out`.

    Raises ConfigError without matplotlib, ItemError.
    """
    items = read_items(request.items)
    needed("matplotlib", "plots")  # told before both models have answered
    found = {
        "before": _of_model(request.before, items, request),
        "after": _of_model(request.after, items, request),
    }
    request.out.mkdir(parents=True, exist_ok=True)
    plain = {name: dataclasses.asdict(analysis) for name, analysis in found.items()}
    (request.out / "mi-peaks.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False))
    draw(found, request.out / "mi-peaks.png")
    return found


# --------------------------------------------------------------------------------------------------------- one model


def _of_model(name: str, items: Sequence[Item], request: Request) -> Analysis:
    folder = models.resolve(name)
    tokenizer = models.load_tokenizer(folder)
    prompts = [models.encode_prompt(tokenizer, item.prompt, request.system, request.prefix) for item in items]
    written = asyncio.run(_generate(folder, prompts, request))
    model, _ = models.load(folder)
    thoughts = []
    for item, prompt, tokens in zip(items, prompts, written, strict=True):
        thought = tokens[: thought_length(tokenizer, tokens)]
        reference = tokenizer(item.reference, add_special_tokens=False)["input_ids"]
        answer = _states(model, prompt, reference)[-1]
        values = trajectory(_states(model, prompt, thought), answer)
        texts = [tokenizer.decode([token]) for token in thought]
        thoughts.append(Thought(item.id, texts, [round(value, 6) for value in values], peaks(values)))
    return summarise(name, thoughts)


async def _generate(folder: Path, prompts: Sequence[Sequence[int]], request: Request) -> list[list[int]]:
    engine = create("transformers", folder)
    await engine.start()
    sampling = Sampling(max_new_tokens=request.max_new_tokens, temperature=0.0)
    try:
        async with asyncio.timeout(GENERATE_S * len(prompts)):
            found = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))
    finally:
        await engine.stop()
    return [sequences[0].token_ids for sequences in found]


@torch.no_grad()
def _states(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), d] the last layer's states at the tokens behind a prompt."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    states: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, len(prompt) :].float().cpu()


def summarise(name: str, thoughts: Sequence[Thought]) -> Analysis:
    values = [value for thought in thoughts for value in thought.values]
    high = [thought.values[place] for thought in thoughts for place in thought.peaks]
    return Analysis(
        model=name,
        thoughts=list(thoughts),
        count=len(values),
        share=len(high) / max(1, len(values)),
        mean=float(np.mean(values)) if values else 0.0,
        at_peaks=float(np.mean(high)) if high else None,
        tokens=tokens_at_peaks([thought.tokens for thought in thoughts], [thought.peaks for thought in thoughts]),
    )


# --------------------------------------------------------------------------------------------------------- what is said


def said(found: dict[str, Analysis]) -> str:
    """A few lines for the terminal."""
    lines = []
    for name, each in found.items():
        tokens = ", ".join(f"{row.token} {row.at_peaks}/{row.of}" for row in each.tokens[:8])
        mean = f"mean {each.mean:.3f}" + ("" if each.at_peaks is None else f", at peaks {each.at_peaks:.3f}")
        lines.append(
            f"{name} ({each.model}): {each.count} thinking tokens, {100 * each.share:.1f} % peaks, {mean}; {tokens}"
        )
    return "\n".join(lines)


def draw(found: dict[str, Analysis], path: Path) -> None:
    """The picture as PNG, a row a model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    for (curves, bars), (name, analysis) in zip(figure.subplots(2, 2, width_ratios=(2, 1)), found.items(), strict=True):
        _draw_thoughts(curves, analysis)
        curves.set_title(f"{name}: {len(analysis.thoughts)} thoughts, {100 * analysis.share:.1f} % of tokens are peaks")
        top = analysis.tokens[:12][::-1]
        bars.barh([row.token.replace("$", r"\$") for row in top], [row.at_peaks for row in top], color="#d55e00")
        bars.set(xlabel="times at a peak", title="tokens at peaks")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_thoughts(axes: Any, analysis: Analysis) -> None:
    """All trajectories faintly, their peaks as dots, and the highest ones with their tokens."""
    for thought in analysis.thoughts:
        axes.plot(thought.values, color="#0072b2", alpha=0.25, linewidth=0.8)
        axes.plot(thought.peaks, [thought.values[place] for place in thought.peaks], "o", color="#d55e00", markersize=3)
    marked = [(t.values[place], place, t.tokens[place]) for t in analysis.thoughts for place in t.peaks]
    for value, place, token in sorted(marked, reverse=True)[:8]:
        axes.annotate(
            repr(token)[1:-1].strip().replace("$", r"\$"), (place, value), xytext=(3, 3), textcoords="offset points", fontsize=8
        )  # fmt: skip
    axes.set(xlabel="token of the thought", ylabel="dependence on the answer (HSIC)")
