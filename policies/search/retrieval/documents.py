"""Documents, and corpora of them as JSON lines: `{"id", "title", "text"}` a line, other fields are passed over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec


class CorpusError(ValueError):
    """A corpus that cannot be read; says which file, line and field."""


class RetrievalError(RuntimeError):
    """A search that could not be made: nothing is known of what it would have found."""


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found. `score`: the retriever's own, higher is better."""

    document: Document
    score: float


class Retriever(Protocol):
    """Finds documents: for each query at most `count`, best first. Raises RetrievalError where it cannot search."""

    async def search(self, queries: Sequence[str], count: int) -> list[list[Hit]]: ...


def read(paths: Iterable[Path]) -> list[Document]:
    """All documents of the files, in order. Raises CorpusError for what is no document, an empty file, or an id that stands twice."""
    documents: list[Document] = []
    seen: dict[str, str] = {}
    for path in paths:
        for where, line in _lines(path):
            document = parse(line, where)
            if document.id in seen:
                raise CorpusError(f"{where}: id {document.id!r} stands at {seen[document.id]} too")
            seen[document.id] = where
            documents.append(document)
    if not documents:
        raise CorpusError(f"no document in {', '.join(map(str, paths)) or 'no file'}")
    return documents


def parse(line: bytes, where: str) -> Document:
    """One line of a corpus."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CorpusError(f"{where}: not a JSON map: {error}") from None
    values = {}
    for name in ("id", "title", "text"):
        value = fields.get(name)
        if not isinstance(value, str):
            what = "is missing" if name not in fields else f"is a {type(value).__name__}, not a string"
            raise CorpusError(f"{where}: field `{name}` {what}")
        values[name] = value
    for name in ("id", "text"):
        if not values[name].strip():
            raise CorpusError(f"{where}: field `{name}` is empty")
    return Document(**values)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield f"{path}:{number}", line
