"""A generator takes work for a version only after its engine has proved that it computes it; wrong weights never get so far."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
import torch
from structlog.testing import LogCapture

from safeladder.actors.actor import ActorError, Context
from safeladder.actors.generator import Generator
from safeladder.actors.weight_source import WeightSource
from safeladder.launch.config import load
from safeladder.launch.rundir import RunDirectory
from safeladder.policies import model as models
from safeladder.policies import weights
from safeladder.policies.weights import Publisher, WeightsError, attestation, folder
from safeladder.policies.weights.publishing import stream_of
from safeladder.protocol.chunk_shell import ChunkServer
from safeladder.protocol.keys import KeyFileError, ensure_secret, load_secret


class Scene:
    """A run's folder with a learner's publications in it, made by the learner's own code."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        self.home = folder / "home"
        self.key = ensure_secret(self.run.weights_key)
        self.model, tokenizer = models.load(models.resolve("tiny"))
        self.probes = attestation.texts(tokenizer)
        self.publisher = Publisher(self.home, self.key, full_every=4)
        self.said = LogCapture()

    def publish(self, version: int, faithful: bool = True, **manifest: object) -> dict[str, object]:
        """Moves the weights and publishes them; an unfaithful probe is that of other weights."""
        probes = attestation.score(self.model, self.probes)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter[:1] += 0.05
        if faithful:
            probes = attestation.score(self.model, self.probes)
        self.publisher.publish(stream_of(self.model), version, probes=manifest.get("probes", probes))
        return {"version": version, "directory": str(folder(self.home, version))}

    def generator(self, *overrides: str) -> Generator:
        config = load("embedded", ["policy.model=tiny", *overrides])
        link = SimpleNamespace(state={}, boot="b00t")
        options = Generator.Options(version_wait_s=5.0)
        pool = config.pools["generator"]
        log = structlog.wrap_logger(None, processors=[self.said], wrapper_class=structlog.BoundLogger)
        return Generator(Context("generator/0", pool, config, self.run.path, link, log), options)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_version_is_ready_for_work_once_its_probe_agrees(scene: Scene) -> None:
    async def run() -> None:
        generator = scene.generator()
        await generator.start()
        try:
            for version in (1, 2, 3):
                await generator._intake.take(scene.publish(version))
                assert generator._intake.proved == generator._engine.version == version
        finally:
            await generator.stop()

    asyncio.run(run())
    attested = [line for line in scene.said.entries if line["event"] == "weights.attested"]
    assert [line["passed"] for line in attested] == [True] * 3
    assert all(line["mean"] < 1e-4 and line["tokens"] > 20 for line in attested)


def test_an_engine_that_does_not_give_the_learners_logprobs_takes_no_work_and_ends(scene: Scene) -> None:
    async def run() -> None:
        generator = scene.generator()
        await generator.start()
        try:
            await generator._intake.take(scene.publish(1))
            with pytest.raises(ActorError, match="no way back"):
                await generator._intake.take(scene.publish(2, faithful=False))
            assert generator._intake.proved == 1
        finally:
            await generator.stop()

    asyncio.run(run())
    (refused,) = [line for line in scene.said.entries if line["event"] == "weights.refused"]
    assert "differ from the learner's by" in refused["error"]


def test_a_strangers_publication_and_a_torn_one_are_passed_over_and_the_next_is_taken(scene: Scene) -> None:
    async def run() -> None:
        generator = scene.generator()
        await generator.start()
        try:
            weights.publish(scene.model, scene.home, 1)  # without the run's secret
            await generator._intake.take({"version": 1, "directory": str(folder(scene.home, 1))})
            torn = scene.publish(2)
            file = Path(str(torn["directory"])) / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
            await generator._intake.take(torn)
            assert generator._intake.proved == generator._engine.version == 0
            scene.publisher = Publisher(scene.home, scene.key)
            await generator._intake.take(scene.publish(3))
            assert generator._intake.proved == 3
        finally:
            await generator.stop()

    asyncio.run(run())
    first, second = [line["error"] for line in scene.said.entries if line["event"] == "weights.refused"]
    assert "is unsigned" in first and "bytes, its manifest says" in second


def test_a_publication_without_a_probe_is_refused_where_one_is_asked_for(scene: Scene) -> None:
    async def run(*overrides: str) -> int:
        generator = scene.generator(*overrides)
        await generator.start()
        try:
            await generator._intake.take(announced)
            return generator._intake.proved
        finally:
            await generator.stop()

    announced = scene.publish(1, probes=[])
    assert asyncio.run(run()) == 0
    assert asyncio.run(run("weights.canary=false")) == 1


# ------------------------------------------------------------------------------------------------------ the source


def test_what_cannot_be_seen_is_pulled_with_all_that_it_rests_on(scene: Scene, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        announced = scene.publish(version)
    assert weights.read(scene.home, 3, scene.key).base == 2
    server = ChunkServer("tcp://127.0.0.1:*", scene.home)
    pulled = tmp_path / "pulled"
    source = WeightSource(pulled, scene.key, silence_s=10)
    hidden = {**announced, "directory": "/not/visible/here/v00000003", "serve": server.endpoint, "serve_key": None}
    try:
        _, tensors = weights.Reader(scene.key).read(source.find(hidden))
        _, expected = weights.Reader(scene.key).read(folder(scene.home, 3))
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert weights.versions(pulled) == [1, 2, 3]
        source.settle(3, loaded=True)
        assert weights.versions(pulled) == [1, 2, 3], "a successor of this process can catch up from what is here"
    finally:
        server.close()
    with pytest.raises(WeightsError, match=r"set weights\.serve"):
        source.find({**hidden, "serve": None})


def test_a_forged_manifest_is_not_followed_to_its_tensors(scene: Scene, tmp_path: Path) -> None:
    weights.publish(scene.model, scene.home, 1, key=b"x" * 32)
    server = ChunkServer("tcp://127.0.0.1:*", scene.home)
    source = WeightSource(tmp_path / "pulled", scene.key, silence_s=10)
    try:
        with pytest.raises(WeightsError, match="signed with key"):
            source.find({"version": 1, "directory": "/not/visible", "serve": server.endpoint})
        assert server.sent_bytes < 100_000
        assert list((tmp_path / "pulled").iterdir()) == []
    finally:
        server.close()


def test_the_secret_is_one_for_all_who_ask_at_once_and_closed_to_others(tmp_path: Path) -> None:
    path, found = tmp_path / "weights.key", []
    threads = [threading.Thread(target=lambda: found.append(ensure_secret(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(found)) == 1 and len(found) == 8 and len(found[0]) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_secret(path)
