"""Checks a message, decoded without the package's structs, against the exported JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgpack

from safeladder.protocol import messages as m


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """What in `value` breaks `schema`, for the keywords that the exported schema uses."""
    if "$ref" in schema:
        yield from violations(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, path)
        return
    if "discriminator" in schema:
        names = schema["discriminator"]["mapping"]
        tag = value.get("type") if isinstance(value, dict) else None
        if tag not in names:
            yield f"{path}: type {tag!r} is none of {sorted(names)}"
        else:
            yield from violations(value, {"$ref": names[tag]}, root, path)
        return
    if "anyOf" in schema:
        found = [list(violations(value, option, root, path)) for option in schema["anyOf"]]
        if all(found):
            yield from min(found, key=len)
        return
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kind = schema.get("type")
    if kind is not None and not (value is None if kind == "null" else isinstance(value, kinds[kind])):
        yield f"{path}: {value!r} is no {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    elif isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{path}: {name} is missing" for name in schema.get("required", ()) if name not in value)
        if properties:
            yield from (f"{path}: {name} is unknown" for name in value if name not in properties)
        for name, child in value.items():
            yield from violations(child, properties.get(name, {}), root, f"{path}.{name}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from violations(child, schema.get("items", {}), root, f"{path}[{index}]")


def assert_fits_schema(parts: list[Any]) -> str:
    """Checks one message, decoded without our structs, against the exported schema; returns its body's type."""
    schema = json.loads(json.dumps(m.json_schema()))
    header, body = msgpack.unpackb(parts[0]), msgpack.unpackb(parts[1])
    assert list(violations(header, schema["properties"]["header"], schema)) == []
    assert header["frames"] == len(parts) - 2
    assert list(violations(body, schema["properties"]["body"], schema)) == []
    for work in [*body.get("works", ()), *body.get("outputs", ())]:
        assert list(violations(work["payload"], schema["properties"]["payload"], schema)) == []
    return str(body["type"])
