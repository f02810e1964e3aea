"""The local corpus: Lucene's BM25 to the digit, found in two languages, and read with errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safeladder.policies.search.retrieval.documents import CorpusError, Document, read
from safeladder.policies.search.retrieval.index import CorpusIndex
from safeladder.policies.search.retrieval.terms import terms

VECTORS = Path(__file__).parents[1] / "vectors" / "bm25.json"


def test_scores_are_those_of_the_reference() -> None:
    vectors = json.loads(VECTORS.read_text())
    documents = [Document(str(number), "", text) for number, text in enumerate(vectors["docs"])]
    index = CorpusIndex(documents, k1=1.5, b=0.75, analyse=str.split)
    for case in vectors["cases"]:
        (hits,) = index.search([case["query"]], 10)
        expected = {str(number): score for number, score in enumerate(case["lucene"]) if score > 0}
        assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_terms_are_stems_and_pairs_of_characters() -> None:
    assert terms("The Panthers' running, RAN 1,308 points") == ["panther", "run", "ran", "1", "308", "point"]
    assert terms("黑豹队ＡＢ丢") == ["黑豹", "豹队", "ab", "丢"]
    assert terms(" 。<>_") == []


def test_documents_are_found_by_title_and_text_in_both_languages() -> None:
    index = CorpusIndex(
        [
            Document("en", "Super_Bowl_50", "The Panthers gave up 308 points."),
            Document("zh", "超级碗", "黑豹队的防守只丢了308分。"),
            Document("x", "Rain", "It rains a lot."),
        ]
    )
    found = index.search(["How many points did the Panthers give up?", "黑豹队丢了多少分", "bowl", "zebra", ""], 2)
    assert [[hit.document.id for hit in hits] for hits in found] == [["en"], ["zh"], ["en"], [], []]


def test_equal_scores_come_in_the_order_of_the_corpus() -> None:
    index = CorpusIndex([Document(str(n), "", "same words here") for n in range(5)] + [Document("o", "", "other")])
    (hits,) = index.search(["words"], 3)
    assert [hit.document.id for hit in hits] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "c.jsonl:2: not a JSON map"),
        ("[1]", "c.jsonl:2: not a JSON map"),
        ('{"id": "b", "title": "t"}', "c.jsonl:2: field `text` is missing"),
        ('{"id": 3, "title": "t", "text": "x"}', "c.jsonl:2: field `id` is a int, not a string"),
        ('{"id": "b", "title": "t", "text": " "}', "c.jsonl:2: field `text` is empty"),
        ('{"id": "a", "title": "t", "text": "x"}', r"c.jsonl:2: id 'a' stands at .*c.jsonl:1 too"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_with_file_line_and_field(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('{"id": "a", "title": "", "text": "one", "source": "s"}\n' + line + "\n", "utf-8")
    with pytest.raises(CorpusError, match=said):
        read([file])


def test_an_empty_or_absent_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match="no document in"):
        read([tmp_path / "e.jsonl"])
    with pytest.raises(CorpusError, match="cannot read"):
        read([tmp_path / "absent.jsonl"])
