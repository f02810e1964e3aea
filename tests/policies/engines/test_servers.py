"""vLLM and SGLang, run for real where one of them is installed (`make test-engines`); elsewhere skipped."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

KIND = next((name for name in ("vllm", "sglang") if find_spec(name)), "")
if not KIND:
    pytest.skip(
        "neither vllm nor sglang is in this environment: `make engines`, `make test-engines`", allow_module_level=True
    )

pytest.register_assert_rewrite("conformance", "conformance_weights", "served")
from conformance import Conformance  # noqa: E402
from conformance_weights import WeightsConformance  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from safeladder.policies import model as models  # noqa: E402

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


class TestServer(Conformance):
    kind = KIND

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        """The built-in tiny model with heads of 32 features instead of 16, which vLLM's attention on a CPU does not have."""
        tiny, made = models.resolve("tiny"), tmp_path_factory.mktemp("models")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            LlamaForCausalLM(LlamaConfig.from_pretrained(tiny, head_dim=32)).save_pretrained(made)
        models.load_tokenizer(tiny).save_pretrained(made)
        return made

    if (
        KIND == "sglang"
    ):  # it takes top-p of the whole mass, not of what top-k left: the two together keep another set than ours

        @pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}])
        def test_truncation_leaves_out_what_it_names_and_the_logprob_says_so(self, served, options):
            super().test_truncation_leaves_out_what_it_names_and_the_logprob_says_so(served, options)


class TestServerOfTheRealModel(WeightsConformance):
    kind = KIND

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls):
        return models.resolve("embedded")
