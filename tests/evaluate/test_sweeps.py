"""Statistics of a sweep: means over seeds, paired differences, and pages that say what rows and seeds bear out."""

from __future__ import annotations

import numpy as np
import pytest

from graftlm.evaluate.sweep_page import drawing, page
from graftlm.evaluate.sweeps import summarise, two_sided, unpacked

ROWS = 200


def row(method: str, dataset: str, seed: int, hits: np.ndarray, **more: object) -> dict[str, object]:
    bits = np.packbits(hits.astype(bool)).tobytes().hex()
    test = {"accuracy": 100 * float(hits.mean()), "majority class": 50.0}
    base = {"id": f"{method}{dataset}{seed}", "method": method, "dataset": dataset, "seed": seed}
    costs = {"choice": {}, "dev": {}, "seconds": 2.0, "train_s": 1.0, "stored": 10, "touched": 5}
    return {**base, **costs, "test": test, "n": len(hits), "hits": bits, **more}


def hits(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(ROWS) < share).astype(float)


def sweep(gain: float) -> list[dict[str, object]]:
    """Two methods that are right on the same rows, but for `gain` of those where the base is wrong."""
    found = []
    for dataset in ("one", "two"):
        for seed in range(5):
            base = hits(0.6, seed)
            wrong = np.flatnonzero(base == 0)
            better = base.copy()
            better[wrong[: round(gain * len(wrong))]] = 1
            found += [row("base", dataset, seed, base), row("better", dataset, seed, better)]
    return found


def test_hits_survive_their_packing() -> None:
    wanted = hits(0.4, 3)[:53]
    assert unpacked(row("m", "d", 0, wanted)).tolist() == wanted.tolist()


def test_means_and_deviations_are_over_seeds() -> None:
    summary = summarise(sweep(0.5), {"better": "base"})
    values = [100 * hits(0.6, seed).mean() for seed in range(5)]
    cell = summary.cells["base", "one"]
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.deviation == pytest.approx(np.std(values, ddof=1))
    assert cell.hits.shape == (5, ROWS)
    assert cell.ends[0] < cell.mean < cell.ends[1]
    assert cell.is_above_majority


def test_a_real_gain_is_found_on_every_dataset_and_their_mean() -> None:
    summary = summarise(sweep(0.5), {"better": "base"})
    assert [one.dataset for one in summary.comparisons] == ["one", "two", "mean"]
    for one in summary.comparisons:
        assert one.difference == pytest.approx(20, abs=3)
        assert one.ends[0] > 0
        assert one.p < 0.01


def test_where_there_is_no_gain_one_is_seen_as_seldom_as_an_interval_of_95_percent_allows() -> None:
    seen = 0
    for draw in range(0, 40_000, 1000):
        rows = [row("a", "d", seed, hits(0.6, draw + seed)) for seed in range(5)]
        rows += [row("b", "d", seed, hits(0.6, draw + seed + 50)) for seed in range(5)]
        (one,) = summarise(rows, {"b": "a"}, resamples=400).comparisons
        assert (one.p < 0.05) == (not one.ends[0] <= 0 <= one.ends[1]) or 0.02 < one.p < 0.08
        seen += one.p < 0.05
    assert seen <= 5  # of 40


def test_a_dataset_whose_runs_all_failed_is_left_out() -> None:
    failed = {**row("base", "gone", 0, hits(0.5, 1)), "test": None, "failed": "the loss went away"}
    summary = summarise([*sweep(0.5), failed], {"better": "base"})
    assert summary.datasets == ("one", "two")
    assert "gone" not in page("Prompts", summary, command="graft sweep recipes/x.yaml")


def test_pairing_finds_what_two_intervals_apart_would_not() -> None:
    summary = summarise(sweep(0.1), {"better": "base"})
    base, better = summary.cells["base", "one"], summary.cells["better", "one"]
    assert base.ends[1] > better.ends[0]  # the two intervals overlap
    assert summary.comparisons[0].ends[0] > 0


def test_seeds_that_one_method_lacks_are_left_out_of_the_comparison() -> None:
    rows = [one for one in sweep(0.5) if not (one["method"] == "better" and one["seed"] in (0, 4))]
    summary = summarise(rows, {"better": "base"})
    assert summary.comparisons[0].difference == pytest.approx(20, abs=3)
    assert len(summary.cells["better", "one"].by_seed) == 3


def test_two_sided_probabilities_count_the_rarer_side_twice() -> None:
    assert two_sided(np.array([1.0] * 99)) == pytest.approx(2 / 100)
    assert two_sided(np.array([1.0, -1.0])) == 1
    assert two_sided(np.array([-1.0] * 95 + [1.0] * 4)) == pytest.approx(2 * 5 / 100)


def test_the_page_has_every_table_and_marks_what_is_borne_out() -> None:
    failed = {**row("base", "one", 9, hits(0.5, 1)), "test": None, "failed": "the loss went away"}
    rows = [*sweep(0.5), failed]
    summary = summarise(rows, {"better": "base"})
    text = page("Prompts", summary, command="graft sweep recipes/x.yaml", notes=("a note",), picture="x.svg")
    assert text.startswith("# Prompts\n\nMade by `graft sweep recipes/x.yaml`")
    assert "| commonest class | 50.0 | 50.0 | 50.0 |" in text
    assert "(1 failed)" in text
    assert "**" in text
    assert "| better over base |" in text
    assert "a note" in text
    assert "rows reported: one 200, two 200" in text
    assert "![Accuracy of every method and seed](x.svg)" in text
    assert summary.to_json()["majority"] == {"one": 50.0, "two": 50.0}


def test_the_picture_shows_every_seed_once() -> None:
    import xml.etree.ElementTree as ElementTree

    summary = summarise(sweep(0.5), {})
    text = drawing("Prompts & prefixes", summary)
    root = ElementTree.fromstring(text)
    assert len([one for one in root.iter() if one.tag.endswith("circle")]) == 2 * 2 * 5
    assert "Prompts &amp; prefixes" in text
