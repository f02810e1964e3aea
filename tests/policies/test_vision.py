"""Policies that see, on tiny twins of both architectures: engine and learner make the same of an image, and train on it."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from safeladder.launch.pictures import draw
from safeladder.policies import checkpoint, lora, twins
from safeladder.policies import model as models
from safeladder.policies.batch import TrainingGroup, decode, encode
from safeladder.policies.engines.transformers_engine import TransformersEngine
from safeladder.policies.options import StepOptions
from safeladder.policies.scoring import completion_logprobs
from safeladder.policies.step import LearnerStep, StepError
from safeladder.policies.vision import Gallery, Processor, VisionError, tower
from safeladder.protocol.images import Image
from safeladder.protocol.messages import Sampling

TOLERANCE = 1e-4  # nats
LONG = Image("image/png", draw("a list", items=1, width=60, size=8))
OTHER = Image("image/png", draw("A LIST", items=1, width=60, size=8))  # of the same size: the same token ids
SQUARE = Image("image/png", draw("", items=0, width=24, size=24))
FILES = {image.hash: image.data for image in (LONG, OTHER, SQUARE)}


class Twin:
    """A twin with its prompts; `sizes` of an image are as the file says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = models.load(folder)
        processor = Processor.open(folder, self.tokenizer)
        assert processor is not None
        self.processor = processor
        self.gallery = Gallery(processor, FILES.__getitem__)

    def ids(self, text: str, *images: Image) -> list[int]:
        sizes = [pillow.open(BytesIO(image.data)).size for image in images]
        return models.encode_prompt(self.tokenizer, text, images=sizes, processor=self.processor)

    def named(self, ids: list[int], *images: Image) -> list[int]:
        return self.processor.named(ids, self.gallery.look(images))

    def pictures(self, *images: Image) -> dict[int, Any]:
        return {picture.name: picture for picture in self.gallery.look(images)}


