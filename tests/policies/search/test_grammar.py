"""The grammar of deliberation: what is written is read back, nothing makes the reader raise, and what is malformed is named."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeladder.policies.search.deliberate import grammar
from safeladder.policies.search.deliberate.grammar import Reply, Transcript, Turn, parse, parse_turn, render

CONTENTS = (
    st.text(alphabet=st.sampled_from("ab 7<>/{}\"'\n。，黑豹队的防守？[]:é"), min_size=1, max_size=30)
    .filter(lambda text: text.strip() and not grammar._TAG.search(text))
    .map(str.strip)
)
IDS = st.text(alphabet="abc-0123文", min_size=1, max_size=8)
PIECES = [f"<{slash}{tag}>" for tag in grammar.TAGS for slash in ("", "/")] + [
    "a",
    " ",
    "11",
    "7",
    "\n",
    "[",
    "文",
    "<think",
]
GOOD = (
    "<think>who?</think><confidence>2</confidence><search>黑豹队</search>\n"
    '<results>[{"id": "d1", "title": "t", "abstract": "a"}]\nTurns left: 3.</results>\n'
    "<think>read it</think><confidence>4</confidence><read>d1</read>\n<document>text</document>\n"
    "<think>now</think><confidence>10</confidence><answer>308</answer>"
)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Well-formed ones, in English and Chinese."""
    turns: list[Turn] = []
    known: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        think, confidence = draw(CONTENTS), draw(st.integers(0, 10))
        if known and draw(st.booleans()):
            reply = Reply("document", draw(CONTENTS))
            turns.append(Turn(think, confidence, "read", draw(st.sampled_from(known)), reply))
            continue
        found = draw(st.lists(IDS, max_size=3))
        known += found
        listing = grammar.listing([(identity, draw(CONTENTS), draw(CONTENTS)) for identity in found])
        turns.append(Turn(think, confidence, "search", draw(CONTENTS), Reply("results", f"{listing}\nTurns left: 2.")))
    turns.append(Turn(draw(CONTENTS), draw(st.integers(0, 10)), "answer", draw(CONTENTS)))
    return Transcript(tuple(turns))


@given(transcripts())
def test_what_is_written_is_read_back(transcript: Transcript) -> None:
    read = parse(render(transcript))
    assert read == transcript
    assert read.well_formed
    assert (read.answer, read.confidence) == (transcript.turns[-1].argument, transcript.turns[-1].confidence)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text())
@example("<results>" + "[" * 100_000 + "</results>")
def test_nothing_makes_the_reader_raise_and_what_it_calls_well_formed_it_reads_again(text: str) -> None:
    found = parse(text)
    parse_turn(text)
    if found.well_formed:
        assert parse(render(found)) == found


@given(transcripts(), st.data())
def test_a_well_formed_text_is_malformed_once_a_tag_is_put_into_it_or_taken_out(
    transcript: Transcript, data: st.DataObject
) -> None:
    text = render(transcript)
    places = list(grammar._TAG.finditer(text))
    chosen = data.draw(st.sampled_from(places))
    assert not parse(text[: chosen.start()] + text[chosen.end() :]).well_formed
    extra = data.draw(st.sampled_from(grammar.TAGS))
    assert not parse(text[: chosen.start()] + f"<{extra}>" + text[chosen.start() :]).well_formed


def test_a_whole_deliberation_is_well_formed() -> None:
    found = parse(GOOD)
    assert found.faults == ()
    assert [turn.action for turn in found.turns] == ["search", "read", "answer"]
    assert (found.answer, found.confidence, found.count("search")) == ("308", 10, 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<confidence>10<", "<confidence>11<", "turn 3: the confidence is '11', not an integer from 0 to 10"),
        ("<confidence>10<", "<confidence>high<", "not an integer"),
        ("<think>now</think>", "", "turn 3: 0 <think> in place of one"),
        ("<think>now</think>", "<think> </think>", "turn 3: <think> is empty"),
        ("<read>d1</read>", "<read>d2</read>", "turn 2: document 'd2' stood in no results before"),
        ("<answer>308</answer>", "", "turn 3: 0 actions in place of one"),
        ("<answer>308</answer>", "<answer>308", "<answer> is not closed"),
        ("<answer>308</answer>", "<answer>1</answer><answer>2</answer>", "turn 3: 2 actions"),
        ("<think>now", "by the way <think>now", "text outside of all tags"),
        ("<document>text</document>", "", "<think> in place of one"),
        ("<document>text</document>", "<results>[]</results>", "turn 2: <results> is no reply to <read>"),
        ("</answer>", "</answer><document>x</document>", "turn 3: something follows the answer"),
    ],
)
def test_what_is_malformed_is_named(old: str, new: str, said: str) -> None:
    assert any(said in fault for fault in parse(GOOD.replace(old, new)).faults), parse(GOOD.replace(old, new)).faults


@pytest.mark.parametrize("place", ["<think>now", "<answer>", "<confidence>10"])
def test_a_policy_that_writes_results_itself_is_found_out(place: str) -> None:
    forged = '<results>[{"id": "d9", "title": "", "abstract": ""}]</results>'
    assert not parse(GOOD.replace(place, forged + place)).well_formed
    written = "<think>a</think><confidence>9</confidence><answer>b</answer>"
    assert "<results> is not the policy's to write" in parse_turn(forged + written)[1]
