"""The ledger writes each bad row down once, and stops a run that has too many."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graftlm.data.ledger import Ledger
from graftlm.errors import BadSampleError, ConfigError, DataError


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_bad_row_is_a_line_with_reason_message_and_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "bad_samples.jsonl")
    with ledger.row("a.jsonl", 7):
        raise BadSampleError("empty-caption", "expected words, found none é")
    assert lines(tmp_path / "deep" / "bad_samples.jsonl") == [
        {"reason": "empty-caption", "message": "expected words, found none é", "file": "a.jsonl", "row": 7}
    ]
    assert ledger.rows == 1
    assert ledger.reasons == {"empty-caption": 1}


def test_only_bad_samples_are_caught() -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match="a bug"), ledger.row("a", 1):
        raise ValueError("a bug")


def test_a_row_met_again_is_counted_once_and_a_resumed_run_does_not_repeat_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for _ in range(2):
        ledger = Ledger(path)
        for _ in range(3):
            ledger.add("bad-json", "no json", file="a", row=1)
        assert ledger.reasons == {"bad-json": 1}
    ledger.add("bad-json", "no json", file="a", row=2)
    assert [line["row"] for line in lines(path)] == [1, 2]


def test_a_line_cut_by_a_kill_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    Ledger(path).add("bad-json", "one", file="a", row=1)
    path.write_text(path.read_text() + '{"reason": "bad-js')
    Ledger(path).add("bad-json", "two", file="a", row=2)
    whole = path.read_text().splitlines()
    assert [json.loads(whole[0])["row"], whole[1], json.loads(whole[2])["row"]] == [1, '{"reason": "bad-js', 2]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl")
    with ThreadPoolExecutor(8) as pool:
        for number in range(200):
            pool.submit(ledger.add, "bad-json", "x" * 300, file="a", row=number)
    assert sorted(int(str(line["row"])) for line in lines(tmp_path / "bad.jsonl")) == list(range(200))


def test_a_count_is_a_hard_limit_and_the_error_names_the_commonest_reasons(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "bad.jsonl", budget=6)
    for number, reason in enumerate(["a", "a", "a", "b", "b", "c"]):
        ledger.add(reason, "x", file="f", row=number)
    with pytest.raises(DataError, match=r"at most 6 bad rows, found 7 .*3 a, 2 b, 1 c.*bad\.jsonl"):
        ledger.add("d", "x", file="f", row=9)


def test_a_fraction_is_taken_of_a_hundred_rows_at_least_until_the_end() -> None:
    ledger = Ledger(budget=0.02)
    for number in range(2):
        with ledger.row("f", number):
            raise BadSampleError("a", "x")
    with pytest.raises(DataError, match=r"at most 2\.00% of the rows bad rows, found 2 among 2"):
        ledger.check()
    for number in range(200):
        with ledger.row("f", number + 10):
            pass
    ledger.check()


def test_a_budget_of_nothing_stops_at_the_first() -> None:
    with pytest.raises(DataError, match="row 3: why"):
        Ledger(budget=0).add("a", "why", file="f", row=3)


@pytest.mark.parametrize("budget", [-1, -0.1, 1.5])
def test_an_odd_budget_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"fraction in \[0, 1\]"):
        Ledger(budget=budget)


def test_a_ledger_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the ledger"):
        Ledger(tmp_path / "file" / "bad.jsonl").add("a", "x", file="f")
