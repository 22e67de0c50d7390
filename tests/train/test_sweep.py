"""Sweeps over a toy: every run once, choices by dev rows alone, resumed where it stopped, parts and data shared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftlm.errors import ConfigError, DataError, GraftError
from graftlm.systems.base import system_names
from graftlm.train import sweep as sweeping
from graftlm.train.sweep import ROWS, SharedReading, SweepRunner, read_rows
from graftlm.train.sweep_recipe import (
    SweepRecipe,
    best_choice,
    choices,
    digest,
    job,
    load_sweep,
    methods_of,
    parse_sweep,
    plan,
    pretraining,
)
from tests.architecture.source import ROOT

MEAN = {"words": "mean"}
"""A byte tokenizer begins every word with the same space."""
RECIPES = sorted((ROOT / "recipes").glob("prompts_*.yaml"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Reviews whose first byte tells the class."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("dev", 12)):
        lines = [f"{n % 2}\t{'zx'[n % 2]} film {n}" for n in range(count)]
        (folder / f"{split}.tsv").write_text("label\tsentence\n" + "\n".join(lines) + "\n")
    return folder.parent


def tables(data: Path, **more: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "sweep": {"seeds": [0, 1], "tune_seeds": [0], "data": str(data)},
        "common": {
            "system": {"lm": "toy", "precision": "float32"},
            "train": {"lr": 0.05, "batch_size": 4, "max_steps": 4, "eval_every": 2, "save_every": 0},
            "evaluate": {"sample_every": 0, "blind": False},
            "run": {"threads": 1},
        },
        "datasets": {"films": {"path": "sst2", "template": "sst2", "test": "dev", "shots": 8}},
        "methods": {
            "prompt": {
                "system": {"name": "prompt_tuning", "num_tokens": 2},
                "tune": {"train.lr": [0.05, 1e-6]},
                "settings": MEAN,
                "base": "manual",
            },
            "manual": {"system": {"name": "manual_prompt"}, "settings": MEAN},
        },
    }
    for name, table in more.items():
        tree[name] = {**tree[name], **table}
    return tree


def made(data: Path, **more: Mapping[str, Any]) -> SweepRecipe:
    return parse_sweep(tables(data, **more))


def run(data: Path, folder: Path, **more: Mapping[str, Any]) -> tuple[SweepRunner, list[dict[str, Any]]]:
    runner = SweepRunner(made(data, **more), folder, quiet=True)
    return runner, runner.run()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_run_of_the_shipped_sweeps_has_a_whole_recipe(path: Path) -> None:
    sweep = load_sweep(path)
    assert len(sweep.sweep.seeds) == 5
    assert set(sweep.methods) >= {"prompt_tuning", "prefix_tuning", "prompt_ipt_random", "prefix_ipt_pretrained"}
    grafts = {name: Path("graft") for name in sweep.pretrained}
    before = {name: pretraining(sweep, name).system for name in sweep.pretrained}
    assert {table.name for table in before.values()} <= set(system_names())
    for own in (table.system for table in sweep.methods.values() if table.system.get("strategy") == "encoder"):
        given = before[own["pretrained"][1:]].options()  # of another shape, its network would be left where it is
        assert (given["network"], given["num_tokens"]) == (own["network"], own["num_tokens"])
    for dataset, method, count in plan(sweep):
        assert count >= (5 if sweep.methods[method].draws else 1)
        for choice in choices(sweep.methods[method]):
            found = job(sweep, dataset, method, 1, choice, grafts)
            assert found.recipe.train.seed == found.recipe.data.train["draw"] == 1
            assert found.test["split"] not in str(found.recipe.data.train["split"]).split("+")


def test_every_method_runs_with_every_seed_and_is_reported_once(data: Path, tmp_path: Path) -> None:
    _, rows = run(data, tmp_path / "runs")
    wanted = [("prompt", 0), ("prompt", 1), ("manual", 0), ("manual", 1)]
    assert [(row["method"], row["seed"]) for row in rows] == wanted
    for row in rows:
        assert row["n"] == 12
        assert 0 <= row["test"]["accuracy"] <= 100
        assert row["test"]["majority class"] == 50
        assert set(row["dev"]) >= {"accuracy", "log-loss"}
    assert rows[0]["steps"] == 4
    assert rows[0]["stored"] == 2 * 96
    assert rows[2]["steps"] == rows[2]["stored"] == 0
    kept = read_rows(tmp_path / "runs" / ROWS)
    assert sorted(bool(row.get("test")) for row in kept) == [False, True, True, True, True]


def test_what_is_done_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = run(data, tmp_path / "runs")
    monkeypatch.setattr(SweepRunner, "_run", lambda *_, **__: pytest.fail("a run was run again"))
    _, again = run(data, tmp_path / "runs")
    assert again == rows


def test_a_sweep_that_was_stopped_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(data, tmp_path / "whole")[1]
    done: list[str] = []
    before = SweepRunner._run

    def stop(self: SweepRunner, each: Any, *, report: bool) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(each.id)
        return before(self, each, report=report)

    monkeypatch.setattr(SweepRunner, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "runs")
    monkeypatch.setattr(SweepRunner, "_run", before)
    with (tmp_path / "runs" / ROWS).open("a") as file:
        file.write('{"id": "cut by a ki')
    _, rows = run(data, tmp_path / "runs")
    timeless = ("seconds", "train_s")
    assert [{k: v for k, v in row.items() if k not in timeless} for row in rows] == [
        {k: v for k, v in row.items() if k not in timeless} for row in whole
    ]


def test_a_method_that_draws_nothing_runs_once_and_stands_for_every_seed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manual = {"system": {"name": "manual_prompt"}, "settings": MEAN}
    _, wanted = run(data, tmp_path / "each", methods={"manual": manual})
    ran: list[str] = []
    before = SweepRunner._run
    monkeypatch.setattr(SweepRunner, "_run", lambda self, each, **how: ran.append(each.id) or before(self, each, **how))
    runner, found = run(data, tmp_path / "once", methods={"manual": {**manual, "draws": False}})
    assert len([one for one in ran if "manual" in one]) == 1
    assert [(row["method"], row["seed"], row["hits"]) for row in found] == [
        (row["method"], row["seed"], row["hits"]) for row in wanted
    ]
    assert runner.known() == found
    trained = {"system": {"name": "prompt_tuning", "num_tokens": 2}, "settings": MEAN, "draws": False}
    with pytest.raises(ConfigError, match="expected true for a method that is trained"):
        run(data, tmp_path / "trained", methods={"manual": trained})


def test_a_table_shows_one_choice_even_where_another_was_reported_before(data: Path, tmp_path: Path) -> None:
    """With other seeds to tune by, another choice may be the best; the rows of the one before it stay in the file."""
    run(data, tmp_path / "runs")
    place = tmp_path / "runs" / ROWS
    rows = read_rows(place)
    chosen = next(row["choice"] for row in rows if row["method"] == "prompt" and row.get("test"))
    for one in rows:  # as if this rate had been the worse one
        if one["method"] == "prompt" and one["choice"] == chosen:
            one["dev"] = {**one["dev"], "accuracy": -1.0}
    place.write_text("".join(json.dumps(one) + "\n" for one in rows))
    runner, found = run(data, tmp_path / "runs")
    others = [row for row in found if row["method"] == "prompt"]
    assert [row["seed"] for row in others] == [0, 1]
    assert all(row["choice"] != chosen for row in others)
    assert [row["id"] for row in runner.known()] == [row["id"] for row in found]


def test_the_reported_rows_are_asked_only_when_the_choice_is_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    before = SweepRunner._asked

    def ask(self: SweepRunner, system: Any, each: Any, spec: Any, limit: int = 0) -> Any:
        asked.append(spec["split"])
        return before(self, system, each, spec, limit)

    monkeypatch.setattr(SweepRunner, "_asked", ask)
    run(data, tmp_path / "runs", methods={"manual": {"system": {"name": "manual_prompt"}, "settings": MEAN}})
    assert asked[:2] == ["train", "train"]
    assert asked.count("dev") == 4


def test_parts_are_loaded_and_data_read_once(data: Path, tmp_path: Path) -> None:
    runner, _ = run(data, tmp_path / "runs")
    found = runner.savings()
    assert found["parts_loaded"] == 1
    assert found["parts_reused"] == 5  # two choices and the chosen one again, a second seed, two without training
    assert found["data_read"] == 5  # train and dev of two seeds, and the reported rows
    assert found["data_reused"] > 5


def test_shared_parts_and_data_change_no_number(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graftlm import backbones

    shared = run(data, tmp_path / "shared")[1]

    class Alone(backbones.SharedParts):
        def __call__(self, config: Any) -> Any:
            return backbones.load_parts(config)

    monkeypatch.setattr(backbones, "SharedParts", Alone)
    monkeypatch.setattr(SharedReading, "__call__", lambda _, spec, ledger: sweeping.read(spec, ledger))
    alone = run(data, tmp_path / "alone")[1]
    assert [row["test"] for row in shared] == [row["test"] for row in alone]
    assert [row["hits"] for row in shared] == [row["hits"] for row in alone]


def test_a_trained_language_model_is_not_shared(data: Path, tmp_path: Path) -> None:
    methods = {
        "full": {"system": {"name": "finetuning", "training": "full"}, "settings": MEAN},
        "manual": {"system": {"name": "manual_prompt"}, "settings": MEAN},
    }
    tree = tables(data)
    tree["methods"] = methods
    runner = SweepRunner(parse_sweep(tree), tmp_path / "runs", quiet=True)
    rows = runner.run()
    fresh = tables(data)
    fresh["methods"] = {"manual": methods["manual"]}
    alone = SweepRunner(parse_sweep(fresh), tmp_path / "alone", quiet=True).run()
    assert [row["hits"] for row in rows[2:]] == [row["hits"] for row in alone]
    assert runner.savings()["parts_loaded"] == 3


def test_a_run_whose_loss_goes_astray_is_a_failed_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise GraftError("the loss went away")

    monkeypatch.setattr(SweepRunner, "_trained", fail)
    _, rows = run(data, tmp_path / "runs")
    assert {row["failed"] for row in rows} == {"the loss went away"}

    def mend(*_: Any, **__: Any) -> Any:
        raise ConfigError("wrong")

    monkeypatch.setattr(SweepRunner, "_trained", mend)
    with pytest.raises(ConfigError, match="wrong"):
        run(data, tmp_path / "others")


def test_what_is_left_of_a_run_is_its_numbers(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "runs")
    names = {path.name for place in (tmp_path / "runs" / "runs").iterdir() for path in place.iterdir()}
    assert "metrics.jsonl" in names
    assert not names & {"checkpoints", "graft"}
    run(data, tmp_path / "kept", sweep={"seeds": [0], "data": str(data), "keep_grafts": True})
    assert list((tmp_path / "kept" / "runs").glob("*/graft/graft.json"))


def row(lr: float, accuracy: float, loss: float = 1.0) -> dict[str, Any]:
    return {"choice": {"train.lr": lr}, "dev": {"accuracy": accuracy, "log-loss": loss}}


def test_the_best_mean_on_dev_rows_is_chosen_and_a_tie_goes_to_the_lower_loss() -> None:
    assert best_choice([row(1, 50), row(1, 60), row(2, 58), row(2, 58)]) == {"train.lr": 2}
    assert best_choice([row(1, 50, 2.0), row(2, 50, 1.0)]) == {"train.lr": 2}
    assert best_choice([row(1, 50), row(2, 50)]) == {"train.lr": 1}
    assert best_choice([{"choice": {"train.lr": 1}, "dev": {}}, row(2, 1)]) == {"train.lr": 2}


def test_tables_are_laid_over_each_other_and_choices_last(data: Path) -> None:
    tree = tables(data)
    tree["datasets"]["films"]["changes"] = {"train.max_steps": 7, "train.lr": 9.0}
    tree["methods"]["prompt"]["train"] = {"batch_size": 2}
    found = job(parse_sweep(tree), "films", "prompt", 3, {"train.lr": 0.5})
    table = found.recipe.train
    assert (table.lr, table.max_steps, table.batch_size, table.seed) == (0.5, 7, 2, 3)
    assert found.recipe.data.train == {
        "reader": "labelled",
        "path": str(data / "sst2"),
        "template": "sst2",
        "split": "train",
        "draw": 3,
        "shots": 8,
        "part": "train",
    }
    assert found.recipe.data.val == {**found.recipe.data.train, "part": "dev"}
    assert found.test == {"reader": "labelled", "path": str(data / "sst2"), "template": "sst2", "split": "dev"}
    assert digest(found.recipe) != digest(job(parse_sweep(tree), "films", "prompt", 3, {"train.lr": 0.6}).recipe)


def test_a_head_is_told_the_number_of_classes_and_a_graft_its_place(data: Path) -> None:
    tree = tables(data)
    tree["methods"] = {
        "probe": {"system": {"name": "linear_probe"}},
        "ppt": {"system": {"name": "ppt", "num_tokens": 2, "pretrained": "@pairs"}},
    }
    sweep = parse_sweep(tree)
    assert job(sweep, "films", "probe", 0, {}).recipe.system.options()["num_classes"] == 2
    found = job(sweep, "films", "ppt", 0, {}, {"pairs": Path("somewhere/graft")})
    assert found.recipe.system.options()["pretrained"] == "somewhere/graft"
    with pytest.raises(ConfigError, match="unknown pretrained graft 'pairs'"):
        job(sweep, "films", "ppt", 0, {})


def test_a_part_of_a_sweep_can_be_asked_for(data: Path) -> None:
    tree = tables(data)
    tree["methods"]["manual"]["datasets"] = ["films"]
    tree["datasets"]["more"] = {"path": "trec", "template": "trec"}
    sweep = parse_sweep(tree)
    assert methods_of(sweep, "more") == ["prompt"]
    assert list(plan(sweep.only(["manual"]))) == [("films", "manual", 2)]
    assert list(plan(sweep.only(["films", "prompt"]))) == [("films", "prompt", 4)]
    with pytest.raises(ConfigError, match="did you mean 'manual'"):
        sweep.only(["manuel"])


def test_a_part_of_a_sweep_pretrains_what_it_begins_with_alone(data: Path) -> None:
    tree = tables(data)
    tree["pretrained"] = {name: {"system": {"name": "ppt"}} for name in ("start", "other", "third")}
    tree["methods"]["ppt"] = {"system": {"name": "ppt", "pretrained": "@start"}}
    tree["methods"]["any"] = {"system": {"name": "ppt"}, "tune": {"system.pretrained": ["@other", ""]}}
    sweep = parse_sweep(tree)
    assert set(sweep.only(["films"]).pretrained) == {"start", "other"}
    assert set(sweep.only(["ppt", "manual"]).pretrained) == {"start"}
    assert set(sweep.only(["any"]).pretrained) == {"other"}
    assert sweep.only(["manual"]).pretrained == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"prompt": {"system": {"name": "prompt_tuning"}, "base": "nothing"}}}, "unknown method 'nothing'"),
        ({"common": {"trian": {}}}, "unknown table of common 'trian'; did you mean 'train'"),
        ({"datasets": {"films": {"path": "x", "template": "sst2", "shot": 3}}}, "unknown key 'datasets.films.shot'"),
        ({"methods": {"prompt": {"system": {"name": "p"}, "tune": {"train.lr": []}}}}, "found an empty list"),
        ({"methods": {}}, "expected at least one dataset and one method"),
        ({"sweep": {"seeds": []}}, "sweep.seeds: expected one seed or more, each once, found []"),
        ({"sweep": {"seeds": [1, 1]}}, "sweep.seeds: expected one seed or more, each once, found [1, 1]"),
        ({"sweep": {"tune_seeds": []}}, "sweep.tune_seeds: expected one seed or more"),
        ({"sweep": {"seeds": [-1]}}, "sweep.seeds.0"),
        ({"methods": {"p": {"system": {"name": "p"}, "tune": {"train.lr": [1]}, "draws": False}}}, "methods.p.draws"),
    ],
)
def test_a_bad_sweep_is_told_in_one_sentence(data: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_sweep({**tables(data), **change})
    assert message in str(error.value)


def test_what_is_pretrained_is_trained_once(data: Path, tmp_path: Path) -> None:
    tree = tables(data)
    tree["sweep"]["seeds"] = [0]
    tree["pretrained"] = {
        "start": {
            "system": {"name": "ppt", "num_tokens": 2},
            "data": {"train": {"reader": "labelled", "path": "sst2", "split": "train", "template": "sst2/review"}},
            "train": {"max_steps": 2},
        }
    }
    own = {"name": "ppt", "num_tokens": 2, "pretrained": "@start"}
    tree["methods"] = {"ppt": {"system": own, "settings": MEAN}}
    for _ in range(2):
        rows = SweepRunner(parse_sweep(tree), tmp_path / "runs", quiet=True).run()
        assert rows[0]["n"] == 12
    (place,) = (tmp_path / "runs" / "pretrained").iterdir()
    events = [json.loads(line)["event"] for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert events.count("end") == 1


def test_the_verb_writes_table_picture_and_rows(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from graftlm.cli.main import main

    recipe = tmp_path / "small_prompts.yaml"
    recipe.write_text(yaml.safe_dump(tables(data)))
    command = ["sweep", str(recipe), "--folder", str(tmp_path / "runs"), "--results", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {cell["method"] for cell in printed["cells"]} == {"prompt", "manual"}
    assert printed["comparisons"][0]["base"] == "manual"
    assert printed["savings"]["parts_loaded"] == 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["small_prompts.jsonl", "small_prompts.md", "small_prompts.svg"]
    page = (tmp_path / "out" / "small_prompts.md").read_text()
    assert "# Small prompts" in page
    assert str(tmp_path) not in page + (tmp_path / "out" / "small_prompts.jsonl").read_text()
    assert main([*command, "--table"]) == 0
    assert "| commonest class | 50.0 | 50.0 |" in capsys.readouterr().out
    assert main([*command, "--set", "common.train.max_steps=2", "--only", "prompt, films"]) == 0
    assert "`graft sweep recipes/small_prompts.yaml --only 'prompt, films' --set=common.train.max_steps=2`" in (
        capsys.readouterr().out
    )
    assert main([*command, "--table", "--json"]) == 0  # what ran with two steps lies in the same folder
    assert json.loads(capsys.readouterr().out)["cells"] == printed["cells"]
    assert main(["sweep", str(recipe), "--folder", str(tmp_path / "none"), "--table"]) == 1
    assert "expected runs of this sweep, found none" in capsys.readouterr().err


def test_what_is_wrong_with_the_last_dataset_or_method_is_told_before_the_first_run(data: Path, tmp_path: Path) -> None:
    gone = {"path": "gone.tsv", "template": "sst2", "test": "dev", "shots": 8}
    films = {"path": "sst2", "template": "sst2", "test": "dev", "shots": 8}
    with pytest.raises(DataError, match=r"gone\.tsv"):
        run(data, tmp_path / "runs", datasets={"films": films, "gone": gone})
    misspelt = {"system": {"name": "prompt_tuning", "num_token": 2}}
    with pytest.raises(ConfigError, match=r"misspelt on films: .*did you mean 'system.num_tokens'"):
        run(data, tmp_path / "runs", methods={"misspelt": misspelt})
    assert not (tmp_path / "runs" / ROWS).exists()
    run(data, tmp_path / "runs")
    done = read_rows(tmp_path / "runs" / ROWS)
    more = {"again": {"system": {"name": "manual_prompt"}, "settings": MEAN}}
    with pytest.raises(DataError, match=r"gone\.tsv"):  # of a sweep that has grown, too
        run(data, tmp_path / "runs", methods=more, datasets={"films": films, "gone": gone})
    assert read_rows(tmp_path / "runs" / ROWS) == done


def test_a_line_that_a_kill_has_cut_costs_its_own_run_alone(data: Path, tmp_path: Path) -> None:
    _, wanted = run(data, tmp_path / "runs")
    place = tmp_path / "runs" / ROWS
    place.write_text(place.read_text()[:-30])
    _, found = run(data, tmp_path / "runs")
    assert [row["test"] for row in found] == [row["test"] for row in wanted]
    assert {row["id"] for row in wanted} <= {row["id"] for row in read_rows(place)}