@pytest.fixture(scope="module", params=["tiny-qwen-vl", "tiny-internvl"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin(models.resolve(request.param, tmp_path_factory.mktemp("models")))


def generated(twin: Twin, *requests: tuple[list[int], tuple[Image, ...]], **options: Any) -> tuple[list[Any], Any]:
    """Samples of each request, all at once, two each; and the engine's statistics."""

    async def go() -> tuple[list[Any], Any]:
        engine = TransformersEngine(twin.model, twin.tokenizer, processor=twin.processor, **options)
        await engine.start()
        sampling = Sampling(samples=2, max_new_tokens=12, temperature=0.7, seed=3)
        try:
            waits = [engine.generate(ids, sampling, images=images) for ids, images in requests]
            return list(await asyncio.gather(*waits)), engine.statistics()
        finally:
            await engine.stop()

    return asyncio.run(go())


def test_engine_and_learner_agree_on_every_token_in_packs_of_texts_and_images(twin: Twin) -> None:
    asked = [
        (twin.ids("What is this?", LONG), (LONG,)),
        (twin.ids("What is this?", OTHER), (OTHER,)),
        (twin.ids("Nothing to see."), ()),
        (twin.ids("First <image> and then <image>", SQUARE, LONG), (SQUARE, LONG)),
    ]
    assert asked[0][0] == asked[1][0]
    sampled, _ = generated(twin, *asked)
    pairs = [
        (twin.named(ids, *images), sequence.token_ids)
        for (ids, images), group in zip(asked, sampled, strict=True)
        for sequence in group
    ]
    pictures = twin.pictures(LONG, OTHER, SQUARE)
    with torch.no_grad():
        packed = completion_logprobs(twin.model, pairs, 0.7, token_budget=4096, pictures=pictures)
        alone = [completion_logprobs(twin.model, [pair], 0.7, pictures=pictures)[0] for pair in pairs]
    for sequence, together, single in zip([s for group in sampled for s in group], packed, alone, strict=True):
        assert torch.allclose(together, torch.tensor(sequence.logprobs), atol=TOLERANCE)
        assert torch.allclose(single, together, atol=TOLERANCE)
    assert not torch.allclose(packed[0][:1], packed[2][:1], atol=TOLERANCE)  # the image says something


def test_the_row_is_what_the_models_own_forward_makes_of_text_and_pixels(twin: Twin) -> None:
    ids, completion = twin.ids("Look: <image><image> Well?", SQUARE, LONG), [40, 41, 42, 43]
    whole = torch.tensor([[*ids, *completion]])
    shown = twin.gallery.look([SQUARE, LONG])
    inputs = {name: torch.cat([picture.inputs[name] for picture in shown]) for name in shown[0].inputs}
    kinds = (whole == twin.processor.token_id).long()
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = kinds  # the library finds the positions of its own
    with torch.no_grad():
        logits = twin.model(input_ids=whole, **inputs).logits[0, len(ids) - 1 : -1]
        own = completion_logprobs(
            twin.model, [(twin.named(ids, SQUARE, LONG), completion)], pictures=twin.pictures(SQUARE, LONG)
        )[0]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
    assert torch.allclose(own, expected, atol=TOLERANCE)
    assert int(kinds.sum()) == sum(picture.tokens for picture in shown)


def test_a_cached_prefix_is_used_for_the_same_image_and_never_for_another(twin: Twin) -> None:
    ids = twin.ids("What is this?", LONG)
    images = next(at for at, token in enumerate(ids) if token == twin.processor.token_id)

    async def go() -> list[Any]:
        engine = TransformersEngine(twin.model, twin.tokenizer, processor=twin.processor)
        await engine.start()
        found: list[Any] = []
        try:
            for image in (LONG, OTHER, OTHER):
                before = engine.statistics()["cached_prompt_tokens"]
                sampled = await engine.generate(ids, Sampling(max_new_tokens=8, seed=1), images=[image])
                found.append((sampled[0].logprobs, int(engine.statistics()["cached_prompt_tokens"] - before)))
            begun = await engine.generate(ids, Sampling(max_new_tokens=3, seed=1), images=[OTHER])
            begun[0].finish = "abort"
            found.append(await engine.generate(ids, Sampling(max_new_tokens=8, seed=1), begun=begun, images=[OTHER]))
        finally:
            await engine.stop()
        return found

    (first, none), (second, upto), (third, all_), continued = asyncio.run(go())
    assert (none, upto, all_) == (0, images, len(ids) - 1)
    assert second == pytest.approx(third, abs=TOLERANCE) and continued[0].logprobs == pytest.approx(
        third, abs=TOLERANCE
    )
    assert len(first) != len(second) or not np.allclose(first, second, atol=TOLERANCE)


def test_a_prompt_cut_from_the_cache_in_the_middle_of_an_image_is_computed_from_its_beginning(twin: Twin) -> None:
    ids = twin.ids("What is this?", LONG)
    inside = next(at for at, token in enumerate(ids) if token == twin.processor.token_id) + 2
    free, _ = generated(twin, (ids, (LONG,)), prefix_tokens=0)

    async def go() -> list[float]:
        engine = TransformersEngine(twin.model, twin.tokenizer, processor=twin.processor, prefix_tokens=inside)
        await engine.start()
        try:
            sampling = Sampling(samples=2, max_new_tokens=12, temperature=0.7, seed=3)
            await engine.generate(ids, sampling, images=[LONG])
            again = await engine.generate(ids, sampling, images=[LONG])
            assert 0 < engine.statistics()["cached_prompt_tokens"] < inside
        finally:
            await engine.stop()
        return again[0].logprobs

    assert asyncio.run(go()) == pytest.approx(free[0][0].logprobs, abs=TOLERANCE)


def test_images_and_prompts_that_do_not_belong_together_are_refused_by_what_is_wrong(twin: Twin) -> None:
    with pytest.raises(VisionError, match="places for 1 images, and there are 0"):
        twin.ids(twin.tokenizer.convert_ids_to_tokens(twin.processor.token_id))
    for ids, images in ((twin.ids("Hm."), (LONG,)), (twin.ids("Hm.", LONG), ())):
        with pytest.raises(ValueError, match="request refused: the prompt has"):
            generated(twin, (ids, images))
    broken = Image("image/png", LONG.data[: len(LONG.data) // 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        generated(twin, (twin.ids("Hm.", LONG), (broken,)))


def group(twin: Twin, name: str, *images: Image) -> TrainingGroup:
    ids = twin.ids("What is this?", *images)
    (sampled,), _ = generated(twin, (ids, images))
    return TrainingGroup(
        id=name,
        prompt_ids=np.array(ids, np.int32),
        completion_ids=[np.array(each.token_ids, np.int32) for each in sampled],
        behaviour=[np.array(each.logprobs, np.float32) for each in sampled],
        versions=[np.zeros(len(each.token_ids), np.int32) for each in sampled],
        rewards=np.array([1.0, 0.0]),
        valid=np.ones(2, np.bool_),
        images=[image.hash for image in images],
    )


def learner(twin: Twin, gallery: Gallery | None, frozen: bool) -> tuple[LearnerStep, dict[str, torch.Tensor]]:
    model, _ = models.load(twin.folder)
    for module in tower(model) if frozen else ():
        module.requires_grad_(False)
    options = StepOptions(learning_rate=1e-3, temperature=0.7, reference_kl=0.0, advantage={"grpo": {}})
    step = LearnerStep(model, options, gallery=gallery)
    return step, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_step_moves_the_tower_only_where_it_is_not_frozen(twin: Twin, frozen: bool) -> None:
    batch = decode(encode([group(twin, "a", LONG), group(twin, "b", OTHER), group(twin, "c")]))
    step, before = learner(twin, twin.gallery, frozen)
    report = step.train(batch)
    seen = {id(parameter) for module in tower(step.model) for parameter in module.parameters()}
    moved = {name: not torch.equal(p, before[name]) for name, p in step.model.named_parameters()}
    towers = [moved[name] for name, p in step.model.named_parameters() if id(p) in seen]
    assert report.engine_drift is not None and report.engine_drift.mean < TOLERANCE
    assert any(moved[name] for name, p in step.model.named_parameters() if id(p) not in seen)
    assert not any(towers) if frozen else any(towers)
    # what the loss counts are the sampled tokens: none of a prompt, and so none of an image
    assert report.tokens == sum(len(tokens) for each in batch for tokens in each.completion_ids)


def test_a_checkpoint_of_a_policy_that_sees_is_whole_and_restores_it(twin: Twin, tmp_path: Path) -> None:
    step, _ = learner(twin, twin.gallery, frozen=True)
    step.train([group(twin, "a", LONG)])
    state = checkpoint.CheckpointState(step=1, version=1)
    saved = checkpoint.save(tmp_path, 1, step.model, twin.tokenizer, step.optimizer, state, processor=twin.processor)
    there = Twin(saved)  # loaded by transformers alone: model, tokenizer, image processor
    assert there.ids("What is this?", LONG) == twin.ids("What is this?", LONG)
    other, before = learner(twin, twin.gallery, frozen=True)
    checkpoint.restore(saved, other.model, other.optimizer)
    for name, parameter in step.model.state_dict().items():
        assert torch.equal(parameter, other.model.state_dict()[name])
        assert torch.equal(parameter, there.model.state_dict()[name])
    assert any(not torch.equal(value, before[name]) for name, value in other.model.named_parameters())


def test_adapters_leave_a_frozen_tower_alone(twin: Twin) -> None:
    model, _ = models.load(twin.folder)
    seen = {id(module) for part in tower(model) for module in part.modules()}
    for module in tower(model):
        module.requires_grad_(False)
    lora.attach(model, lora.LoraOptions(rank=2))
    adapted = lora.adapted_layers(model)
    assert len(adapted) == 2 * 7 and not any(id(layer) in seen for layer in adapted.values())


def test_a_sampled_image_token_is_scored_in_training_as_it_was_in_generation(twin: Twin) -> None:
    ids, image = twin.ids("What is this?", LONG), twin.processor.token_id
    completion = [50, image, 51, 52]

    async def go() -> list[float]:
        engine = TransformersEngine(twin.model, twin.tokenizer, processor=twin.processor)
        await engine.start()
        try:
            return await engine.score(ids, completion, images=[LONG])
        finally:
            await engine.stop()

    with torch.no_grad():
        own = completion_logprobs(twin.model, [(twin.named(ids, LONG), completion)], pictures=twin.pictures(LONG))[0]
    assert asyncio.run(go()) == pytest.approx(own.tolist(), abs=TOLERANCE)


def test_a_policy_of_text_refuses_images_and_says_so(tmp_path: Path, twin: Twin) -> None:
    step, _ = learner(twin, None, frozen=True)
    with pytest.raises(StepError, match="group a has images, and this policy takes text only"):
        step.train([group(twin, "a", LONG)])
    _, tokenizer = models.load(models.resolve("tiny", tmp_path))
    with pytest.raises(VisionError, match="takes text only"):
        models.encode_prompt(tokenizer, "Hm.", images=[(4, 4)])


def test_a_gallery_keeps_what_has_room_and_makes_the_rest_again(twin: Twin) -> None:
    picture = twin.gallery.look([LONG])[0]
    small = Gallery(twin.processor, FILES.__getitem__, room=picture.bytes)
    kept, _ = small.of([LONG.hash]), small.of([SQUARE.hash])
    again = small.of([LONG.hash])
    assert again[0] is not kept[0] and again[0].name == kept[0].name
    assert all(torch.equal(again[0].inputs[name], kept[0].inputs[name]) for name in kept[0].inputs)
    assert small.of([LONG.hash])[0] is again[0]


# ---------------------------------------------------------------------------------- DeepSeek-R1-Distill-Llama, text


def test_deepseeks_template_opens_the_thought_once_and_drops_those_of_earlier_turns(tmp_path: Path) -> None:
    folder = models.resolve("tiny-llama", tmp_path)
    tokenizer = models.load_tokenizer(folder)
    ids = models.encode_prompt(tokenizer, "Hi")
    assert tokenizer.decode(ids) == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n"
    assert models.encode_prompt(tokenizer, "Hi", prefix="<think>\n") == ids  # the run's prefix says it to the verifiers
    assert tokenizer.decode(models.encode_prompt(tokenizer, "Hi", prefix="<think>\n\n</think>")).endswith(
        "<｜Assistant｜><think>\n\n</think>"
    )
    turns = models.encode_prompt(tokenizer, "And?", shots=[("One?", "<think>secret</think>Two.")])
    assert "secret" not in tokenizer.decode(turns) and "Two.<｜end▁of▁sentence｜>" in tokenizer.decode(turns)
    assert ids.count(tokenizer.bos_token_id) == 1 and twins.folder_name("tiny-llama") == folder.name
