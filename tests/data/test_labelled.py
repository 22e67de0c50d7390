"""Templates: what they say, where the word of a class stands, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.data.labelled import (
    Template,
    chosen,
    dataset_names,
    label_of,
    load_template,
    refilled,
    relabelled,
    row_of,
    template_names,
)
from graftlm.data.sentence import Filled, LabelWord, Sentence, Text
from graftlm.errors import BadSampleError, ConfigError, DataError

ALL = [f"{dataset}/{name}" for dataset in dataset_names() for name in template_names(dataset)]


def template(text: str, **more: object) -> Template:
    return Template.model_validate({"text": text, "words": {"bad": ["awful"], "good": ["great", "fine"]}, **more})


def contents(sentence: Sentence) -> list[str]:
    return [str(part.content) for part in sentence if isinstance(part, Text)]


def test_the_eight_datasets_are_ready_with_two_templates_each() -> None:
    assert set(dataset_names()) == {"ag_news", "boolq", "cb", "imdb", "multirc", "rte", "sst2", "trec"}
    for dataset in dataset_names():
        names = template_names(dataset)
        assert names[0] == "default"
        assert len(names) >= 2
        assert load_template(dataset) == load_template(f"{dataset}/default")
        assert any(load_template(f"{dataset}/{name}").is_causal for name in names)


@pytest.mark.parametrize("name", ALL)
def test_a_ready_template_fills_itself_and_keeps_its_labels_numbers(name: str) -> None:
    found = load_template(name)
    assert found.name == name
    assert found.source
    sentence = found.sentence({slot: f"<{slot}>" for slot in found.slots}, 1)
    said = sentence.text()
    assert all(f"<{slot}>" in said for slot in found.slots)
    assert chosen(sentence) == (1, found.choices())
    assert "  " not in said
    assert "{" not in said
    for number, name_of_class in enumerate(found.classes):
        assert label_of(found, name_of_class) == number


def test_class_numbers_are_those_of_the_published_datasets() -> None:
    order = {name: load_template(name).classes for name in dataset_names()}
    assert order["boolq"] == order["multirc"] == ("no", "yes")
    assert order["cb"] == ("entailment", "contradiction", "neutral")
    assert order["rte"] == ("entailment", "not_entailment")
    assert order["sst2"] == order["imdb"] == ("negative", "positive")
    assert order["ag_news"] == ("World", "Sports", "Business", "Sci/Tech")
    assert order["trec"] == ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")


def test_a_space_goes_with_what_fills_it() -> None:
    found = template("{a} asks: {b}? It was {mask}. So there.", shorten=["a"])
    sentence = found.sentence({"a": "he", "b": "why"}, 1)
    assert contents(sentence) == ["he", " asks:", " why", "? It was", " great", ". So there."]
    filled = [part.content for part in sentence if isinstance(part, Text) and isinstance(part.content, Filled)]
    assert [content.shortens for content in filled] == [True, False]
    word = sentence.targets().parts[0].content  # type: ignore[union-attr]
    assert isinstance(word, LabelWord)
    assert (word.label, word.words) == (1, ((" awful",), (" great", " fine")))


def test_a_mask_without_a_space_before_it_has_words_without_one() -> None:
    assert template("{a} ({mask})").choices() == (("awful",), ("great", "fine"))
    assert template("{a}\n{mask}").choices() == (("awful",), ("great", "fine"))


def test_a_template_is_causal_unless_a_slot_follows_the_mask() -> None:
    assert template("{a} was {mask}.").is_causal
    assert not template("A {mask} thing: {a}").is_causal


def test_a_sentence_of_a_task_survives_json() -> None:
    sentence = template("{a} was {mask}.", shorten=["a"]).sentence({"a": "it"}, 0)
    again = Sentence.from_json(sentence.to_json())
    assert again == sentence
    assert chosen(again) == chosen(sentence)
    first = again.parts[0]
    assert isinstance(first, Text)
    assert isinstance(first.content, Filled)
    assert first.content.shortens


@pytest.mark.parametrize(
    "row",
    [
        {"type": "text", "text": " awful", "label": 2, "words": [[" awful"], [" fine"]]},
        {"type": "text", "text": " awful", "label": 0},
        {"type": "text", "text": " other", "label": 0, "words": [[" awful"], [" fine"]]},
        {"type": "text", "text": " awful", "label": -1, "words": [[" fine"], [" awful"]]},
    ],
)
def test_json_with_marks_that_do_not_fit_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match="a part of type text"):
        Sentence.from_json([row])


def test_slots_can_be_emptied_and_the_class_changed_without_touching_the_rest() -> None:
    sentence = template("{a} asks: {b}? It was {mask}").sentence({"a": "he", "b": "why"}, 1)
    assert refilled(sentence, "").text() == " asks:? It was great"
    assert refilled(sentence, "N/A").text() == "N/A asks: N/A? It was great"
    assert chosen(refilled(sentence, ""))[0] == 1
    assert relabelled(sentence, 0).text() == "he asks: why? It was awful"
    with pytest.raises(DataError, match="found one without a class"):
        chosen(Sentence.of("plain words"))


def test_a_table_of_ones_own_takes_a_file_of_ten_lines(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    path.write_text(
        'text: "{review} It was {mask}"\n'
        "words: {negative: bad, positive: [good, great]}\n"
        "shorten: [review]\n"
        "table:\n"
        "  label: stars\n"
        "  classes: {negative: [1, 2], positive: [4, 5]}\n"
        "  columns: {review: [body, text]}\n"
    )
    found = load_template(str(path))
    assert found.name == "stars"
    row = row_of(found, {"text": "so  nice", "stars": "5"}, "k")
    assert (row.values, row.label) == ({"review": "so nice"}, 1)
    assert found.sample(row).sentence.text() == "so nice It was good"
    with pytest.raises(BadSampleError, match="expected one of the classes negative, positive, found 3"):
        row_of(found, {"text": "x", "stars": 3}, "k")
    with pytest.raises(BadSampleError, match="expected a column for the review"):
        row_of(found, {"words": "x", "stars": 1}, "k")


def test_words_that_yaml_reads_as_truth_values_are_words(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text('text: "{a} {mask}"\nwords: {no: no, yes: [yes, 1]}\n')
    found = load_template(str(path))
    assert found.words == {"no": ["no"], "yes": ["yes", "1"]}
    assert found.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text: '{a}'\nwords: {x: [u], y: [v]}", "expected one {mask}, found 0"),
        ("text: '{mask} and {mask} {a}'\nwords: {x: [u], y: [v]}", "expected one {mask}, found 2"),
        ("text: 'it is {mask}'\nwords: {x: [u], y: [v]}", "at least one {slot} beside the mask"),
        ("text: '{a} {mask}'\nwords: {x: [u]}", "at least two classes"),
        ("text: '{a} {mask}'\nwords: {x: [u], y: [u]}", "'u' stands for two classes"),
        ("text: '{a} {mask}'\nwords: {x: [u], y: [v]}\nshorten: [b]", "unknown slot 'b'"),
        ("text: '{a} {mask}'\nwords: {x: [u], y: [v]}\nlable: z", "lable"),
        ("text: '{a} {mask}'\nwords: {x: [u], y: [v]}\ntable: {classes: {x: [1], z: [2]}}", "expected the classes x"),
        ("text: '{a} {b c} {mask}'\nwords: {x: [u], y: [v]}", "expected every brace to belong to a slot"),
        ("text: '{a} {} {mask}'\nwords: {x: [u], y: [v]}", "expected every brace to belong to a slot"),
        ("text: '{a} {mask}'\nwords: {x: [u], y: [v]}\ntable: {rows: multirk}", "table.rows"),
        ("[1, 2]", "expected 'text' and 'words'"),
        ("text: '", "not valid YAML"),
    ],
)
def test_a_bad_template_is_told_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_template(str(path))
    assert message in str(error.value)
    assert "t.yaml" in str(error.value)


def test_an_unknown_template_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rte'"):
        load_template("rtee")
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        load_template("rte/plane")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_template(str(tmp_path / "none.yaml"))


def test_marks_survive_a_copy_of_the_words() -> None:
    import copy

    sentence = template("{a} was {mask}", shorten=["a"]).sentence({"a": "it"}, 1)
    again = copy.deepcopy(sentence)
    assert chosen(again) == chosen(sentence)
    assert again.parts[0].content.shortens  # type: ignore[union-attr]
