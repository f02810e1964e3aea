"""eta = 0 through processes, queues and published weights equals the one-page synchronous loop, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from running import TINY, Running
from safetensors.torch import load_file

from safeladder.launch.config import load, save_resolved

OVERRIDES = [
    "learner.steps=3",
    "learner.checkpoint_every=3",
    "staleness.eta=0",
    # one group in the batch at a time: what is decoded together must not depend on what arrives when
    "pools.generator.options.max_sequences=4",
]


def test_eta_zero_equals_the_synchronous_oracle_bit_for_bit(tmp_path: Path) -> None:
    with Running(tmp_path, *OVERRIDES) as running:
        assert running.wait() == 0, running.said()
        summary = running.summary()
    config = tmp_path / "oracle.yaml"
    save_resolved(load(TINY, OVERRIDES), config)
    oracle = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "oracle.py"), str(config), str(tmp_path / "oracle.safetensors")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert oracle.returncode == 0, oracle.stderr
    expected = load_file(tmp_path / "oracle.safetensors")
    trained = load_file(running.run.checkpoints / "step-00000003" / "model.safetensors")

    means = [float(word) for word in oracle.stdout.splitlines()[-1].split()]
    assert [round(step["reward_mean"], 6) for step in summary["per_step"]] == means
    assert len(set(means)) == 3, "rewards that do not vary would prove little"
    assert summary["staleness"]["max"] == 0
    assert set(trained) >= set(expected)
    different = [name for name, weight in expected.items() if not torch.equal(weight, trained[name])]
    assert not different
