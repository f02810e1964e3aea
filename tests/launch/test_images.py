"""Images on their way: looked at when the tasks are read, stored once by hash, found or pulled by whoever needs them."""

from __future__ import annotations

import base64
import json
import struct
import types
import zlib
from pathlib import Path
from typing import Any

import pytest

from safeladder.actors.image_source import ImageSource
from safeladder.launch import cli, tasks
from safeladder.launch.check import check
from safeladder.launch.config import ConfigError, load
from safeladder.launch.pictures import draw, record
from safeladder.protocol import images
from safeladder.protocol.chunk_shell import ChunkServer, pull
from safeladder.protocol.chunks import ChunkError
from safeladder.protocol.image_store import SERVED, ImageStore
from safeladder.protocol.images import ImageError
from safeladder.protocol.messages import Record

PNG = draw("some words", items=1, width=60, size=8)


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that says it is so large; there are no pixels behind it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">II", zlib.crc32(head), 0) + b"IDAT"


def task_file(folder: Path, **extra: Any) -> Path:
    lines = [
        {"id": "a", "label": "normal", "prompt": "One?"},
        {"id": "b", "label": "normal", "prompt": "Two?", **extra},
    ]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "tasks.jsonl"


def referred(*data: bytes) -> Record:
    """A record as it travels."""
    entries = [json.loads(json.dumps(vars_of(images.refer(images.Image("image/png", each))))) for each in data]
    return Record("r", "normal", "What?", extra={"images": entries})


def vars_of(reference: images.Reference) -> dict[str, Any]:
    return {name: getattr(reference, name) for name in reference.__struct_fields__}


# ----------------------------------------------------------------------------------------------------- of a task file


def test_paths_are_relative_to_the_task_file_and_every_form_is_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    coded = base64.b64encode(PNG).decode()
    shown = ["a.png", {"path": "a.png"}, {"data": coded}, f"data:image/png;base64,{coded}"]
    _, found = tasks.read([str(task_file(tmp_path, images=shown))])
    assert [image.data for image in images.images(found)] == [PNG] * 4
    assert {image.hash for image in images.images(found)} == {images.hash_of(PNG)}
    assert found.extra["images"][0] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"image": "absent.png"}, "field `image`: the image .*absent.png cannot be read: No such file"),
        ({"images": ["good.png", "text.png"]}, r"field `images\[1\]`: is no image of the kinds PNG, JPEG"),
        ({"images": ["huge.png"]}, "8000 x 8000 = 64,000,000 pixels, 33,554,432 may be"),
        ({"images": ["long.png"]}, r"field `images\[0\]`: an image of 20,971,521 bytes, 20,971,520 may be"),
        ({"image": "good.txt"}, "does not look like an image file"),
        ({"image": 5}, "field `image`: an image is a path, a data URL or a map"),
        ({"image": "data:image/png;base64,???"}, "not base64"),
        ({"images": ["good.png"] * 17}, "holds 17 images, a record has 16 at most"),
    ],
)
def test_an_image_that_may_not_be_is_refused_by_file_line_and_field(
    tmp_path: Path, shown: dict[str, Any], said: str
) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "huge.png").write_bytes(png_of(8000, 8000))
    with (tmp_path / "long.png").open("wb") as long:
        long.write(PNG)
        long.truncate(images.MAX_BYTES + 1)
    file = task_file(tmp_path, **shown)
    with pytest.raises(ConfigError, match=said) as refused:
        tasks.read([str(file)])
    assert str(refused.value).startswith(f"{file}:2: ")


def test_check_refuses_images_for_a_policy_and_an_engine_of_text_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    file = task_file(tmp_path, image="a.png")

    def errors(*overrides: str) -> dict[str, str]:
        found = check(load("embedded", [f"data.tasks=[{file}]", *overrides]))
        return {each.key: each.message for each in found if each.level == "error"}

    said = errors("data.serve=tcp://0.0.0.0:0")
    assert "'embedded' takes text only, and the record 'b' has images" in said["policy.model"]
    assert "set hub.keys" in said["data.serve"]
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    said = errors(
        "policy.model=tiny-qwen-vl",
        "pools.generator.options.engine=simulated",
        f"pools.reference.options.model={llama}",
    )
    assert set(said) == {"pools.generator.options.engine", "pools.reference.options.model"}
    assert "'simulated' takes text only" in said["pools.generator.options.engine"]
    assert errors("policy.model=tiny-internvl") == {}


