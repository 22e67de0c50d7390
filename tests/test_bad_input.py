"""Bad input of every kind through the real command line: one sentence, an exit code, never a traceback."""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from graftlm import grafts
from graftlm.backbones import load_parts
from graftlm.cli.main import main
from graftlm.systems.base import system_class
from tests.pictures import picture

Make = Callable[[Path], list[str]]
RECIPE = {
    "system": {"name": "clipcap", "lm": "toy", "encoder": "toy", "precision": "float32"},
    "data": {"train": {"reader": "jsonl", "path": "data.jsonl"}},
    "train": {"max_steps": 1, "batch_size": 1},
}


@dataclass(frozen=True)
class Case:
    """A kind of bad input: what makes it, the words of its sentence, its exit code."""

    name: str
    make: Make
    says: tuple[str, ...]
    code: int = 1


CASES: list[Case] = []


def bad(*says: str, code: int = 1) -> Callable[[Make], Make]:
    """Adds a case: the function's name is the kind, what it returns the command line."""

    def add(make: Make) -> Make:
        CASES.append(Case(make.__name__, make, says, code))
        return make

    return add


def file(folder: Path, name: str, content: bytes | str) -> str:
    """Writes a file and returns its path."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def png(folder: Path, name: str = "good.png") -> bytes:
    """A good picture, as a file and as bytes."""
    picture(1).save(folder / name)
    return (folder / name).read_bytes()


def png_of_size(width: int, height: int) -> bytes:
    """The head of a picture that claims a size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(bytes(100)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def recipe(folder: Path, text: str | None = None, **changes: object) -> list[str]:
    """`graft train` of a recipe over one captioned picture, or of the given text."""
    png(folder)
    (folder / "data.jsonl").write_text(json.dumps({"image": "good.png", "text": "a block"}) + "\n")
    tables = {**RECIPE, "data": {"train": {"reader": "jsonl", "path": str(folder / "data.jsonl")}}, **changes}
    return ["train", file(folder, "recipe.yaml", text or yaml.safe_dump(tables)), "--run-folder", str(folder / "run")]


# The command itself.


@bad("unknown verb 'captoin'; did you mean 'caption'?", code=2)
def unknown_verb(folder: Path) -> list[str]:
    return ["captoin"]


@bad("No such option: --baem", "--beam", code=2)
def unknown_option(folder: Path) -> list[str]:
    return ["caption", "x.png", "--baem", "3"]


@bad("Missing argument 'PHOTO", code=2)
def missing_argument(folder: Path) -> list[str]:
    return ["caption"]


@bad("Invalid value for '--beam'", code=2)
def option_out_of_range(folder: Path) -> list[str]:
    return ["caption", "x.png", "--beam", "0"]


@bad("Invalid value for '--beam'", code=2)
def option_of_a_wrong_type(folder: Path) -> list[str]:
    return ["caption", "x.png", "--beam", "many"]


@bad("expected a question, found an empty one", code=2)
def empty_question(folder: Path) -> list[str]:
    png(folder)
    return ["ask", str(folder / "good.png"), " "]


@bad("unknown system 'clipkap'; did you mean 'clipcap'?", code=2)
def unknown_system(folder: Path) -> list[str]:
    return ["systems", "clipkap"]


# Pictures.


@bad("there is no file")
def missing_picture(folder: Path) -> list[str]:
    return ["caption", str(folder / "gone.jpg")]


@bad("expected a file, found the web address")
def web_address_as_picture(folder: Path) -> list[str]:
    return ["caption", "https://example.org/photo.jpg"]


@bad("is empty (0 bytes)")
def empty_picture(folder: Path) -> list[str]:
    return ["caption", file(folder, "empty.jpg", b"")]


@bad("is not a picture in a known format")
def text_as_picture(folder: Path) -> list[str]:
    return ["caption", file(folder, "text.jpg", "words")]


@bad("ends too early")
def truncated_picture(folder: Path) -> list[str]:
    picture(1, 256).save(folder / "whole.jpg")
    return ["caption", file(folder, "half.jpg", (folder / "whole.jpg").read_bytes()[:1500])]


@bad("broken.png")
def picture_with_broken_data(folder: Path) -> list[str]:
    data = png(folder)
    middle = len(data) // 2
    return ["caption", file(folder, "broken.png", data[:middle] + b"\0\0\0\0\xff\xff" + data[middle + 6 :])]


@bad("pixels", "safely")
def decompression_bomb(folder: Path) -> list[str]:
    return ["caption", file(folder, "bomb.png", png_of_size(60_000, 60_000))]


@bad("expected a folder of pictures", "found none in it")
def folder_without_pictures(folder: Path) -> list[str]:
    return ["caption", str(folder)]


@bad("there is no file")
def picture_of_a_question_is_missing(folder: Path) -> list[str]:
    return ["ask", str(folder / "gone.jpg"), "What?"]


# Tables of data.


@bad("gone")
def missing_data(folder: Path) -> list[str]:
    return ["data", "check", str(folder / "gone")]


@bad("empty.jsonl")
def empty_table(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "empty.jsonl", ""), "--reader", "jsonl"]


