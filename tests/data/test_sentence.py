"""Sentences say the same after JSON, after messages, and after being taken apart."""

from __future__ import annotations

import json

import pytest

from graftlm.data.media import load_image
from graftlm.data.sentence import Audio, Image, Sentence, State, Text, Video
from graftlm.errors import DataError
from tests.pictures import picture

EVERYTHING = Sentence.of(
    Text("You look.", role="system"),
    Image("a.jpg", role="user"),
    Image(b"\x89PNG bytes", role="user"),
    Audio("a.ogg", role="user"),
    Video("film", role="user"),
    State((0.5, -1.0), role="user"),
    Text("What <image> is it?", role="user"),
    Text("A dog.", target=True, role="assistant"),
    Image("dog.jpg", target=True, role="assistant"),
)


def test_json_gives_the_sentence_back() -> None:
    assert Sentence.from_json(json.loads(json.dumps(EVERYTHING.to_json()))) == EVERYTHING


def test_a_pillow_picture_survives_json_by_its_pixels() -> None:
    (part,) = Sentence.from_json(Sentence.of(Image(picture(3))).to_json())
    assert isinstance(part, Image)
    assert load_image(part.source).tobytes() == picture(3).tobytes()


def test_messages_give_the_same_parts_back() -> None:
    parts = tuple(part for part in EVERYTHING if not part.target)
    assert Sentence.from_messages(Sentence(parts).to_messages()) == Sentence(parts)


def test_in_training_what_the_assistant_writes_is_the_target() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert Sentence.from_messages(messages, train=True).targets() == Sentence.of(
        Text("Hello", target=True, role="assistant")
    )
    assert len(Sentence.from_messages(messages).targets()) == 0


def test_a_data_url_becomes_bytes() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    sentence = Sentence.from_messages([{"role": "user", "content": [part]}])
    assert sentence.parts == (Image(b"\x00\x01\x02", role="user"),)


def test_prompt_is_what_stands_before_the_first_target() -> None:
    assert EVERYTHING.prompt().parts == EVERYTHING.parts[:7]
    assert EVERYTHING.targets().parts == EVERYTHING.parts[7:]
    assert not any(part.target for part in EVERYTHING.context())
    assert EVERYTHING.context().prompt() == EVERYTHING.context()


def test_few_shot_prompting_is_addition() -> None:
    shot, query = Sentence.of(Image("a.jpg"), "a dog"), Sentence.of(Image("b.jpg"), Text("", target=True))
    assert (shot + query).parts == shot.parts + query.parts
    assert (shot + query).media() == (Image("a.jpg"), Image("b.jpg"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"type": "smell"}, "found 'smell'"),
        ({"type": "text"}, "'text' to be a string"),
        ({"type": "text", "text": "a", "colour": 1}, "unknown key 'colour'"),
        ({"type": "text", "text": "a", "role": "dog"}, "found 'dog'"),
        ({"type": "image"}, "found neither"),
        ({"type": "image", "base64": "%%"}, "base64"),
        ({"type": "state", "values": ["x"]}, "numbers"),
        ({"type": "state"}, "numbers"),
    ],
)
def test_a_part_that_is_none_is_refused(row: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Sentence.from_json([row])


def test_a_picture_that_is_still_to_be_found_has_no_content_and_survives_json() -> None:
    query = Sentence.of("a dog", Image("a.jpg"), Image.sought())
    assert query.parts[-1].target
    assert query.media() == (Image("a.jpg"),)
    assert query.to_json()[-1] == {"type": "image", "target": True}
    again = Sentence.from_json(query.to_json())
    assert again == query
    assert [isinstance(part, Image) and part.is_sought for part in again] == [False, False, True]
    assert query.prompt() == Sentence.of("a dog", Image("a.jpg"))
    spoken = Sentence.of(Image.sought("assistant"))
    assert Sentence.from_json(spoken.to_json()) == spoken
