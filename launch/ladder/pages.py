"""What a climb leaves for its reader: report.html, ladder.md, coevolution.png in its folder."""

from __future__ import annotations

from pathlib import Path

from safeladder.launch.ladder.state import ClimbState
from safeladder.launch.report import coevolution
from safeladder.launch.report.write import write as write_page


def write(folder: Path, climb: ClimbState) -> Path:
    """Writes all three and gives the page's path. Without matplotlib (extra `plots`) there is no picture; the page has its own."""
    (folder / "ladder.md").write_text(coevolution.markdown(climb), encoding="utf-8")
    try:
        coevolution.draw(climb, folder / "coevolution.png")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
    return write_page([folder], folder / "report.html")