@bad("rows.jsonl")
def table_that_is_not_json(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "rows.jsonl", "{'image': 1\nnonsense\n"), "--reader", "jsonl"]


@bad("latin.jsonl")
def table_in_another_encoding(folder: Path) -> list[str]:
    row = '{"image": "a.png", "text": "caf\u00e9"}\n'.encode("latin-1")
    return ["data", "check", file(folder, "latin.jsonl", row), "--reader", "jsonl"]


@bad("karpathi", "karpathy")
def unknown_reader(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "x.json", "{}"), "--reader", "karpathi"]


@bad("x.json")
def json_of_another_format(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "x.json", '{"hello": 1}'), "--reader", "coco"]


@bad("x.parquet")
def parquet_that_is_none(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "x.parquet", b"PAR1 not really")]


@bad("x.tar")
def archive_that_is_none(folder: Path) -> list[str]:
    return ["data", "check", file(folder, "x.tar", b"no tar at all" * 100)]


@bad("tset", "train")
def unknown_split(folder: Path) -> list[str]:
    png(folder)
    rows = file(folder, "rows.jsonl", json.dumps({"image": "good.png", "text": "a", "split": "train"}) + "\n")
    return ["data", "check", rows, "--split", "tset"]


# Recipes.


@bad("gone.yaml")
def missing_recipe(folder: Path) -> list[str]:
    return ["train", str(folder / "gone.yaml")]


@bad("recipe.yaml", "not valid YAML")
def broken_yaml(folder: Path) -> list[str]:
    return recipe(folder, "system: [clipcap\ntrain: {")


@bad("key 'lr' given twice")
def key_given_twice(folder: Path) -> list[str]:
    return recipe(folder, "train:\n  lr: 1\n  lr: 2\n")


@bad("expected the tables system, data, train")
def recipe_that_is_a_list(folder: Path) -> list[str]:
    return recipe(folder, "- one\n- two\n")


@bad("unknown key 'train.learning_rate'; did you mean 'train.lr'?")
def unknown_key(folder: Path) -> list[str]:
    return recipe(folder, train={"max_steps": 1, "learning_rate": 1e-3})


@bad("unknown key 'system.num_token'; did you mean 'system.num_tokens'?")
def unknown_key_of_the_system(folder: Path) -> list[str]:
    return recipe(folder, system={**RECIPE["system"], "num_token": 2})


@bad("train.lr: expected a number, found 'quick'")
def value_of_a_wrong_type(folder: Path) -> list[str]:
    return recipe(folder, train={"max_steps": 1, "lr": "quick"})


@bad("train.lr: expected a number above 0")
def value_out_of_range(folder: Path) -> list[str]:
    return recipe(folder, train={"max_steps": 1, "lr": -1.0})


