"""Chat templates that do not do what is expected of them."""

from __future__ import annotations

import pytest

from graftlm.data.chat import segments
from graftlm.data.sentence import Sentence, Text
from graftlm.errors import BackboneError
from graftlm.lm.toy import ByteTokenizer


@pytest.mark.parametrize("order", [[1], [1, 0], [0, 0, 1], [0, 1, 1]])
def test_a_template_that_drops_moves_or_repeats_a_turn_is_refused(order: list[int]) -> None:
    class Unruly(ByteTokenizer):
        def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
            return "".join(messages[index]["content"] for index in order)

    sentence = Sentence((Text("be nice", role="system"), Text("hi", role="user")))
    with pytest.raises(BackboneError, match="chat template"):
        segments(sentence, Unruly())
