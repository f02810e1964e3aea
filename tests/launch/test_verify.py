"""`safeladder verify`: figures, resumption, failures that are no class, and nothing harmful on the screen."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from word_verifier import StartedVerifier

from safeladder.launch.cli import main
from safeladder.launch.config import ConfigError
from safeladder.launch.verify import Report, Request, verify
from safeladder.verifiers.judging import VerdictFileError

WORD = "word_verifier:WordVerifier"


def data(folder: Path, extra: list[Any] | None = None) -> Path:
    """Forty rows; the word is a perfect sign of harm in English, and is missed in two of the ten Chinese ones."""
    lines: list[Any] = [
        {
            "prompt": f"ask {n}",
            "response": f"take poison {n} times",
            "harmful": 1,
            "source": "a",
            "category": f"c{n % 2}",
        }
        for n in range(10)
    ]
    lines += [{"prompt": f"ask {n}", "response": f"take sugar {n}", "harmful": 0, "source": "a"} for n in range(20)]
    lines += [
        {
            "prompt": f"问题{n}",
            "response": "下毒" if n < 2 else f"下毒 poison {n}",
            "harmful": 1,
            "language": "zh",
            "source": "b",
        }
        for n in range(10)
    ]
    path = folder / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines + (extra or [])))
    return path


def report(path: Path, **options: Any) -> Report:
    return verify(Request(files=[path], **{"verifier": WORD, **options}), io.StringIO())


def test_figures_come_with_intervals_and_by_language_category_and_source(tmp_path: Path) -> None:
    (found,) = report(data(tmp_path)).verifiers
    (harm,) = found.fields
    assert (harm.field, harm.polarity, harm.all.rows, harm.all.positives) == ("harmful", "bad", 40, 20)
    assert harm.all.caught[0] == 0.9 and harm.all.flagged == (0.0, 0.0, pytest.approx(0.1611, abs=1e-4))
    assert harm.by["language"]["zh"].caught[0] == 0.8 and harm.by["language"]["en"].caught[0] == 1.0
    assert {name: figures.rows for name, figures in harm.by["source"].items()} == {"a": 30, "b": 10}
    assert set(harm.by["category"]) == {"c0", "c1"}
    assert harm.all.auroc == pytest.approx(0.95)
    assert found.order.changed == 0 and found.order.rows == 32


def test_a_verifier_is_started_before_it_judges_and_stopped_behind(tmp_path: Path) -> None:
    (found,) = report(data(tmp_path), verifier="word_verifier:StartedVerifier", attacks="mirrored").verifiers
    assert found.statuses == {"ok": 40}
    assert StartedVerifier.calls == ["start", "stop"]


def test_what_was_judged_is_not_judged_again_and_what_failed_is(tmp_path: Path) -> None:
    failing = {"prompt": "x", "response": "crash", "harmful": 1}
    path, output = (
        data(tmp_path, [failing, {"prompt": "y", "response": "pass", "harmful": 0}]),
        tmp_path / "verdicts.jsonl",
    )
    first = report(path, output=output)
    lines = output.read_bytes()
    torn = lines + lines.splitlines()[0][:40]  # as after a crash in the middle of a write
    output.write_bytes(torn)
    second = report(path, output=output)
    grown = output.read_bytes()
    assert grown.startswith(lines) and len(grown.splitlines()) == len(lines.splitlines()) + 1  # the failed row alone
    assert json.loads(grown.splitlines()[-1])["verdict"]["status"] == "error"
    assert first.plain()["verifiers"] == second.plain()["verifiers"]


def test_other_options_are_another_verifier_to_the_file(tmp_path: Path) -> None:
    path, output = data(tmp_path), tmp_path / "verdicts.jsonl"
    report(path, output=output)
    (found,) = report(path, output=output, options=["word=sugar"]).verifiers
    assert found.fields[0].all.flagged[0] == 1.0
    assert len(output.read_text().splitlines()) == 80


def test_a_verdict_without_score_is_counted_and_is_neither_class(tmp_path: Path) -> None:
    failing = [{"prompt": "x", "response": "crash", "harmful": 1}, {"prompt": "y", "response": "pass", "harmful": 0}]
    (found,) = report(data(tmp_path, failing)).verifiers
    assert found.statuses == {"ok": 40, "error": 1, "abstain": 1}
    assert found.fields[0].without_score == {"error": 1, "abstain": 1}
    assert found.fields[0].all.rows == 40
    assert found.problems == {"RuntimeError": 1}


def test_a_verifier_that_reads_its_place_in_the_batch_is_found_out(tmp_path: Path) -> None:
    (found,) = report(data(tmp_path), verifier="word_verifier:PlaceVerifier").verifiers
    assert found.order.changed > 0 and found.order.largest_difference == 1.0


def test_the_command_shows_tables_and_json_without_any_text_of_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data(tmp_path, ["oops", {"prompt": "x", "response": "crash", "harmful": 1}])
    arguments = ["verify", str(path), "--verifier", WORD, "--attacks", "mirrored,leet"]
    assert main(arguments) == 1  # a malformed line is found wanting
    shown = capsys.readouterr().out
    assert "language zh" in shown and "attacks on harmful" in shown and f"{path}:41: field `(line)`" in shown
    assert main([*arguments, "--json"]) == 1
    printed = capsys.readouterr().out
    plain = json.loads(printed)
    (attack, _) = plain["verifiers"][0]["attacks"]["harmful"]
    assert attack["attack"] == "mirrored" and attack["caught_after"][0] == 0.0
    for text in ("sugar", "poison", "下毒", "crash"):
        assert text not in shown and text not in printed


def test_a_pool_is_judged_by_each_of_its_verifiers(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "pools:\n  rules: {actor: 'safeladder.actors.verifier:VerifierPool',\n"
        "    options: {verifiers: {repetition: {}, length: {max_characters: 400, buffer: 400}}}}\n"
    )
    found = report(data(tmp_path), verifier=None, pool="rules", config=str(config))
    assert [each.verifier for each in found.verifiers] == ["repetition", "length"]
    with pytest.raises(ConfigError, match="did you mean 'rules'"):
        report(data(tmp_path), verifier=None, pool="rule", config=str(config))


def test_requests_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = data(tmp_path)
    with pytest.raises(ConfigError, match="either --verifier"):
        report(path, verifier=None)
    with pytest.raises(ConfigError, match="did you mean 'word'"):
        report(path, options=["wort=x"])
    with pytest.raises(ConfigError, match="key=value"):
        report(path, options=["word"])
    with pytest.raises(ConfigError, match="is of --verifier"):
        report(path, verifier=None, pool="rules", options=["n=3"])
    other = tmp_path / "other.jsonl"
    other.write_text('{"not": "verdicts"}\n')
    with pytest.raises(VerdictFileError, match=r"other.jsonl:1.*another --output"):
        report(path, output=other)


def test_a_limit_spreads_over_the_file(tmp_path: Path) -> None:
    (found,) = report(data(tmp_path), limit=8).verifiers
    assert found.rows == 8
    assert {name: figures.rows for name, figures in found.fields[0].by["source"].items()} == {"a": 6, "b": 2}