@bad("'train' is missing")
def missing_table(folder: Path) -> list[str]:
    return recipe(folder, yaml.safe_dump({key: RECIPE[key] for key in ("system", "data")}))


@bad("expected one of epochs, max_steps and max_minutes")
def run_without_an_end(folder: Path) -> list[str]:
    return recipe(folder, train={"batch_size": 1})


@bad("unknown system 'clipkap'; did you mean 'clipcap'?")
def unknown_system_in_a_recipe(folder: Path) -> list[str]:
    return recipe(folder, system={"name": "clipkap"})


@bad("--set lr: expected table.key=value")
def set_without_a_value(folder: Path) -> list[str]:
    return [*recipe(folder), "--set", "lr"]


@bad("--set", "unknown key 'train.lrr'; did you mean 'train.lr'?")
def set_of_an_unknown_key(folder: Path) -> list[str]:
    return [*recipe(folder), "--set", "train.lrr=1"]


@bad("data.jsonl")
def recipe_over_empty_data(folder: Path) -> list[str]:
    command = recipe(folder)
    file(folder, "data.jsonl", "")
    return command


@bad("run")
def run_folder_that_is_a_file(folder: Path) -> list[str]:
    command = recipe(folder)
    file(folder, "run", "in the way")
    return command


# Grafts and checkpoints.


