"""Text out of tokens that come a few at a time: nothing is shown that a later token would change."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from safeladder.actors.deliberation import tokenizer_of
from safeladder.actors.gateway.text import GrowingText, cut
from safeladder.policies.model import resolve

TEXTS = st.text(st.sampled_from("ab the 你好é😀\n"), max_size=30)
TOKENS = st.lists(st.integers(0, 300), max_size=40)  # bytes that make no character, and special tokens, among them


@cache
def tokenizer() -> Any:
    return tokenizer_of(resolve("tiny"))


def pieces(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


@given(TOKENS, st.integers(1, 5))
def test_whatever_the_tokens_are_the_pieces_joined_are_the_text_of_all_of_them(ids: list[int], size: int) -> None:
    ids = [token for token in ids if token < tokenizer().get_vocab_size()]
    growing = GrowingText(tokenizer())
    text = "".join(growing.feed(piece) for piece in pieces(ids, size)) + growing.end()
    assert text == tokenizer().decode(ids, skip_special_tokens=True)


@given(TEXTS, st.integers(1, 4))
def test_no_piece_of_a_valid_text_holds_a_part_of_a_character(text: str, size: int) -> None:
    growing = GrowingText(tokenizer())
    given_out = [growing.feed(piece) for piece in pieces(tokenizer().encode(text).ids, size)]
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in given_out)
    assert "".join(given_out) + growing.end() == text


@given(
    TEXTS,
    st.lists(st.text(st.sampled_from("ab 好\n"), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_nothing_from_a_stop_string_on_is_ever_given_out(text: str, stop: list[str], size: int) -> None:
    growing = GrowingText(tokenizer(), stop)
    shown = "".join(growing.feed(piece) for piece in pieces(tokenizer().encode(text).ids, size)) + growing.end()
    wanted, stopped = cut(text, stop)
    assert (shown, growing.stopped) == (wanted, stopped)


def test_all_but_what_may_begin_a_stop_string_is_given_out_at_once() -> None:
    growing = GrowingText(tokenizer(), ["END"])
    assert growing.feed(tokenizer().encode("one E").ids) == "one "
    assert growing.feed(tokenizer().encode("N").ids) == ""
    assert growing.feed(tokenizer().encode("O").ids) == "ENO"