# -------------------------------------------------------------------------------------------------------- of the store


def test_a_store_holds_a_file_once_and_notices_that_it_was_altered(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    hash = store.put(PNG)
    assert store.put(PNG) == hash == images.hash_of(PNG) and store.read(hash) == PNG
    assert [path for path in store.folder.rglob("*") if path.is_file()] == [store.path(hash)]
    store.path(hash).write_bytes(PNG + b" ")
    with pytest.raises(ImageError, match="was altered"):
        store.read(hash)
    with pytest.raises(ImageError, match="cannot be read"):
        store.read("0" * 40)


def source(folder: Path, announced: dict[str, Any]) -> ImageSource:
    """Of an actor of a run in `folder`, whose hub has told of a server."""
    actor: Any = types.SimpleNamespace(
        link=types.SimpleNamespace(state={"images": announced} if announced else {}),
        context=types.SimpleNamespace(directory=folder, name="generator/0"),
        config=load("embedded"),
    )
    return ImageSource(actor, silence_s=5)


def test_a_host_that_does_not_see_the_store_pulls_each_image_once_and_verifies_it(tmp_path: Path) -> None:
    near = ImageStore(tmp_path / "near" / "images")
    hash = near.put(PNG)
    (near.folder / "secret").write_bytes(b"secret")
    server = ChunkServer("tcp://127.0.0.1:*", near.folder, served=SERVED)
    try:
        far = source(tmp_path / "far", {"serve": server.endpoint, "serve_key": None})
        for _ in range(3):
            assert [image.data for image in far.images(referred(PNG))] == [PNG]
        assert server.sent_bytes == len(PNG)
        for name in ("secret", f"{hash[:2]}/../secret", f"{hash[:2]}/.partial-x"):
            with pytest.raises(ChunkError, match="denied"):
                pull(server.endpoint, name, tmp_path / "stolen", 1000, silence_s=5)
        near.path(hash).write_bytes(bytes(len(PNG)))
        with pytest.raises(ImageError, match="gave another file"):
            source(tmp_path / "third", {"serve": server.endpoint}).fetch(referred(PNG))
        assert not ImageStore(tmp_path / "third" / "images").path(hash).exists()
    finally:
        server.close()
    with pytest.raises(ImageError, match=r"set data\.serve"):
        source(tmp_path / "fourth", {}).fetch(referred(PNG))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a.png", "no reference"),
        ({"hash": "../../etc/passwd", "type": "image/png", "bytes": 1, "width": 1, "height": 1}, "no reference"),
        ({"hash": "0" * 40, "type": "image/png", "bytes": 2**40, "width": 1, "height": 1}, "no reference"),
        ({"hash": "0" * 40, "type": "image/png", "bytes": 9, "width": 2**20, "height": 2**20}, "pixels"),
    ],
)
def test_what_comes_over_the_wire_is_a_bounded_reference_or_refused(tmp_path: Path, entry: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        source(tmp_path, {}).fetch(Record("r", "normal", "What?", extra={"images": [entry]}))


# ---------------------------------------------------------------------------------------------- pictures drawn from text


def test_a_picture_holds_the_request_and_the_text_asks_only_to_fill_it_in(tmp_path: Path) -> None:
    plain = Record("a", "safety", "Steps to bake bread", "none", category="food", extra={"kind": "benign"})
    pictured = record(plain)
    (image,) = images.images(pictured)
    assert "bread" not in pictured.prompt and pictured.label == "safety" and pictured.extra["kind"] == "benign"
    assert images.refer(image).width == 360 and image.data == draw("Steps to bake bread") != draw("Steps to bake bad")
    (tmp_path / "in.jsonl").write_bytes(tasks.line(plain))
    out = tmp_path / "out.jsonl"
    assert cli.main(["pictures", str(tmp_path / "in.jsonl"), "--output", str(out)]) == 0
    (read,) = tasks.read([str(out)])
    assert read.id == "a-pictured" and images.images(read) == [image]
