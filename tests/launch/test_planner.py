"""The planner: published sizes, the large configurations that ship, and a refusal of what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeladder.launch import planner
from safeladder.launch.architectures import KNOWN, architecture, read
from safeladder.launch.check import check, failed
from safeladder.launch.cli import main
from safeladder.launch.config import load
from safeladder.launch.planner import Training, learner

LARGE = sorted((Path(planner.__file__).parent / "large").glob("*.yaml"))


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73.4),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29),
        ("OpenGVLab/InternVL3-78B", 78.4),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 70.6),
        ("embedded", 0.1345),
    ],
)
def test_parameters_are_those_that_are_published(model: str, billions: float) -> None:
    assert KNOWN[model].parameters / 1e9 == pytest.approx(billions, rel=0.005)


def test_a_folder_is_known_by_its_own_config() -> None:
    found = read(
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "vocab_size": 300,
        }
    )
    assert found is not None and (found.key, found.head_size) == (64, 16)
    assert read({"model_type": "mamba"}) is None and architecture("nobody/knows-this") is None


@pytest.mark.parametrize("file", LARGE, ids=lambda path: path.stem)
def test_a_large_configuration_stands_on_devices_of_80_gb_and_not_on_40(file: Path) -> None:
    config = load(file)
    assert check(config, elsewhere=80e9) == []
    found = check(config, elsewhere=40e9)
    assert failed(found) and any("would have to hold" in finding.message for finding in found)
    models = {each.model for each in planner.plan(config).models}
    assert config.policy.model in models and "SafeWork-RM-Value-72B" in models and not planner.plan(config).unknown


def test_pools_on_one_device_are_added_up() -> None:
    file = next(path for path in LARGE if "7b" in path.stem)
    (found,) = check(load(file, ["pools.reference.device=cuda:4"]), elsewhere=80e9)
    assert found.key in ("pools.generator", "pools.reference") and "generator 47 GB, reference 39 GB" in found.message


def test_the_command_says_on_how_many_devices_a_model_fits(capsys: pytest.CaptureFixture[str]) -> None:
    file = next(path for path in LARGE if "qwen2.5-vl-72b" in path.stem)
    assert main(["check", str(file), "--elsewhere", "80"]) == 0
    out = capsys.readouterr().out
    assert "8 devices" in out and "nothing to object to" in out
    assert main(["check", "--elsewhere", "80", str(file), "pools.learner.options.ranks=2"]) == 1


@given(st.integers(1, 6), st.integers(8, 4096), st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_more_devices_never_need_more_each_and_more_tokens_never_less(
    halvings: int, tokens: int, checkpointing: bool, dtype: str
) -> None:
    arch = KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"]
    one = Training(tokens=tokens, dtype=dtype, checkpointing=checkpointing)
    devices = 2**halvings
    assert learner(arch, one, 2 * devices).total <= learner(arch, one, devices).total
    assert learner(arch, Training(2 * tokens, dtype, checkpointing=checkpointing)).total >= learner(arch, one).total
