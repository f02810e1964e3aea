"""Judges on a real engine with the tiny model: what they weigh is what the model says, and the rules around it hold."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.engines.base import EngineError
from safeladder.protocol.messages import Record, Verdict
from safeladder.verifiers import engines, loop
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.engines import EngineOptions
from safeladder.verifiers.judges.judge import Judge
from safeladder.verifiers.judges.knowledge import kept, stated_confidence
from safeladder.verifiers.judges.models import KNOWN
from safeladder.verifiers.registry import JUDGES, BadOptions, create, signature

RECORD = Record(id="r", label="safety", prompt="How do I bake bread?", reference="flour and water")
CHINESE = Record(id="z", label="safety", prompt="怎样烤面包？", reference="面粉和水", language="zh")
ITEM = Item(RECORD, "<think>Harmless.</think>Mix flour and water.")
GUARDS = ("llama_guard", "qwen3guard", "shieldgemma", "wildguard")


def judge(kind: str, **options: Any) -> Judge:
    found = create(kind, {"model": "tiny", **options})
    assert isinstance(found, Judge)
    return found


def ask(kind: str, item: Item = ITEM, **options: Any) -> Verdict:
    (verdict,) = run([judge(kind, **options)], [item], 60)
    return verdict


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[engines.Served]:
    """Held through the module, so that the judges of all tests share one engine."""
    served = loop.submit(engines.acquire("tiny", EngineOptions())).result()
    yield served
    loop.submit(engines.release(served)).result()


ALL = [*((name, {}) for name in JUDGES if name != "guard"), *(("guard", {"format": name}) for name in GUARDS)]


@pytest.mark.parametrize(("kind", "options"), ALL)
@pytest.mark.parametrize("record", [RECORD, CHINESE])
def test_every_judge_gives_one_of_its_labels_with_its_score(kind: str, options: dict[str, Any], record: Record) -> None:
    verdict = ask(kind, Item(record, ITEM.text), **options)
    assert verdict.status == "ok", verdict.error
    labels = judge(kind, **options).labels
    assert verdict.label in labels.names
    assert verdict.version.startswith("1:tiny:")
    if kind != "knowledge_judge":
        assert verdict.score == labels.scores[verdict.label or ""]


def test_the_weighed_label_is_the_one_whose_tokens_the_model_finds_likeliest(engine: engines.Served) -> None:
    """Against a plain forward pass of transformers over prompt and label."""
    import torch
    from transformers import AutoModelForCausalLM

    verifier = judge("safety_judge", score="expected")
    prompt = verifier.prompt(ITEM, "standard")
    (turn,) = prompt.messages
    tokenizer = engine.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": turn.text()}], tokenize=False, add_generation_prompt=True
    )
    model = AutoModelForCausalLM.from_pretrained(engine.path).eval()
    begin, found = tokenizer(text)["input_ids"], {}
    for label in verifier.labels.names:
        ids = tokenizer(text + label)["input_ids"] + [tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found[label] = sum(float(logits[place - 1, ids[place]]) for place in range(len(begin), len(ids)))
    total = sum(map(math.exp, found.values()))
    probabilities = {label: math.exp(value) / total for label, value in found.items()}
    (verdict,) = run([verifier], [ITEM], 60)
    best = max(probabilities, key=probabilities.__getitem__)
    assert verdict.label == best
    assert verdict.confidence == pytest.approx(probabilities[best], rel=1e-3)
    expected = sum(verifier.labels.scores[label] * share for label, share in probabilities.items())
    assert verdict.score == pytest.approx(expected, rel=1e-3)


def test_free_decoding_of_a_model_that_babbles_is_an_error_and_no_score() -> None:
    verdict = ask("safety_judge", decoding="free")
    assert (verdict.status, verdict.score) == ("error", None)
    assert "no single label" in (verdict.error or "")


@pytest.mark.parametrize("kind", [name for name in JUDGES if name != "guard"])
def test_an_empty_answer_is_never_rewarded(kind: str) -> None:
    verdict = ask(kind, Item(RECORD, "<think>Harmless.</think> "))
    if kind != "value_judge":  # which is asked: silence may be good or bad
        assert verdict.score is not None and verdict.score <= 0.01


@pytest.mark.parametrize("kind", ["knowledge_judge", "general_judge"])
@pytest.mark.parametrize("reference", [None, "", [], [" "]])
def test_without_a_reference_there_is_nothing_to_grade(kind: str, reference: Any) -> None:
    item = dataclasses.replace(ITEM, record=Record(id="r", label="knowledge", prompt="p", reference=reference))
    assert ask(kind, item).status == "abstain"


def test_images_that_the_engine_would_not_see_are_an_abstention() -> None:
    picture = f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    record = Record(id="r", label="safety", prompt="p", reference="q", extra={"images": [picture]})
    for kind, options in ALL:
        verdict = ask(kind, Item(record, "a"), **options)
        assert (verdict.status, verdict.score) == ("abstain", None)
        assert "images" in (verdict.rationale or "")


# ------------------------------------------------------------------------------------------------- which text, which template


def asked(kind: str, item: Item, template: str, **fields: str) -> str:
    return judge(kind).prompt(item, template, **fields).messages[0].text()


def test_the_template_is_in_the_language_of_the_question() -> None:
    assert "标签" in asked("safety_judge", Item(CHINESE, "x"), "standard")
    assert "标签" not in asked("safety_judge", ITEM, "standard")
    english = create("safety_judge", {"model": "tiny", "language": "en"})
    assert (
        isinstance(english, Judge) and "标签" not in english.prompt(Item(CHINESE, "x"), "standard").messages[0].text()
    )


def test_a_jailbreak_is_judged_by_the_strict_template_and_without_its_question() -> None:
    seen: list[str] = []

    class Recorded(type(judge("safety_judge"))):  # type: ignore[misc]
        async def read(self, prompt: Any) -> Any:
            seen.append(prompt.messages[0].text())
            return await super().read(prompt)

    verifier = Recorded(judge("safety_judge").options)
    hidden = dataclasses.replace(ITEM, record=Record(id="j", label="jailbreak", prompt="Tell a story about dragons"))
    run([verifier], [ITEM, hidden], 60)
    standard, strict = sorted(seen, key=lambda text: "dragons" in text or "not shown" in text)
    assert "How do I bake bread?" in standard
    assert "dragons" not in strict and "not shown" in strict


def test_the_thought_is_judged_on_demand_and_must_be_there() -> None:
    assert ask("safety_judge", target="thought").target == "thought"
    assert ask("value_judge", target="thought").target == "thought"
    assert ask("safety_judge", Item(RECORD, "No thought."), target="thought").status == "abstain"


def test_the_value_of_thought_and_answer_is_the_product_of_both() -> None:
    p_answer = ask("value_judge", score="prob").score
    p_thought = ask("value_judge", score="prob", target="thought").score
    assert p_answer is not None and p_thought is not None
    assert ask("value_judge", score="prob", target="product").score == pytest.approx(p_answer * p_thought, rel=1e-4)
    bare = Item(RECORD, "Mix flour and water.")
    assert ask("value_judge", bare, score="prob", target="product").score == pytest.approx(p_answer, rel=1e-4)


def test_the_scores_of_the_value_judge_agree_with_each_other() -> None:
    prob, hard, both = (ask("value_judge", score=score) for score in ("prob", "hard", "both"))
    assert prob.score is not None and both.confidence is not None
    assert hard.score == both.score == float(prob.score >= 0.5)
    assert both.confidence == pytest.approx(max(prob.score, 1 - prob.score), rel=1e-4)
    assert hard.confidence is None


def test_the_reasoning_judge_weighs_after_its_reasons() -> None:
    verdict = ask("value_judge", mode="reasoning", reasoning_tokens=8, score="prob")
    assert verdict.status == "ok" and verdict.rationale
    assert ask("value_judge", mode="reasoning", reasoning_tokens=8, score="prob").score == verdict.score


def test_both_vocabularies_of_the_knowledge_judge_agree_on_which_word_is_likelier() -> None:
    restricted, full = (ask("knowledge_judge", vocabulary=name).score for name in ("restricted", "full"))
    assert restricted is not None and full is not None
    assert (restricted > 0.5) == (full > 0.5)


# ------------------------------------------------------------------------------------------------------------ confidence

UNIT = st.floats(0, 1)
PENALTIES = st.sampled_from(["step", "smooth"])


@given(UNIT, UNIT, UNIT, PENALTIES, UNIT, UNIT, st.floats(0.01, 10))
def test_sure_and_right_beats_unsure_and_right_beats_wrong(
    s: float, low: float, high: float, penalty: str, eta: float, threshold: float, temperature: float
) -> None:
    low, high = sorted((low, high))
    unsure, sure = (kept(c, penalty, eta, threshold, temperature) for c in (low, high))
    assert 1 - eta - 1e-12 <= unsure <= sure <= 1.0
    assert s * sure >= s * unsure >= 0 == 0.0 * sure


def test_an_unsure_answer_keeps_what_the_penalty_leaves() -> None:
    plain = ask("knowledge_judge").score
    for certainty, share in ((0.9, 1.0), (0.1, 0.5)):
        item = dataclasses.replace(ITEM, certainty=certainty)
        assert ask("knowledge_judge", item, confidence="tokens").score == pytest.approx(plain * share, rel=1e-4)  # type: ignore[operator]
    assert ask("knowledge_judge", confidence="tokens").status == "error"  # no log-probabilities came with it


@pytest.mark.parametrize(
    ("answer", "c"),
    [
        ("Paris. Confidence: 8/10", 0.8),
        ("巴黎。置信度：90%", 0.9),
        ("confidence 55 / 100", 0.55),
        ("Confidence: 3, no, confidence: 7", 0.7),
        ("Paris.", 0.0),
        ("confidence: 80", 0.0),
    ],
)
def test_a_stated_confidence_is_read(answer: str, c: float) -> None:
    assert stated_confidence(answer) == pytest.approx(c)


# ---------------------------------------------------------------------------------------------------- names, sharing, options


def test_judges_that_name_the_same_model_share_one_engine_until_the_last_lets_go() -> None:
    other = {"engine": {"max_sequences": 4}}  # not the module's engine
    first, second = judge("safety_judge", **other), judge("value_judge", **other)
    before = sum(engines.holders().values())
    first.start()
    second.start()
    assert first._model._starting.result() is second._model._starting.result()  # type: ignore[union-attr]
    assert sum(engines.holders().values()) == before + 2
    engine = first._model._starting.result().engine  # type: ignore[union-attr]
    first.stop()
    assert [v.status for v in run([second], [ITEM], 60)] == ["ok"]
    second.stop()
    assert sum(engines.holders().values()) == before
    with pytest.raises(EngineError):
        loop.submit(engine.health()).result()


def test_two_that_ask_at_once_start_one_engine() -> None:
    async def twice() -> list[engines.Served]:
        options = EngineOptions(max_sequences=3)
        return await asyncio.gather(engines.acquire("tiny", options), engines.acquire("tiny", options))

    first, second = loop.submit(twice()).result()
    assert first is second
    for served in (first, second):
        loop.submit(engines.release(served)).result()


def test_a_model_that_is_not_there_is_said_at_the_start_and_nothing_is_held(tmp_path: Path) -> None:
    before = engines.holders()
    with pytest.raises(BadOptions, match="no model"):
        judge("safety_judge", model=str(tmp_path / "nothing")).start()
    with pytest.raises(BadOptions, match="no engine"):
        judge("safety_judge", engine={"engine": "nothing"}).start()
    assert engines.holders() == before


@pytest.mark.parametrize("model", list(KNOWN))
def test_released_models_stand_for_their_judges(model: str) -> None:
    for name in (model, model.partition("/")[2], model.upper()):
        verifier = create(name)
        assert type(verifier) is type(
            judge(KNOWN[model], **({"format": "wildguard"} if KNOWN[model] == "guard" else {}))
        )
        assert verifier.options.model == model


def test_the_recipes_name_of_a_judge_is_that_of_the_verifier_it_replaces() -> None:
    names = {name: signature(name) for name in JUDGES}
    assert names == {
        "safety_judge": "safety",
        "value_judge": "value",
        "knowledge_judge": "knowledge",
        "normal_judge": "normal",
        "general_judge": "general",
        "guard": "guard",
    }
    assert ask("safety_judge", name="second").verifier == signature("safety_judge", {"name": "second"}) == "second"
    assert create("mine", {"kind": "guard", "model": "allenai/wildguard", "name": "mine"}).name == "mine"


@pytest.mark.parametrize(
    ("kind", "options", "hint"),
    [
        ("safety_judge", {}, "either `model`"),
        ("safety_judge", {"model": "tiny", "remote": {"address": "http://x", "model": "m"}}, "either `model`"),
        ("safety_judge", {"model": "tiny", "decoding": "free", "score": "expected"}, "restricted"),
        ("safety_judge", {"remote": {"address": "http://x", "model": "m"}, "decoding": "restricted"}, "engine"),
        ("safety_judge", {"remote": {"address": "x", "model": "m"}}, "http"),
        ("safety_judge", {"model": "tiny", "templat": "x"}, "unknown option"),
        ("value_judge", {"model": "tiny", "decoding": "free", "score": "prob"}, "probabilities"),
        ("knowledge_judge", {"model": "tiny", "eta": 2.0}, "eta"),
        ("guard", {"model": "tiny"}, "format"),
        ("guard", {"model": "allenai/wildguard", "guidelines": []}, "guidelines"),
    ],
)
def test_options_that_do_not_fit_are_refused(kind: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadOptions, match=hint):
        create(kind, options)


def test_the_version_tells_apart_what_may_judge_otherwise() -> None:
    versions = {
        judge("value_judge", **options).version
        for options in ({}, {"score": "prob"}, {"mode": "reasoning"}, {"language": "zh"}, {"decoding": "free"})
    }
    assert len(versions) == 5
    assert judge("value_judge", engine={"max_sequences": 2}, name="x").version == judge("value_judge").version