@cache
def toy_graft() -> Path:
    """A good graft over the toy parts; it outlives a test, so that it is built once."""
    folder = Path(tempfile.mkdtemp(prefix="graftlm_toy_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cls = system_class("clipcap")
    config = cls.Config(lm="toy", encoder="toy", precision="float32")
    return grafts.save(cls.build(config, load_parts(config)), folder)


def caption_with_graft(folder: Path, spoil: Callable[[Path], object] = lambda graft: None) -> list[str]:
    """`graft caption` of a good picture with a graft that `spoil` has been at."""
    graft = folder / "graft"
    shutil.copytree(toy_graft(), graft)
    spoil(graft)
    png(folder)
    return ["caption", str(folder / "good.png"), "--graft", str(graft)]


def change_description(graft: Path, **changes: object) -> None:
    """Writes other values into graft.json."""
    path = graft / "graft.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@bad("expected a graft's folder, a run, a hub id (owner/name) or a ready-made graft")
def unknown_graft(folder: Path) -> list[str]:
    png(folder)
    return ["caption", str(folder / "good.png"), "--graft", "no-such-graft"]


@bad("cannot be fetched from the hub")
def hub_id_out_of_reach(folder: Path) -> list[str]:
    png(folder)
    return ["caption", str(folder / "good.png"), "--graft", "nobody/no-such-graft"]


@bad("expected graft.json or a run's checkpoints, found neither")
def folder_that_is_no_graft(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: (graft / "graft.json").unlink())


@bad("graft.json")
def description_that_is_not_json(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: file(graft, "graft.json", "{not json"))


@bad("graft.json", "expected format 1, found 99")
def graft_of_a_later_format(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: change_description(graft, format=99))


@bad("graft.json", "unknown system 'telepathy'")
def graft_of_an_unknown_system(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: change_description(graft, system="telepathy"))


@bad("graft.safetensors")
def graft_without_tensors(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: (graft / "graft.safetensors").unlink())


@bad("graft.safetensors")
def truncated_safetensors(folder: Path) -> list[str]:
    def cut(graft: Path) -> None:
        path = graft / "graft.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    return caption_with_graft(folder, cut)


@bad("graft.safetensors")
def safetensors_with_a_hostile_header(folder: Path) -> list[str]:
    header = struct.pack("<Q", 2**62) + b'{"a": {"dtype": "F32"'
    return caption_with_graft(folder, lambda graft: file(graft, "graft.safetensors", header))


@bad("graft.safetensors", "its bytes are not those that graft.json names")
def safetensors_of_another_graft(folder: Path) -> list[str]:
    def flip(graft: Path) -> None:
        path = graft / "graft.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))

    return caption_with_graft(folder, flip)


@bad("pickle")
def pickle_in_place_of_safetensors(folder: Path) -> list[str]:
    return caption_with_graft(folder, lambda graft: file(graft, "graft.safetensors", b"\x80\x04\x95" + bytes(100)))


@bad("model.pt", "pickle")
def pickled_checkpoint(folder: Path) -> list[str]:
    png(folder)
    return ["caption", str(folder / "good.png"), "--graft", file(folder, "model.pt", b"PK\x03\x04" + bytes(100))]


@bad("frozen part 'lm'", "its own frozen parts only")
def graft_of_another_language_model(folder: Path) -> list[str]:
    parts = json.loads((toy_graft() / "graft.json").read_text())["frozen_parts"]
    parts["lm"]["fingerprint"] = "0" * 64
    return caption_with_graft(folder, lambda graft: change_description(graft, frozen_parts=parts))


@bad("no-such-lm")
def graft_whose_language_model_is_gone(folder: Path) -> list[str]:
    config = json.loads((toy_graft() / "graft.json").read_text())["config"] | {"lm": "no-such-lm"}
    return caption_with_graft(folder, lambda graft: change_description(graft, config=config))


# The doctor, the cache, the evaluation, the demonstration.


@bad("unknown system 'clipkap'; did you mean 'clipcap'?", code=2)
def dry_run_of_an_unknown_system(folder: Path) -> list[str]:
    return ["doctor", "--lm", "toy", "--encoder", "toy", "--system", "clipkap"]


@bad("connector 'telepathy' is not one of any system", code=2)
def unknown_connector(folder: Path) -> list[str]:
    return ["doctor", "--lm", "toy", "--encoder", "toy", "--connector", "telepathy"]


@bad("no-such-lm")
def unknown_language_model(folder: Path) -> list[str]:
    return ["doctor", "--lm", "no-such-lm", "--encoder", "toy"]


@bad("expected a fingerprint", "or --all", code=2)
def clearing_nothing_in_particular(folder: Path) -> list[str]:
    return ["cache", "clear"]


@bad("No such command 'bild'", code=2)
def unknown_verb_of_a_group(folder: Path) -> list[str]:
    return ["cache", "bild"]


@bad("no-such-encoder")
def unknown_encoder(folder: Path) -> list[str]:
    png(folder)
    return ["cache", "build", str(folder), "--encoder", "no-such-encoder"]


@bad("captionning", "captioning", code=2)
def unknown_task(folder: Path) -> list[str]:
    return ["evaluate", str(toy_graft()), "captionning", "--data", str(folder), "--split", "test"]


@bad("gone")
def evaluation_without_data(folder: Path) -> list[str]:
    return ["evaluate", str(toy_graft()), "captioning", "--data", str(folder / "gone"), "--split", "test"]


@bad("--report", "expected a folder or a .json file, found report.pdf", code=2)
def report_of_another_kind(folder: Path) -> list[str]:
    command = ["evaluate", "no-such-graft", "captioning", "--data", str(folder / "gone")]
    return [*command, "--report", str(folder / "report.pdf")]


@bad("--report", "cannot be written")
def report_where_nothing_can_be_written(folder: Path) -> list[str]:
    place = Path(file(folder, "file", "in the way")) / "report.json"
    return ["evaluate", "no-such-graft", "captioning", "--data", str(folder / "gone"), "--report", str(place)]


@bad("Invalid value for '--minutes'", code=2)
def demonstration_of_no_time(folder: Path) -> list[str]:
    return ["demo", "--minutes", "0"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_answered_in_a_sentence(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code = main(case.make(tmp_path))
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert "Traceback" not in said
    assert "this is a bug" not in said
    assert [words for words in case.says if words not in said] == [], said
    assert code == case.code


def test_there_are_at_least_25_kinds() -> None:
    assert len({case.name for case in CASES}) >= 25
