"""OpenTelemetry traces (`spans.py`): into a file of OTLP JSON, a request a line, which collectors read, or to a collector.

The file needs nothing but this package. An address needs the extra `[otel]`, whose exporter speaks OTLP over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import msgspec

from safeladder.launch.config import ConfigError
from safeladder.launch.events import Event
from safeladder.launch.export.sink import SinkError, needed
from safeladder.launch.export.spans import Span, Traces, Value

BATCH: Final = 512  # spans a request
PATH: Final = "/v1/traces"  # of OTLP over HTTP, where an address has none
SEND_S: Final = 10.0
_INTERNAL, _ERROR = 1, 2  # SpanKind and StatusCode of the protocol


class OtlpSink:
    """target: a file, or the http(s) address of a collector."""

    LIVE_TARGET: ClassVar[str | None] = "traces.jsonl"

    def __init__(self, run: str, target: str) -> None:
        self._traces, self._spans = Traces(run), list[Span]()
        resource = {"service.name": "safeladder", "safeladder.run": run}
        there = target.startswith(("http://", "https://"))
        self._writer: Writer = CollectorWriter(target, resource) if there else FileWriter(Path(target), resource)

    def take(self, event: Event) -> None:
        for spans in self._traces.take(event):
            self._spans += spans
            if len(self._spans) >= BATCH:
                self._write()

    def close(self) -> None:
        for spans in self._traces.rest():
            self._spans += spans
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._spans:
            self._writer.write(self._spans)
            self._spans = []


class Writer(Protocol):
    """Takes spans to where they belong."""

    def write(self, spans: list[Span]) -> None: ...

    def close(self) -> None: ...


class FileWriter:
    """OTLP's JSON encoding, which writes ids as hexadecimal digits and 64-bit integers as strings."""

    def __init__(self, path: Path, resource: Mapping[str, Value]) -> None:
        self._resource = {"attributes": _attributes(resource)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def write(self, spans: list[Span]) -> None:
        scope = {"scope": {"name": "safeladder"}, "spans": [_plain(span) for span in spans]}
        request = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        self._file.write(msgspec.json.encode(request) + b"\n")

    def close(self) -> None:
        self._file.close()


class CollectorWriter:
    """Sends with the exporter of the OpenTelemetry SDK, which tries again for a while where the collector is busy."""

    def __init__(self, address: str, resource: Mapping[str, Value]) -> None:
        self._sdk, self._api = needed("opentelemetry.sdk.trace", "otel"), needed("opentelemetry.trace", "otel")
        exporter = needed("opentelemetry.exporter.otlp.proto.http.trace_exporter", "otel")
        self._resource = needed("opentelemetry.sdk.resources", "otel").Resource(dict(resource))
        self._scope = needed("opentelemetry.sdk.util.instrumentation", "otel").InstrumentationScope("safeladder")
        self._address = address if PATH in address else address.rstrip("/") + PATH
        self._exporter = exporter.OTLPSpanExporter(endpoint=self._address, timeout=SEND_S)
        self._done = needed("opentelemetry.sdk.trace.export", "otel").SpanExportResult.SUCCESS

    def write(self, spans: list[Span]) -> None:
        """Raises SinkError where the collector does not take them."""
        if self._exporter.export([self._readable(span) for span in spans]) is not self._done:
            raise SinkError(f"{self._address} did not take {len(spans)} spans")

    def close(self) -> None:
        self._exporter.shutdown()

    def _readable(self, span: Span) -> Any:
        api = self._api
        status = api.Status(api.StatusCode.ERROR, span.error) if span.error else api.Status()
        return self._sdk.ReadableSpan(
            name=span.name,
            context=self._context(span.trace, span.id),
            parent=self._context(span.trace, span.parent) if span.parent else None,
            resource=self._resource,
            instrumentation_scope=self._scope,
            attributes=span.attributes,
            events=[self._sdk.Event(m.name, m.attributes, _nanoseconds(m.at)) for m in span.moments],
            status=status,
            start_time=_nanoseconds(span.begin),
            end_time=_nanoseconds(span.end),
        )

    def _context(self, trace: str, span: str) -> Any:
        return self._api.SpanContext(
            int(trace, 16), int(span, 16), False, self._api.TraceFlags(self._api.TraceFlags.SAMPLED)
        )


def _nanoseconds(at: float) -> int:
    return round(at * 1e6) * 1000  # a float holds the microseconds of our days, and no more


def _plain(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(_nanoseconds(span.begin)),
        "endTimeUnixNano": str(_nanoseconds(span.end)),
        "attributes": _attributes(span.attributes),
        "events": [
            {"timeUnixNano": str(_nanoseconds(m.at)), "name": m.name, "attributes": _attributes(m.attributes)}
            for m in span.moments
        ],
    }
    if span.parent:
        found["parentSpanId"] = span.parent
    if span.error:
        found["status"] = {"code": _ERROR, "message": span.error}
    return found


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": value}
