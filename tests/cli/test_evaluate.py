"""`graft evaluate` over a toy graft and a folder of captions: the contract of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftlm import backbones, grafts
from graftlm.cli.main import main
from graftlm.evaluate.metrics import java
from graftlm.systems.base import System, system_class
from tests.evaluate import toys
from tests.pictures import picture


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> System:
    torch.manual_seed(0)
    cls = system_class("clipcap")
    config = cls.Config(lm="toy", encoder="toy", precision="float32", mapper="mlp", num_tokens=2)
    system = cls.build(config, backbones.load_parts(config)).eval()
    monkeypatch.setattr(grafts, "load", lambda source: system)
    monkeypatch.setattr(java, "missing", lambda: "is switched off")
    return system


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for seed in range(5):
        picture(seed).save(folder / f"{seed}.png")
        rows.append(
            {"image": f"{seed}.png", "split": "test" if seed else "val", "captions": [f"thing {seed}", "a thing"]}
        )
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_the_last_line_of_stdout_is_the_contracts_json_object(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", "toy", "captioning", "--data", str(data), "--split", "test", "--limit", "3", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["task"], found["graft"], found["n"], found["seed"]) == ("captioning", "toy", 3, 0)
    assert {"CIDEr", "BLEU-4", "ROUGE-L"} <= set(found["metrics"])
    assert {"blind", "shuffled"} <= set(found["controls"])
    assert set(found["controls"]["blind"]) == set(found["metrics"])
    low, high = found["intervals"]["ROUGE-L"]
    assert low <= found["metrics"]["ROUGE-L"] <= high
    assert found["seconds"] > 0


def test_a_length_penalty_makes_answers_shorter_or_longer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "toy", "captioning", "--data", str(data), "--split", "test", "--controls", "none", "--json"]

    def mean_length(*more: str) -> float:
        assert main([*command, "--beam", "4", *more]) == 0
        return float(json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["mean length"])

    assert mean_length("--length-penalty", "-3") < mean_length("--length-penalty", "3")
    assert mean_length("--length-penalty", "1") == mean_length()
    assert main([*command, "--beam", "1", "--length-penalty", "0.7"]) == 2
    assert "--length-penalty: expected a search with beams" in capsys.readouterr().err


def test_people_get_a_table_and_no_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "toy", "exact", "--data", str(data), "--split", "test", "--controls", "none", "--beam", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert "n = 4" in out
    assert "blind" not in out


def test_a_report_is_written_where_it_is_asked_for(data: Path, tmp_path: Path) -> None:
    command = ["evaluate", "toy", "captioning", "--data", str(data), "--controls", "blind", "--json"]
    assert main([*command, "--report", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out" / "captioning.json").read_text("utf-8"))["rows"]) == 5
    assert "<!doctype html>" in (tmp_path / "out" / "captioning.html").read_text("utf-8")


def test_a_run_keeps_its_reports_with_its_curve(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "graft").mkdir(parents=True)
    steps = [{"event": "train", "step": step, "loss": 3.0 - step} for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps), encoding="utf-8")
    assert main(["evaluate", str(run / "graft"), "captioning", "--data", str(data), "--controls", "none"]) == 0
    assert "<polyline" in (run / "reports" / "captioning.html").read_text("utf-8")


def test_the_page_of_a_flamingo_shows_its_gates_and_what_its_words_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grafts, "load", lambda source: toys.toy("flamingo"))
    run = tmp_path / "run"
    (run / "graft").mkdir(parents=True)
    steps = [{"event": "train", "step": step, "gate_dense_00": 0.1 * step} for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps), encoding="utf-8")
    command = ["evaluate", str(run / "graft"), "fewshot", "--data", str(data), "--split", "test", "--support", "val"]
    command += ["--shots", "1", "--set", "zero=none", "--beam", "1", "--controls", "none"]
    assert main(command) == 0
    html = (run / "reports" / "fewshot.html").read_text("utf-8")
    assert "gate dense by layer over steps" in html
    assert html.count("<article class='card reading'>") == 4
    assert "picture 2 100%" in html


def test_a_system_that_finds_no_pictures_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "toy", "retrieval", "--data", str(data), "--split", "test"]) == 2
    err = capsys.readouterr().err
    assert "expected a system that finds pictures" in err
    assert "found 'clipcap'" in err


def test_few_shot_draws_its_examples_from_another_split(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "toy", "fewshot", "--data", str(data), "--split", "val", "--support", "test"]
    assert main([*command, "--shots", "0,2", "--select", "rices", "--beam", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert (found["task"], found["n"]) == ("fewshot", 1)
    assert {"CIDEr@0", "CIDEr@2", "distinct@2"} <= set(found["metrics"])
    assert set(found["controls"]["blind"]) == set(found["metrics"])
    assert "photos" in err  # RICES reads the feature cache
    assert main([*command, "--shots", "1", "--set", "seeds=2", "--set", "encoder=toy", "--controls", "none"]) == 0
    assert "CIDEr@1" in capsys.readouterr().out


def test_an_encoder_for_rices_is_named_wrongly_or_reads_no_pictures(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "toy", "fewshot", "--data", str(data), "--support", "test", "--select", "rices"]
    for name, code, words in (("toi", 1, "did you mean 'toy'"), ("toy-text", 2, "found one that reads text")):
        assert main([*command, "--shots", "1", "--set", f"encoder={name}"]) == code
        assert words in capsys.readouterr().err


def test_a_graft_that_finds_pictures_compares_them_as_it_was_trained_to(
    toy: System, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = system_class("dual_encoder")
    config = cls.Config(encoder="toy", text_encoder="toy-text", shared_dim=4)
    finder = cls.build(config, backbones.load_parts(config)).eval()
    folders = {str(grafts.save(system, tmp_path / system.name)): system for system in (finder, toy)}
    monkeypatch.setattr(grafts, "load", lambda source: folders.get(source, toy))
    asked: list[int] = []
    embed = finder.embed_media
    monkeypatch.setattr(finder, "embed_media", lambda media: asked.append(len(media)) or embed(media))
    command = ["evaluate", "toy", "fewshot", "--data", str(data), "--split", "val", "--support", "test"]
    command += ["--shots", "2", "--select", "rices", "--controls", "none", "--set"]
    assert main([*command, f"encoder={tmp_path / 'dual_encoder'}"]) == 0
    assert asked == [4, 1]
    capsys.readouterr()
    assert main([*command, f"encoder={tmp_path / 'clipcap'}"]) == 2
    assert "a graft that finds pictures, found 'clipcap'" in capsys.readouterr().err


def test_a_trained_encoder_compares_pictures_without_a_cache(toy: System, data: Path) -> None:
    command = ["evaluate", "toy", "fewshot", "--data", str(data), "--split", "val", "--support", "test"]
    toy.encoders.requires_grad_(True)
    assert main([*command, "--shots", "2", "--select", "rices", "--controls", "none"]) == 0
    assert all(parameter.requires_grad for parameter in toy.encoders.parameters())


def test_few_shot_asks_questions_and_ranks_their_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for seed in range(6):
        picture(seed).save(tmp_path / f"{seed}.png")
        split = "train" if seed > 1 else "val"
        choices = ["red", "blue", "green"]
        rows.append({"image": f"{seed}.png", "split": split, "question": "which?", "answer": "red", "choices": choices})
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["evaluate", "toy", "fewshot", "--data", str(tmp_path), "--split", "val", "--shots", "0,2", "--json"]
    for extra in ([], ["--set", "answer=rank", "--set", "permutations=2"]):
        assert main([*command, "--controls", "blind", *extra]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["n"] == 2
        assert {"accuracy@0", "accuracy@2"} <= set(found["metrics"])


def test_binding_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "toy", "binding", "--limit", "8", "--beam", "1", "--json"]
    assert main([*command, "--report", str(tmp_path / "binding.json")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["task"], found["n"]) == ("binding", 8)
    assert set(found["metrics"]) == {"accuracy", "accuracy (names)", "named"}
    assert found["controls"]["blind"]["accuracy (names)"] == 50
    assert (tmp_path / "binding.html").read_text("utf-8").count(
        "<img"
    ) == 24  # two examples and the picture asked about
    assert main([*command, "--split", "test", "--shots", "2", "--controls", "none"]) == 0
    assert "chance among the names" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["captionning", "--data", "."], 2, "did you mean 'captioning'"),
        (["captioning", "--data", "no/such/folder"], 1, "no/such/folder"),
        (["captioning", "--data", "no/such/folder", "--controls", "blnd"], 2, "did you mean 'blind'"),
        (["captioning"], 2, "--data"),
        (["visdial", "--data", ".", "--set", "compat"], 2, "expected KEY=VALUE"),
        (["visdial", "--data", ".", "--set", "compat=paper"], 2, "expected none or official, found 'paper'"),
        (["captioning", "--data", ".", "--shots", "4"], 2, "unknown setting 'shots' (there are: none)"),
        (["fewshot", "--shots", "4"], 2, "expected data, found none; name its folder or file with --data"),
        (["fewshot", "--data", ".", "--shots", "four"], 2, "'shots': expected different whole numbers"),
        (["fewshot", "--data", ".", "--select", "near"], 2, "expected random or fixed or rices, found 'near'"),
        (["binding", "--split", "train"], 2, "expected val or test, found 'train'"),
        (["binding", "--set", "ways=9"], 2, "expected a whole number from 2 to 5, found '9'"),
        (["captioning", "--data", ".", "--set", "compat=official"], 2, "unknown setting 'compat' (there are: none)"),
    ],
)
def test_wrong_requests_say_what_to_do(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "toy", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_support_split_that_is_not_there_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "toy", "fewshot", "--data", str(data), "--split", "test"]
    assert main(command) == 1
    assert "expected rows of split 'train', found test, val" in capsys.readouterr().err
    assert main([*command, "--support", "val", "--shots", "4"]) == 1
    assert "expected 4 worked examples with different photos" in capsys.readouterr().err


def test_a_classification_takes_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text("label\tsentence\n0\tbad\n1\tgood\n1\tfine\n")
    base = ["evaluate", "toy", "classification", "--data", str(tmp_path / "sst2"), "--split", "dev"]
    base += ["--set", "words=mean"]  # a byte tokenizer begins every word with the same space
    assert main([*base, "--template", "sst2/review", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 3
    assert found["metrics"]["majority class"] == pytest.approx(200 / 3, abs=1e-3)
    assert set(found["controls"]) == {"blind", "shuffled"}
    assert main([*base, "--json"]) == 0  # the folder's name is the dataset's
    capsys.readouterr()
    assert main([*base, "--template", "sst2/revue"]) == 1
    assert "did you mean 'review'" in capsys.readouterr().err
