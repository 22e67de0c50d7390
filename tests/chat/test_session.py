"""Dialogues with toy grafts: pictures both ways, interruption, context, and what is kept on the disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from graftlm.chat.answerer import DialogueGallery
from graftlm.chat.history import History, read_history
from graftlm.chat.session import Session
from graftlm.chat.settings import Settings
from graftlm.data.dialogue import FORMATS, Dialogue
from graftlm.data.media import content_hash
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import DataError, GraftError, UsageError
from graftlm.lm.decode import decode
from tests.chat.parts import ALWAYS, NEVER, answerer, gallery, photos, session
from tests.data.test_dialogue import step
from tests.pictures import picture


def shown(sentence: Sentence) -> list[str]:
    return [str(part.source) for part in sentence if isinstance(part, Image) and part.role == "assistant"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["clipcap", "frozen", "fromage"])
def test_every_system_answers_words_and_pictures_in_every_format(name: str, form: str, tmp_path: Path) -> None:
    talk = session(name)
    talk.set("format", form)
    talk.show(photos(tmp_path)[0])
    talk.say("what is this?")
    talk.say("and now?")
    assert [part.role for part in talk.dialogue.sentence] == ["user", "user", "assistant", "user", "assistant"]
    assert talk.dialogue.waiting == ()


def test_streamed_text_is_the_text_of_the_answer_that_respond_gives(tmp_path: Path) -> None:
    talk = session("clipcap")
    talk.show(photos(tmp_path)[0])
    pieces: list[str] = []
    answer = talk.say("hello", pieces.append)
    talk.undo()
    assert len(pieces) > 1
    assert "".join(pieces) == answer.sentence.text() == talk.say("hello").sentence.text()


def test_no_picture_is_shown_twice_and_none_that_the_user_showed(tmp_path: Path) -> None:
    paths = photos(tmp_path, 4)
    talk = session("fromage", paths)
    talk.set("bias", ALWAYS)
    talk.show(paths[0])
    found = [shown(talk.say(words).sentence) for words in ("a", "b", "c", "d")]
    assert sorted(path for turn in found for path in turn) == paths[1:]
    assert [len(turn) for turn in found] == [1, 1, 1, 0]


def test_undo_gives_a_picture_free_again(tmp_path: Path) -> None:
    talk = session("fromage", photos(tmp_path, 1))
    talk.set("bias", ALWAYS)
    first = shown(talk.say("a").sentence)
    assert shown(talk.say("a").sentence) == []
    talk.undo()
    talk.undo()
    assert shown(talk.say("a").sentence) == first != []


def test_a_turn_shows_as_many_pictures_as_are_allowed_with_their_scores(tmp_path: Path) -> None:
    talk = session("fromage", photos(tmp_path, 3))
    talk.set("bias", ALWAYS)
    talk.set("most", "2")
    answer = talk.say("a")
    assert len(shown(answer.sentence)) == len(answer.scores) == 2
    assert all(-1 <= score <= 1 for score in answer.scores)


@pytest.mark.parametrize(("name", "value"), [("bias", NEVER), ("most", "0"), ("threshold", "1")])
def test_settings_keep_pictures_back(name: str, value: str, tmp_path: Path) -> None:
    talk = session("fromage", photos(tmp_path))
    talk.set("bias", ALWAYS)
    talk.set(name, value)
    assert shown(talk.say("a").sentence) == []


def test_pictures_that_were_shown_are_fed_back_unless_it_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    system = answerer("fromage").system
    inputs = system.inputs
    monkeypatch.setattr(system, "inputs", lambda sentences: seen.append(len(sentences[0].media())) or inputs(sentences))
    for value, expected in (("on", 1), ("off", 0)):
        talk = session("fromage", photos(tmp_path))
        talk.set("bias", ALWAYS)
        talk.say("a")
        talk.set("bias", NEVER)
        talk.set("feed_back", value)
        seen.clear()
        talk.say("b")
        assert set(seen) == {expected}


def test_without_a_gallery_a_retrieving_system_writes_and_nothing_else() -> None:
    talk = session("fromage")
    talk.set("bias", ALWAYS)
    assert talk.say("a", lambda piece: None).scores == ()
    assert shown(talk.dialogue.sentence) == []


def test_files_that_are_gone_or_have_changed_are_not_given(tmp_path: Path) -> None:
    paths = photos(tmp_path, 3)
    inner = gallery(paths)
    found, vector = DialogueGallery(inner), inner.vectors[:1]
    (hits,) = found.search(vector, 3)
    order = [str(hit.image.source) for hit in hits]
    Path(order[0]).unlink()
    picture(9).save(order[1])
    assert [str(hit.image.source) for hit in found.search(vector, 1)[0]] == [order[2]]


def test_what_no_longer_fits_is_left_out_from_the_oldest_on_and_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    talk = session("clipcap", tell=told.append)
    talk.set("format", "chat")
    talk.show(photos(tmp_path)[0])
    dropped = [talk.say("many words " * 35).dropped for _ in range(4)]
    assert dropped == sorted(dropped)
    assert (dropped[0], dropped[-1] > 0) == (0, True)
    assert [sentence for sentence in told if "empty" not in sentence] == [
        "the dialogue is longer than the language model can read: its oldest turns are left out"
    ]


def test_a_turn_that_is_too_long_alone_is_refused_and_the_dialogue_stays() -> None:
    talk = session("clipcap")
    talk.say("hello")
    before = talk.dialogue
    with pytest.raises(GraftError, match="does not fit into 1024"):
        talk.say("x" * 2000)
    assert talk.dialogue == before


def test_a_picture_that_is_gone_is_told_and_the_dialogue_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    talk = session("clipcap", tell=told.append)
    talk.set("format", "qa")
    (path,) = photos(tmp_path, 1)
    talk.show(path)
    talk.say("a")
    Path(path).unlink()
    talk.say("b")
    talk.say("c")
    assert told == [f"{path} cannot be read any more: the dialogue goes on without it"]


def interrupting(after: int) -> Callable[[str], None]:
    """Told text, it interrupts at a piece."""
    heard: list[str] = []

    def hear(piece: str) -> None:
        heard.append(piece)
        if len(heard) >= after:
            raise KeyboardInterrupt

    return hear


def test_an_interrupted_answer_is_what_was_written_so_far(tmp_path: Path) -> None:
    talk = session("clipcap")
    talk.show(photos(tmp_path)[0])
    whole = talk.say("hello").sentence.text()
    talk.undo()
    with pytest.raises(KeyboardInterrupt):
        talk.say("hello", interrupting(3))
    cut = talk.dialogue.sentence.parts[-1]
    assert isinstance(cut, Text)
    assert cut.role == "assistant"
    assert whole.strip().startswith(cut.content)
    assert 0 < len(cut.content) < len(whole)


def test_interrupted_before_a_word_the_turn_has_not_been_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    talk = session("clipcap")
    talk.show(photos(tmp_path)[0])
    before = talk.dialogue

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talk.answerer, "answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.say("hello")
    assert talk.dialogue == before


@pytest.mark.parametrize("seed", range(10))
def test_a_written_dialogue_is_read_as_it_was(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    dialogue = Dialogue()
    for _ in range(8):
        dialogue = step(dialogue, draw)
    settings = Settings("qa", bias=1.25, feed_back=False, most=3, threshold=0.1)
    history = History("a graft", "ab12", dialogue, settings, "holiday")
    history.write(tmp_path / "talk.json")
    assert read_history(tmp_path / "talk.json") == history


def test_every_turn_is_on_the_disk_at_once_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "talk.json"
    first = session("clipcap")
    first.resume(path)
    for words in ("one", "two"):
        first.say(words)
        assert read_history(path).dialogue == first.dialogue
    first.show(photos(tmp_path)[0])
    first.set("temperature", "0.5")
    second = session("clipcap")
    second.resume(path)
    assert (second.dialogue, second.settings) == (first.dialogue, first.settings)
    assert list(path.parent.iterdir()) == [path]


def test_a_dialogue_of_another_graft_is_refused_unless_any_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    first = session("clipcap")
    first.say("one")
    first.save(path)
    other = session("frozen")
    with pytest.raises(DataError, match="'frozen', found one with 'clipcap'"):
        other.load(path)
    assert other.dialogue == Dialogue()
    other.takes_any = True
    other.load(path)
    assert other.dialogue == first.dialogue


def test_another_state_of_a_graft_has_another_fingerprint() -> None:
    assert answerer("clipcap").fingerprint() == answerer("clipcap").fingerprint() != answerer("frozen").fingerprint()


def test_what_is_no_dialogue_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("dear diary")
    with pytest.raises(DataError, match="which is kept"):
        session("clipcap").save(path)
    assert path.read_text() == "dear diary"


def damaged(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 9}, "expected a dialogue of format 1, found 9"),
        ({"sentence": "words"}, "'sentence' to be of type list"),
        ({"sentence": [1]}, "expected a sentence of JSON objects"),
        ({"sentence": [{"type": "smell"}]}, "expected one of text, image"),
        ({"sentence": [{"type": "text", "text": "x", "role": "system"}]}, "of role system"),
        ({"settings": {"bais": 1}}, "did you mean 'bias'"),
        ({"settings": {"most": "many"}}, "expected a whole number"),
        ({"settings": {"bias": float("nan")}}, "expected a number"),
        ({"fingerprint": None}, "'fingerprint' to be of type str"),
    ],
)
def test_a_damaged_history_is_refused_in_a_sentence(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session("clipcap").save(path)
    damaged(path, **changes)
    with pytest.raises(DataError, match=says) as caught:
        read_history(path)
    assert str(path) in str(caught.value)


def test_a_disk_that_refuses_is_told_and_the_dialogue_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    talk = session("clipcap", tell=told.append)
    talk.resume(tmp_path / "talk.json")

    def refuse(self: History, path: Path) -> None:
        raise GraftError("the disk is full")

    monkeypatch.setattr(History, "write", refuse)
    talk.say("hello")
    assert told == ["the disk is full"]
    assert len(talk.dialogue.sentence) == 2


def test_a_picture_that_cannot_be_read_is_not_added(tmp_path: Path) -> None:
    talk = session("clipcap")
    with pytest.raises(DataError, match="there is no file"):
        talk.show(str(tmp_path / "gone.png"))
    assert talk.dialogue == Dialogue()


def test_an_index_is_refused_to_a_system_of_text_alone() -> None:
    with pytest.raises(UsageError, match="clipcap: expected a graft that answers with pictures"):
        session("clipcap").index("photos")


def test_answers_to_the_same_prompt_are_those_of_the_decoder(tmp_path: Path) -> None:
    talk = session("clipcap")
    (path,) = photos(tmp_path, 1)
    talk.show(path)
    text = talk.say("").sentence.text()
    system = answerer("clipcap").system
    (best,) = decode(system.lm, system.inputs([Sentence.of(Image(path))]), talk.settings.decoding(1))
    assert text == best[0].text
    assert content_hash(Image(path)) in {content_hash(part) for part in talk.dialogue.pictures()}


def test_a_set_of_one_setting_leaves_the_others() -> None:
    settings = Settings(max_tokens=9).changed("bias", " 1.5 ").changed("feed_back", "off")
    assert settings == Settings(max_tokens=9, bias=1.5, feed_back=False)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("bais", "1", "unknown setting 'bais'; did you mean 'bias'"),
        ("bias", "much", "bias: expected a number, found 'much'"),
        ("bias", "inf", "bias: expected a number"),
        ("most", "1.5", "most: expected a whole number"),
        ("most", "-1", "most: expected 0 to"),
        ("max_tokens", "1" + "0" * 400, "max_tokens: expected"),
        ("threshold", "2", "threshold: expected -1 to 1"),
        ("feed_back", "maybe", "feed_back: expected on or off"),
        ("format", "poem", "unknown format 'poem'"),
        ("beams", "0", "beams: expected 1 to"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings().changed(name, value)


def test_beams_and_temperature_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="set one of them"):
        Settings(beams=2).changed("temperature", "1")


def talk_of(turns: int) -> Session:
    talk = session("clipcap")
    for number in range(turns):
        talk.say(f"turn {number}")
    return talk


def test_drawn_answers_differ_from_turn_to_turn_and_are_repeatable() -> None:
    first, second = talk_of(0), talk_of(0)
    for talk in (first, second):
        talk.set("temperature", "2")
        talk.say("a")
        talk.say("a")
    assert first.dialogue == second.dialogue
    assert first.dialogue.sentence.parts[1] != first.dialogue.sentence.parts[3]
