"""From an edited session to what the learner sees: the person's tokens are read and stand in no loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving import DEADLINE_S, Place, Serving

from safeladder.actors.actor import Delivery
from safeladder.actors.demonstrator import Demonstrator, cut
from safeladder.actors.places import Preparation
from safeladder.actors.verifier import VerifierPool
from safeladder.launch.config import Config
from safeladder.launch.sections import Policy
from safeladder.launch.tasks import parse
from safeladder.policies import model as models
from safeladder.policies.options import StepOptions
from safeladder.policies.recipe import Family, Recipe, Term
from safeladder.policies.search.edits import records
from safeladder.policies.search.edits.session import Session, SessionStep
from safeladder.policies.step import LearnerStep
from safeladder.protocol import codec
from safeladder.protocol import messages as m
from safeladder.protocol.transport import CallError

EDIT = "Count the fruits. <|im_end|>\n\n"


def exported(accepted: bool = True) -> m.Record:
    """A session as the gateway exports it, read back as the feeder reads a task file."""
    session = Session("session-1", "ada", m.Question("How many?"), [], gate=0.1)
    session.go_on([SessionStep("s1", "I guess.\n\n"), SessionStep("s2", "Seven.")], "I guess.\n\nSeven.", None)
    draft = session.draft("insert", "s1", "x", None, lambda text: [0], "\n\n")
    assert draft.step is not None
    draft.step.text = EDIT  # as if nothing had been taken out of it
    session.apply(draft, {}, at=0.0)
    session.go_on([SessionStep("s4", "There are three.")], "…", None)
    if accepted:
        session.accept()
    [line] = records.lines([records.record(session, "Be brief.", "<think>", "en")]).decode().splitlines()
    return parse(line, "export")


def demonstrated(place: Place, record: m.Record) -> tuple[m.Group, codec.Arrays]:
    group = m.Group(record, m.Sampling(samples=1), min_version=4)
    parcel = codec.pack(group, id="w", route=["demonstrator", "rules"], lane="training")
    made, arrays = codec.unpack(place.client.call(parcel, DEADLINE_S).result(DEADLINE_S))
    assert isinstance(made, m.Group)
    return made, arrays


def test_an_exported_session_trains_the_policys_own_tokens_alone(place: Place) -> None:
    config = Config(policy=Policy(model="tiny"))
    model, tokenizer = models.load(models.resolve("tiny"))
    rules = VerifierPool.Options(verifiers={"repetition": {}})
    with (
        Serving(place, Demonstrator, config=config, queue="demonstrator"),
        Serving(place, VerifierPool, config=config, options=rules, queue="rules"),
    ):
        group, arrays = demonstrated(place, exported())
        with pytest.raises(CallError, match="not accepted"):
            demonstrated(place, exported(accepted=False))
    own = arrays["own"].astype(bool)
    assert tokenizer.decode(arrays["completion_ids"][~own]) == EDIT
    assert tokenizer.eos_token_id not in arrays["completion_ids"][~own], "a spelled out special token is text"
    assert tokenizer.decode(arrays["completion_ids"][own], skip_special_tokens=True) == "I guess.\n\nThere are three."
    assert "Be brief." in tokenizer.decode(arrays["prompt_ids"]) and group.prefix == "<think>"

    recipe = Recipe({"edited": Family(["demonstrator", "rules", "learner"], {"repetition": Term(1.0)})})
    work = m.Work("w", ["learner"], codec.pack(group, id="w", route=["learner"]).work.payload)
    config.learner.reference_kl = 0.0
    training = Preparation(config, recipe, None).place(Delivery(1, 1, work, group, arrays, None)).training  # type: ignore[arg-type]
    assert training.kept is not None and np.array_equal(training.kept[0], own)

    options: dict[str, Any] = {"objective": {"sft": {}}, "advantage": {"ones": {}}, "correction": {"off": {}}}
    learner = LearnerStep(model, StepOptions(**options, learning_rate=1e-2, reference_kl=0.0))
    reports = [learner.train([training], version=4) for _ in range(4)]
    assert reports[0].trained_tokens == int(own.sum())
    assert reports[-1].policy_loss < reports[0].policy_loss - 0.1, "the demonstration is learned"


def test_what_an_environment_replied_in_a_trajectory_is_not_the_policys_own() -> None:
    first, reply, last = (
        "I look it up.</think>\n<search>who wrote it</search>",
        "\n<results>\n[1] A page\n</results>\n<think>",
        "Ada did.</think>\n<confidence>high</confidence>\n<answer>Ada</answer>",
    )
    parts = cut(first + reply + last, "<think>")
    assert [(part.text, part.own) for part in parts] == [(first, True), (reply, False), (last, True)]
