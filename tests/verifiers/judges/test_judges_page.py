"""docs/judges.md shows a configuration that stands."""

from __future__ import annotations

from pathlib import Path

from safeladder.launch.config import load
from safeladder.launch.factory import actor_class, actor_options
from safeladder.verifiers.registry import JUDGES, create, signature

PAGE = Path(__file__).parents[3] / "docs" / "judges.md"


def test_the_page_shows_a_configuration_that_loads(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(PAGE.read_text("utf-8").partition("```yaml\n")[2].partition("```")[0], "utf-8")
    pool = load(file).pools["judges"]
    options = actor_options(actor_class(pool), pool, "judges")
    names = {create(name, given).name for name, given in options.verifiers.items()}
    assert names == {"safety", "value", "knowledge", "normal", "llama_guard"}


def test_the_page_lists_every_judge_with_what_it_signs_as() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert all(any(f"| `{name}` | `{signature(name)}` |" in row for row in rows) for name in JUDGES)
