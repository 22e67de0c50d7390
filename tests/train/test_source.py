"""Where batches come from: by number or from a stream, and back to any place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from graftlm.config import Recipe
from graftlm.data.ledger import Ledger
from graftlm.data.sample import Sample
from graftlm.data.scenes import Scenes
from graftlm.data.sentence import Image, Sentence, Text, Video
from graftlm.data.stream import Stream
from graftlm.data.video import load_frames
from graftlm.errors import CheckpointError, DataError, ShapeError
from graftlm.systems.base import System
from graftlm.train.setup import build_system, open_data
from graftlm.train.source import TOO_LONG, StreamSource, blind, fitting, lengths_of, with_targets
from graftlm.train.validate import Validation, spread, weighted_total

SCENES = list(Scenes("train", 30))


class ListShard:
    """Samples in runs of four."""

    name = "list"

    def runs(self, start: int) -> Iterator[Sequence[tuple[int, Sample]]]:
        rows = list(enumerate(SCENES))
        for first in range(start * 4, len(rows), 4):
            yield rows[first : first + 4]


@pytest.fixture
def system(make_recipe: Callable[..., Recipe]) -> System:
    return build_system(make_recipe())


def stream_source(system: System) -> StreamSource:
    stream = Stream([ListShard()], lambda sample, _, __: [sample], Ledger(), shuffle=True, seed=3)
    return StreamSource(system, stream, 4, seed=0, chunk=3)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 8, 13])
def test_a_stream_goes_on_from_any_batch(stop: int, system: System) -> None:
    whole = stream_source(system)
    batches = [whole.next_batch() for _ in range(20)]
    first = stream_source(system)
    for _ in range(stop):
        first.next_batch()
    second = stream_source(system)
    second.restore(first.state())
    assert [second.next_batch() for _ in range(20 - stop)] == batches[stop:]


def test_a_stream_gives_every_sentence_of_an_epoch_once(system: System) -> None:
    source = stream_source(system)
    texts = [sentence.text() for _ in range(15) for sentence in source.next_batch()]  # 60 sentences: two epochs
    wanted = sorted(sample.sentence.text() for sample in SCENES)
    assert sorted(texts) == sorted(wanted * 2)


def test_the_place_of_a_stream_is_checked(system: System) -> None:
    with pytest.raises(CheckpointError, match="expected the place of a stream"):
        stream_source(system).restore({"sampler": {}})
    state = stream_source(system).state()
    with pytest.raises(DataError, match="expected one of the stream"):
        stream_source(system).restore({**state, "stream": {**state["stream"], "fingerprint": "other"}})


def test_lengths_count_slots_words_and_targets(system: System) -> None:
    sentence = Sentence((Image("x.png"), Text("Q"), Text("abc", target=True)))
    (length,) = lengths_of(system, [sentence])
    assert (length.positions, length.targets) == (2 + 1 + 1 + 3 + 1, 3 + 1)  # K, BOS, prompt, caption, EOS


def test_sentences_without_a_target_teach_nothing() -> None:
    silent = replace(SCENES[0], sentence=SCENES[0].sentence.prompt())
    assert with_targets([silent, SCENES[1]], "data.train") == [SCENES[1]]
    with pytest.raises(DataError, match=r"data\.train: expected sentences with a target"):
        with_targets([silent], "data.train")


def test_a_blind_sentence_keeps_its_words_and_shows_black() -> None:
    dark = blind(SCENES[0].sentence)
    assert dark.text() == SCENES[0].sentence.text()
    assert dark.media()[0].source.getextrema() == ((0, 0),) * 3  # type: ignore[union-attr]
    assert [part.target for part in dark] == [part.target for part in SCENES[0].sentence]


def test_a_blind_film_is_one_black_frame() -> None:
    film = Video("clip", role="user")
    (dark,) = blind(Sentence((film,)))
    assert isinstance(dark, Video)
    assert dark.role == "user"
    (frame,) = load_frames(dark.source)
    assert frame.getextrema() == ((0, 0),) * 3


def test_the_validation_loss_does_not_depend_on_the_batch_size(
    system: System, make_recipe: Callable[..., Recipe]
) -> None:
    losses = []
    for size in (1, 3, 8):
        validation = Validation(system, SCENES[:8], make_recipe(train={"batch_size": size}))
        losses.append(validation.losses(blind_too=True))
    for name in ("loss", "caption", "blind"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5)
        assert losses[0][name] == pytest.approx(losses[2][name], rel=1e-5)


def test_indices_are_spread_evenly() -> None:
    assert spread(10, 0) == spread(10, 20) == list(range(10))
    assert spread(10, 3) == [0, 3, 6]


def test_losses_are_summed_by_weight() -> None:
    import torch

    losses = {"caption": torch.tensor(2.0), "contrast": torch.tensor(10.0)}
    assert float(weighted_total(losses, {"contrast": 0.1})) == pytest.approx(3.0)


def test_a_stream_without_any_target_is_refused_and_not_read_for_ever(system: System) -> None:
    def prompts(sample: Sample, shard: str, row: int) -> list[Sample]:
        return [replace(sample, sentence=sample.sentence.prompt())]

    source = StreamSource(system, Stream([ListShard()], prompts, Ledger()), 4, seed=0, chunk=2)
    with pytest.raises(DataError, match="with a target"):
        source.next_batch()


LONG = Sample(Sentence.of(Text("why " * 300), Text("so", target=True)), "long")


def test_a_prompt_beyond_the_language_models_context_is_left_out_with_its_reason(system: System) -> None:
    assert system.lm.context_length < 4 * 300
    ledger = Ledger()
    kept, lengths = fitting(system, [SCENES[0], LONG, SCENES[1]], ledger, "here")
    assert kept == [SCENES[0], SCENES[1]]
    assert lengths == lengths_of(system, [SCENES[0].sentence, SCENES[1].sentence])
    assert [(entry.reason, entry.row) for entry in ledger.entries] == [(TOO_LONG, "long")]
    with pytest.raises(ShapeError, match=r"a prompt of \d+ positions does not fit into 1024"):
        system.respond([LONG.sentence])


def test_a_caption_beyond_the_context_loses_its_end_alone(system: System) -> None:
    system.lm.context_length = 40
    caption = Sentence.of(Image("a.jpg"), Text("a" * 100, target=True))
    (length,) = lengths_of(system, [caption])
    assert length.positions == 40
    assert length.targets == 40 - system.layout.media_tokens - 1


def test_a_stream_leaves_out_what_is_too_long(system: System) -> None:
    ledger = Ledger()

    def some_long(sample: Sample, _: object, __: object) -> list[Sample]:
        return [LONG if sample.key == SCENES[5].key else sample]

    source = StreamSource(system, Stream([ListShard()], some_long, Ledger()), 4, seed=0, chunk=2, ledger=ledger)
    batches = [source.next_batch() for _ in range(8)]
    assert [len(batch) for batch in batches] == [4] * 8
    assert not any(sentence is LONG.sentence for batch in batches for sentence in batch)
    assert ledger.reasons == {TOO_LONG: 1}


def test_a_run_whose_every_prompt_is_too_long_is_refused(system: System, make_recipe: Callable[..., Recipe]) -> None:
    system.lm.context_length = 3
    with pytest.raises(DataError, match="none of 40 sentences fits into the longest row; 40 too-long"):
        open_data(system, make_recipe(), Ledger(), quiet=True)
