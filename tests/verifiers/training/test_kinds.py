"""The kinds of training, each run whole with the tiny model: what they write judges what they were taught."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from safeladder.launch.cli import main
from safeladder.launch.config import ConfigError
from safeladder.launch.train_verifier import plan
from safeladder.protocol.messages import Record
from safeladder.verifiers.contract import Item, run
from safeladder.verifiers.registry import BadOptions, create
from safeladder.verifiers.training import judge, value_model
from safeladder.verifiers.training.cost_loss import cost_loss
from safeladder.verifiers.training.stages.prepare import DataError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("models"))


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """Two answers to each of forty prompts, one harmful by its last word."""
    path = tmp_path / "answers.jsonl"
    lines = [
        {"prompt": f"what now {n * 7919}", "response": f"{n * 104729} {word}", "harmful": truth, "source": "s"}
        for n in range(40)
        for word, truth in (("poison", 1), ("sugar", 0))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def configured(folder: Path, **settings: object) -> value_model.HeldOut:
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({"output": str(folder / "out"), **settings}))
    found = plan(path)
    return found.train(found.config)


def test_a_cost_model_ranks_what_it_was_taught_and_judges_with_it(tmp_path: Path, cache: str, answers: str) -> None:
    data = {"files": [answers], "test": 0.3, "near": 1.0}
    report = configured(tmp_path, kind="cost", data=data, features="tiny", cache=cache, epochs=30, batch=8)
    assert report.rows["test pairs"] >= 5
    assert report.numbers["pairs in the right order"] == 1.0
    assert report.figures["all"].auroc == 1.0 and report.figures["all"].accuracy[0] > 0.9
    verifier = create("cost", {"folder": str(tmp_path / "out"), "cache": cache})
    record = Record(id="r", label="safety", prompt="what now 3")
    bad, good = run([verifier], [Item(record, "3 poison", 0), Item(record, "3 sugar", 1)], 60)
    assert (bad.label, good.label) == ("harmful", "harmless")
    assert 0 <= (bad.score or 0) < 0.5 < (good.score or 0) <= 1
    assert bad.version.startswith("1-")


def test_features_that_are_trained_travel_with_the_cost_model(tmp_path: Path, cache: str, answers: str) -> None:
    configured(
        tmp_path,
        kind="cost",
        data={"files": [answers], "near": 1.0},
        features="tiny",
        train_features=True,
        cache=cache,
        epochs=1,
    )
    assert (tmp_path / "out" / "features" / "model.safetensors").is_file()
    verifier = create("cost", {"folder": str(tmp_path / "out")})
    (verdict,) = run([verifier], [Item(Record(id="r", label="safety", prompt="p"), "a")], 60)
    assert verdict.status == "ok"


def test_the_loss_of_a_cost_model_is_the_papers() -> None:
    better, worse = torch.tensor([0.3, -1.0], requires_grad=True), torch.tensor([0.7, 2.0], requires_grad=True)
    signs = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0])  # the second pair: both harmful, one of them more

    def s(x: float) -> float:
        return -math.log(1 / (1 + math.exp(-x)))

    expected = (s(0.7 - 0.3) + s(0.7) + s(-0.3) + s(2.0 + 1.0) + s(2.0) + s(-1.0)) / 2
    loss = cost_loss(better, worse, *signs)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    unsigned = cost_loss(better, worse, torch.zeros(2), torch.zeros(2))
    assert float(unsigned.detach()) == pytest.approx((s(0.4) + s(3.0)) / 2, rel=1e-6)
    gradient = torch.autograd.grad(loss, [better, worse])
    assert gradient[0][0] > 0 > gradient[1][0]  # downhill: the better answer's cost falls, the worse one's rises


def test_a_judge_learns_to_say_the_label_string(tmp_path: Path, cache: str, answers: str) -> None:
    report = configured(
        tmp_path,
        kind="judge",
        data={"files": [answers], "test": 0.3, "near": 1.0},
        model="tiny",
        cache=cache,
        template="word_verifier:ask",
        steps=40,
        batch=8,
        learning_rate=5e-3,
    )
    assert report.numbers["accuracy after"] > 0.9 > report.numbers["accuracy before"]
    assert {"bad", "good"} == set(report.figures)
    assert report.rows["shown as bad"] == report.rows["shown as good"]
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "tokenizer.json").is_file()


def test_classes_are_drawn_equally_often_and_rows_without_repetition() -> None:
    import random

    drawn = judge.balanced(["a"] * 9 + ["b"] * 3, random.Random(0))
    first = [next(drawn) for _ in range(18)]
    assert sorted(i for i in first if i < 9) == list(range(9))
    assert sorted(i for i in first if i >= 9) == sorted([9, 10, 11] * 3)


def test_a_template_that_cannot_be_found_is_named() -> None:
    with pytest.raises(judge.TemplateError, match="no_such"):
        judge.find_template("no_such:thing")
    with pytest.raises(judge.TemplateError, match="module:function"):
        judge.find_template("json")


def test_a_value_model_is_fitted_round_by_round_on_prefixes_and_judges_them(tmp_path: Path, cache: str) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        "".join(json.dumps({"id": str(n), "label": "safety", "prompt": f"say {n * 7919}"}) + "\n" for n in range(6))
    )
    settings = {
        "kind": "value_model",
        "tasks": [str(tasks)],
        "dimensions": {
            "safety": {"verifier": "length", "options": {"max_characters": 60, "buffer": 60}},
            "value": {"verifier": "repetition"},
        },
        "policy": "tiny",
        "features": "tiny",
        "cache": cache,
        "test": 0.5,
        "rounds": 2,
        "cuts": 2,
        "continuations": 2,
        "candidates": 2,
        "step_tokens": 6,
        "total_tokens": 12,
        "epochs": 3,
    }
    report = configured(tmp_path, **settings)
    assert report.rows["train prefixes"] > 0 < report.rows["test prefixes"]
    assert sum(report.rows.values()) == 6 * 2 * 2
    assert any(name.startswith("safety: Brier, round 2") for name in report.numbers)
    again = configured(tmp_path, **settings)
    assert again.plain() == report.plain()  # everything follows from the seed
    verifier = create("value_model", {"folder": str(tmp_path / "out"), "dimension": "value", "cache": cache})
    (verdict,) = run([verifier], [Item(Record(id="r", label="safety", prompt="say"), "one step\n\n")], 60)
    assert verdict.status == "ok" and verdict.target == "step" and 0 < (verdict.score or 0) < 1
    with pytest.raises(ValueError, match="not knowledge"):
        create("value_model", {"folder": str(tmp_path / "out"), "dimension": "knowledge"})


def test_a_prefix_is_labelled_by_its_scores_alone() -> None:
    assert value_model.mean_score([1.0, None, 0.5]) == 0.75
    assert math.isnan(value_model.mean_score([1.0, None, None]))
    assert math.isnan(value_model.mean_score([None]))


def test_an_unknown_label_stands_in_no_loss() -> None:
    rows, nan = torch.eye(4), float("nan")
    config = value_model.Config(output="x", epochs=400, learning_rate=0.02, weight_decay=0.0)
    head = value_model.fit(rows, torch.tensor([[1.0, nan], [0.0, nan], [1.0, 0.25], [0.0, 0.25]]), config)
    found = torch.sigmoid(head(rows))
    assert found[:, 0].tolist() == pytest.approx([1, 0, 1, 0], abs=0.1)
    assert found[2:, 1].tolist() == pytest.approx([0.25, 0.25], abs=0.05)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({}, "kind: is missing"),
        ({"kind": "jugde"}, "did you mean 'judge'"),
        ({"kind": "cost", "output": "o", "epoch": 3}, "epoch: unknown key; did you mean 'epochs'"),
        ({"kind": "cost", "output": "o", "data": {"file": ["x"]}}, "data.file: unknown key; did you mean 'files'"),
        ({"kind": "cost", "output": "o", "epochs": 0}, "epochs: must be at least 1"),
        ({"kind": "judge", "output": "o", "steps": "many"}, "steps"),
        ({"kind": "cost"}, "output"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(
    tmp_path: Path, settings: dict[str, object], hint: str
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=hint):
        plan(path)


def test_models_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadOptions, match="folder"):
        create("cost")
    with pytest.raises(ValueError, match="train-verifier"):
        create("cost", {"folder": str(tmp_path)})
    with pytest.raises(DataError, match="dimensions is empty"):
        value_model.train(value_model.Config(output=str(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [("heads", "epochs=2", "takes no key=value"), ("cost", "--no-folds", "are of the kind `heads`")],
)
def test_what_a_kind_would_not_read_is_refused_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, given: str, said: str
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"kind: {kind}\n")
    assert main(["train-verifier", str(path), given]) == 78
    assert said in capsys.readouterr().err
