"""docs/actors.md shows code and configuration as they are."""

from __future__ import annotations

from pathlib import Path

from example_bench import NODE_ACTOR

from safeladder.launch.config import load
from safeladder.launch.factory import actor_class, actor_options


def blocks(language: str) -> list[str]:
    """The code of that language in docs/actors.md."""
    page = (Path(__file__).parents[2] / "docs" / "actors.md").read_text("utf-8")
    return [part.partition("```")[0] for part in page.split(f"```{language}\n")[1:]]


def test_the_page_shows_the_code_as_it_is() -> None:
    actor, serving = blocks("python")
    assert actor in (NODE_ACTOR.parents[1] / "word_limit.py").read_text("utf-8")
    assert serving in Path(__file__).with_name("test_examples.py").read_text("utf-8")


def test_the_page_shows_configurations_that_load(tmp_path: Path) -> None:
    for number, block in enumerate(blocks("yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, "utf-8")
        config = load(file)
        ((name, pool),) = config.pools.items()
        assert name in config.recipe.families["normal"].route
        if pool.actor is not None:
            assert actor_options(actor_class(pool), pool, name).max_words == 80
