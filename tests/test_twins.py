"""The tiny twins of the paper's models through every role, as real processes: images by hash, thoughts opened by a template, two ranks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from running import Running

from safeladder.launch.pictures import draw

PROMPTS = ["Say what the picture says.", "Name a colour.", "What is left out?", "Is it safe?"]
SEEN = [
    "recipe.families.normal.terms={repetition: 1.0, length: 1.0, visual_focus: {weight: 0.5, optional: true}}",
    "pools.rules.options.verifiers.visual_focus={}",
    "hub.durability=full",
]


def records(folder: Path, images: bool) -> Path:
    """Four records; with `images` the first two share one, by path and inline, the third has two, the fourth none."""
    png = [draw(text, items=1, width=60, size=8) for text in ("one", "two")]
    (folder / "pictures").mkdir()
    (folder / "pictures" / "one.png").write_bytes(png[0])
    inline = {"type": "image/png", "data": base64.b64encode(png[0]).decode()}
    shown: list[dict[str, Any]] = [
        {"image": "pictures/one.png", "caption": "the word one"},
        {"images": [inline]},
        {"images": ["pictures/one.png", f"data:image/png;base64,{base64.b64encode(png[1]).decode()}"]},
        {},
    ]
    lines = [
        json.dumps({"id": f"r{number}", "label": "normal", "prompt": prompt, **(extra if images else {})})
        for number, (prompt, extra) in enumerate(zip(PROMPTS, shown, strict=True))
    ]
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    return folder / "tasks.jsonl"


def trained(folder: Path, model: str, images: bool, *overrides: str) -> Running:
    """A run of two steps over the four records, which ends well and passes its audit."""
    tasks = records(folder, images)
    small = ["learner.steps=2", "staleness.eta=0", "sampling.max_new_tokens=12", "pools.searcher.replicas=0"]
    with Running(folder, f"policy.model={model}", f"data.tasks=[{tasks}]", *small, *overrides) as running:
        assert running.wait() == 0, running.said()
    steps = running.events("learner", "step.completed")
    assert len(steps) == 2 and running.audit().returncode == 0
    # generator and learner compute the same policy, also from the weights of the first step
    assert all(step["engine_drift"]["mean"] < 1e-4 for step in steps), [step["engine_drift"] for step in steps]
    assert running.summary()["staleness"]["max"] == 0
    return running


def store(running: Running) -> list[Path]:
    return [path for path in running.run.images.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("tiny-qwen-vl", ["pools.learner.options={ranks: 2}", "policy.freeze_vision=false"]),
        ("tiny-internvl", []),
    ],
)
def test_a_twin_that_sees_is_trained_through_every_role(tmp_path: Path, model: str, overrides: list[str]) -> None:
    running = trained(tmp_path, model, True, *SEEN, *overrides)
    assert len(store(running)) == 2  # of the five places that name an image, each file once
    journal = b"".join(path.read_bytes() for path in running.run.journal.parent.rglob("*") if path.is_file())
    assert all(path.name.encode() in journal for path in store(running))  # messages name an image
    assert b"\x89PNG" not in journal and b"iVBOR" not in journal  # and never carry it
    final = max(running.run.checkpoints.iterdir())
    assert transformers.AutoModelForImageTextToText.from_pretrained(final).config.model_type
    assert transformers.AutoImageProcessor.from_pretrained(final, backend="pil") is not None
    judged = [event["verdicts"]["visual_focus"] for event in running.events("rules", "group.judged")]
    assert any(set(each.get("statuses", ())) == {"abstain"} for each in judged)  # of the record without an image
    assert any("statuses" not in each for each in judged)


def test_the_twin_of_deepseek_llama_is_trained_through_every_role(tmp_path: Path) -> None:
    running = trained(tmp_path, "tiny-llama", False, 'policy.prefix="<think>\\n"', "logs.texts=true")
    assert store(running) == []
    assert len(running.events("generator", "group.texts")) == 4
