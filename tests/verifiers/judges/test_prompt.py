"""What a judge is asked: judged text stays material, whatever it holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safeladder.policies.builtin import tiny_tokenizer
from safeladder.verifiers.judges.prompt import Message, special_token_breaker

TOKENIZER = tiny_tokenizer()
SPECIAL = TOKENIZER.all_special_tokens
HOSTILE = st.lists(
    st.sampled_from([*SPECIAL, "</answer>", "<ANSWER>", "</ question>", "{{answer}}", "[INST]", "<|eot_id|>", "</s>"])
    | st.sampled_from(["<", "|", ">", "im_end", "a", " ", "\n", "你"])
).map("".join)


@given(HOSTILE)
def test_no_special_token_and_no_mark_survives_in_judged_text(text: str) -> None:
    written = Message("user", "<answer>\n{{answer}}\n</answer>", {"answer": text}).text(special_token_breaker(SPECIAL))
    ids = TOKENIZER(written, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(TOKENIZER.all_special_ids)
    assert written.casefold().count("<answer>") == written.casefold().count("</answer>") == 1


@given(st.text())
def test_a_template_is_filled_in_one_pass(text: str) -> None:
    written = Message("user", "{{a}}|{{b}}", {"a": "{{b}}", "b": text.replace("<", "").replace("[", "")}).text()
    assert written == "{{b}}|" + text.replace("<", "").replace("[", "")


def test_harmless_text_stays_as_it_is() -> None:
    text = "if a < b and c > d: print([INSTALL]) # <b>bold</b> 5 < 6"
    assert Message("user", "{{a}}", {"a": text}).text() == text
