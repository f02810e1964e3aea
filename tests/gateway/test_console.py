"""The console in a real browser, end to end: by keyboard alone, on a telephone's screen, in the dark.

With SAFELADDER_SCREENSHOTS=FOLDER the pictures of docs/gateway.md are made there; SAFELADDER_TEST_MODEL=embedded has them show sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, browsing, found
from gateways import KEY, Serving

CHROMIUM = found()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
SCREENSHOTS = os.environ.get("SAFELADDER_SCREENSHOTS")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("chromium") / "profile"
    with browsing(CHROMIUM or "", profile) as opened:
        yield opened


def photograph(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.photograph(Path(SCREENSHOTS) / f"{name}.png")


def open_console(page: Page, address: str) -> None:
    page.problems.clear()
    page.call("Page.navigate", url=f"{address}/")
    page.until("document.readyState === 'complete' && !!document.getElementById('status')")


def test_by_keyboard_a_question_is_asked_its_steps_arrive_and_alternatives_can_be_read(
    served: Serving, page: Page
) -> None:
    page.view(900, 1100)
    open_console(page, served.address())
    page.until("document.querySelectorAll('#model option').length > 3")
    assert page.run("document.activeElement.id") == "question"
    assert page.run("document.getElementById('key').offsetParent === null"), "no key is wanted here"
    page.run("window.seen = []; new MutationObserver(() => window.seen.push(document.querySelectorAll('#steps .step').length))"
             ".observe(document.getElementById('steps'), {childList: true}); 0")  # fmt: skip
    page.run("document.getElementById('model').value = 'policy+lookahead'; document.getElementById('tokens').value = 40;"
             "document.getElementById('seed').value = 3; 0")  # fmt: skip
    page.type("How can I keep a password safe?")
    page.press("Enter", 13, modifiers=2)
    page.until("['done', 'no answer may be given'].includes(document.getElementById('status').textContent)")
    assert page.run("document.getElementById('answer').textContent").strip()
    assert page.run("document.querySelectorAll('.step.chosen').length") > 0
    assert page.run("window.seen.some((count, place) => count > 0 && count < Math.max(...window.seen))"), "one by one"
    assert page.run("document.querySelectorAll('.step.chosen .score').length") > 0
    assert page.run("[...document.querySelectorAll('.reason')].some((reason) => reason.textContent.includes('best'))")
    assert page.run(
        "[...document.querySelectorAll('.step.chosen .edit:not([hidden])')].some((button) => button.offsetParent !== null)"
    )
    page.run("document.querySelector('details summary').focus(); 0")
    page.press("Enter", 13, text="\r")
    page.until(
        "document.querySelector('details').open && document.querySelector('details .step').offsetParent !== null"
    )
    facts = page.run("document.getElementById('facts').innerText")
    assert "complete" in facts and "calls" in facts
    photograph(page, "search")
    assert page.problems == []


def test_the_policys_tokens_arrive_as_they_come_and_escape_stops_them(served: Serving, page: Page) -> None:
    open_console(page, served.address())
    page.until("document.querySelectorAll('#model option').length > 3")
    seed = served.long_seed("Say much.")
    page.run(f"document.getElementById('seed').value = {seed}; document.getElementById('tokens').value = 900;"
             "document.getElementById('model').value = 'policy'; 0")  # fmt: skip
    page.type("Say much.")
    page.press("Enter", 13, modifiers=2)
    page.until("document.getElementById('answer').textContent.length > 10")
    page.press("Escape", 27)
    page.until("document.getElementById('status').textContent === 'stopped'")
    assert page.run("document.getElementById('ask').disabled") is False


def test_on_a_telephone_in_the_dark_nothing_is_wider_than_the_screen(served: Serving, page: Page) -> None:
    page.view(390, 844, dark=True)
    open_console(page, served.address())
    page.until("document.querySelectorAll('#model option').length > 3")
    page.run("document.getElementById('model').value = 'policy+lookahead'; document.getElementById('tokens').value = 40;"
             "document.getElementById('seed').value = 4; 0")  # fmt: skip
    page.type("How can I keep a password safe?")
    page.run("document.getElementById('ask').click(); 0")
    page.until("['done', 'no answer may be given'].includes(document.getElementById('status').textContent)")
    assert page.run("document.documentElement.scrollWidth") <= 390
    rgb = page.run("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in rgb.removeprefix("rgb(").removesuffix(")").split(",")) < 64
    photograph(page, "telephone")


def test_where_keys_are_wanted_the_page_asks_for_one_and_works_with_it(served: Serving, page: Page) -> None:
    page.view(900, 700)
    open_console(page, served.address("guarded"))
    page.until("document.activeElement.id === 'key'")
    assert "no valid API key" in page.run("document.getElementById('status').textContent")
    page.type(KEY)
    page.press("Tab", 9)
    page.until("document.querySelectorAll('#model option').length > 3")


def test_by_keyboard_a_step_is_edited_and_what_changed_is_shown(served: Serving, page: Page) -> None:
    page.view(900, 1100)
    open_console(page, served.address())
    page.until("document.querySelectorAll('#model option').length > 3")
    page.run("document.getElementById('model').value = 'policy+beam'; document.getElementById('tokens').value = 60;"
             "document.getElementById('seed').value = 3; 0")  # fmt: skip
    page.type("How can I keep a password safe?")
    page.press("Enter", 13, modifiers=2)
    page.until("document.getElementById('status').textContent === 'done'")
    old = page.run("document.getElementById('answer').textContent")
    page.run(
        "[...document.querySelectorAll('#steps > li > .step.chosen > .edit')].filter((one) => !one.hidden).slice(0, 2).at(-1).focus(); 0"
    )
    page.press("Enter", 13, text="\r")
    page.until("document.activeElement.tagName === 'TEXTAREA' && !!document.querySelector('.editor')")
    page.press("Escape", 27)
    assert page.run("!document.querySelector('.editor') && document.activeElement.className === 'edit'"), (
        "left as it was"
    )
    page.press("Enter", 13, text="\r")
    page.until("!!document.querySelector('.editor')")
    page.run("document.activeElement.select(); 0")
    page.type("I use a long pass phrase, and a password manager keeps the others.")
    page.press("Enter", 13, modifiers=2)
    page.until("['done', 'no answer may be given'].includes(document.getElementById('status').textContent)"
               " && !document.getElementById('changed').hidden")  # fmt: skip
    assert "pass phrase" in page.run("document.getElementById('answer').textContent") != old
    fates = page.run("[...document.querySelectorAll('#steps .fate')].map((fate) => fate.textContent)")
    at = fates.index("yours")
    assert set(fates[:at]) <= {"kept"} and fates[at + 1 :] and set(fates[at + 1 :]) == {"new"}
    assert "pass phrase" in page.run(
        "[...document.querySelectorAll('#changes ins')].map((one) => one.textContent).join('')"
    )
    assert page.run("document.querySelectorAll('#changes del').length") > 0
    assert "locality" in page.run("document.getElementById('measures').textContent")
    assert page.run("document.activeElement.id") == "changes"
    photograph(page, "edit")
    page.run("document.getElementById('accept').focus(); 0")
    page.press("Enter", 13, text="\r")
    page.until("document.getElementById('status').textContent.startsWith('accepted')")
    assert page.problems == []
