"""The decode loop on the toy LM, and on one that says exactly what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm.errors import ConfigError, ShapeError
from graftlm.lm.base import KVPrefix, LanguageModel, LMInputs, LMOutput, Memory, PrefixGeometry
from graftlm.lm.decode import Decoding, decode, rank, score_candidates, score_labels, stream
from graftlm.lm.toy import ByteTokenizer, ToyLM

EOS = ByteTokenizer.eos_id
WAYS = [
    Decoding(max_tokens=12),
    Decoding(max_tokens=12, num_beams=3, num_return=2, length_penalty=0.7),
    Decoding(max_tokens=12, temperature=0.9, top_k=40, top_p=0.95, seed=5, num_return=2),
    Decoding(max_tokens=12, repetition_penalty=1.3, no_repeat_ngram=2, min_tokens=6),
    Decoding(max_tokens=12, num_beams=2, repetition_penalty=1.3, no_repeat_ngram=2, min_tokens=6),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread; nothing here needs a gradient."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


class ScriptedLM(LanguageModel):
    """Writes a given answer, whatever happens; the prompt's one vector holds the number of the script."""

    def __init__(self, scripts: list[list[int]]) -> None:
        super().__init__()
        self.tokenizer = ByteTokenizer()
        self.dim, self.vocab_size, self.context_length, self.fingerprint = 1, 259, 1000, "scripted"
        self.scripts = scripts
        self.rows_seen: list[int] = []
        self.anchor = nn.Parameter(torch.zeros(1))

    @property
    def prefix_geometry(self) -> PrefixGeometry:
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        return ids[..., None].float()

    def unembed(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def new_cache(self, rows: int, length: int) -> dict[str, Any]:
        return {"script": None, "written": 0}

    def select_cache(self, cache: Any, rows: Tensor, *, drop: bool = False) -> Any:
        return {**cache, "script": cache["script"][rows]}

    def read_cache(self, cache: Any) -> KVPrefix:
        raise NotImplementedError

    def attach_cross_attention(self, blocks: Mapping[int, nn.Module]) -> None:
        raise NotImplementedError

    def add_lora(self, rank: int) -> None:
        raise NotImplementedError

    def forward(self, inputs: LMInputs, *, cache: Any = None, at: Tensor | None = None) -> LMOutput:
        self.rows_seen.append(len(inputs))
        script = inputs.embeds[:, -1, 0].long() if cache["script"] is None else cache["script"]
        logits = torch.zeros(len(script), self.vocab_size)
        for row, number in enumerate(script.tolist()):
            words = self.scripts[number]
            logits[row, words[cache["written"]] if cache["written"] < len(words) else EOS] = 9.0
        return LMOutput(logits, inputs.embeds, {"script": script, "written": cache["written"] + 1})


def say(*answers: str | bytes) -> tuple[ScriptedLM, LMInputs]:
    """An LM that answers row i with answers[i], byte by byte, then EOS."""
    scripts = [list(answer.encode() if isinstance(answer, str) else answer) for answer in answers]
    embeds = torch.arange(len(answers)).float()[:, None, None]
    return ScriptedLM(scripts), LMInputs(embeds, torch.ones(len(answers), 1, dtype=torch.bool))


def ragged(lm: ToyLM, lengths: list[int], seed: int = 0) -> LMInputs:
    """Right-padded rows of random vectors; what stands under the padding is noise too."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), lm.dim, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return LMInputs(embeds, mask)


def one(inputs: LMInputs, row: int) -> LMInputs:
    """One row without its padding."""
    keep = inputs.mask[row]
    return LMInputs(inputs.embeds[row : row + 1, keep], inputs.mask[row : row + 1, keep])


def texts(lm: LanguageModel, inputs: LMInputs, decoding: Decoding) -> list[str]:
    return [row[0].text for row in decode(lm, inputs, decoding)]


@pytest.mark.parametrize("decoding", WAYS)
def test_a_ragged_batch_answers_as_its_rows_one_by_one_in_any_order(decoding: Decoding) -> None:
    lm = ToyLM(1)
    inputs = ragged(lm, [3, 7, 1, 5])
    together = decode(lm, inputs, decoding)
    order = [2, 0, 3, 1]
    shuffled = decode(lm, LMInputs(inputs.embeds[order], inputs.mask[order]), decoding)
    for row in range(4):
        alone = decode(lm, one(inputs, row), decoding)[0]
        assert [answer.ids for answer in together[row]] == [answer.ids for answer in alone]
        assert [answer.ids for answer in shuffled[order.index(row)]] == [answer.ids for answer in alone]
        assert [a.log_prob for a in together[row]] == pytest.approx([a.log_prob for a in alone], abs=1e-4)


@pytest.mark.parametrize("decoding", WAYS)
def test_the_cached_loop_gives_the_log_probability_that_a_full_pass_gives(decoding: Decoding) -> None:
    lm = ToyLM(2)
    inputs = ragged(lm, [4])
    for answer in decode(lm, inputs, decoding)[0]:
        written = torch.tensor([answer.ids])
        embeds = torch.cat([inputs.embeds, lm.embed(written)], dim=1)
        labels = torch.cat([torch.full((1, 4), -100), written], dim=1)
        sums, counts = score_labels(lm, LMInputs(embeds, torch.ones_like(labels, dtype=torch.bool), labels))
        assert answer.log_prob == pytest.approx(float(sums), abs=1e-4)
        assert int(counts) == len(answer.ids)


def test_greedy_is_the_best_token_of_a_full_pass_at_every_step() -> None:
    lm = ToyLM(3)
    embeds = ragged(lm, [5]).embeds
    answer = decode(lm, LMInputs(embeds, torch.ones(1, 5, dtype=torch.bool)), Decoding(max_tokens=10))[0][0]
    for token in answer.ids:
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        assert int(lm(LMInputs(embeds, mask)).logits[0, -1].argmax()) == token
        embeds = torch.cat([embeds, lm.embed(torch.tensor([[token]]))], dim=1)


def test_finished_rows_leave_the_batch() -> None:
    lm, inputs = say("a", "ab", "abc", "abcdefghij")
    assert texts(lm, inputs, Decoding()) == ["a", "ab", "abc", "abcdefghij"]
    assert lm.rows_seen[:3] == [4, 4, 3]
    assert lm.rows_seen[-1] == 2  # never fewer than two: a lone row would be rounded otherwise


def test_eos_ends_an_answer_and_is_kept_in_its_ids() -> None:
    lm, inputs = say("hi")
    answer = decode(lm, inputs, Decoding())[0][0]
    assert (answer.text, answer.ids) == ("hi", (*b"hi", EOS))


def test_a_newline_ends_an_answer_before_it_and_a_full_stop_after_it() -> None:
    lm, inputs = say("A dog\nQ:", "A dog. A cat.", "\nA", "No stop")
    assert texts(lm, inputs, Decoding(stop=("\n", "."))) == ["A dog", "A dog.", "", "No stop"]
    assert len(decode(lm, inputs, Decoding(stop=("\n",)))[0][0].ids) == 6


def test_the_first_stop_string_wins_and_may_span_tokens() -> None:
    lm, inputs = say("one STOP. two END", "one. STOP")
    assert texts(lm, inputs, Decoding(stop=("END", "STOP", "."))) == ["one ", "one."]


@pytest.mark.parametrize("beams", [1, 2])
def test_no_stop_counts_before_min_tokens(beams: int) -> None:
    lm, inputs = say("a.b.c.d")
    decoding = Decoding(stop=(".",), min_tokens=3, num_beams=beams)
    assert texts(lm, inputs, decoding) == ["a.b."]


def test_eos_is_held_back_until_min_tokens() -> None:
    lm, inputs = say("a")
    assert len(decode(lm, inputs, Decoding(min_tokens=4, max_tokens=9))[0][0].ids) >= 4


def test_beams_stop_at_stop_strings_too() -> None:
    lm, inputs = say("ab.cd", "xyz\nq")
    assert texts(lm, inputs, Decoding(num_beams=3, stop=("\n", "."))) == ["ab.", "xyz"]


def test_a_stream_joined_is_the_answer_of_decode() -> None:
    lm = ToyLM(4)
    for seed in range(6):
        inputs = ragged(lm, [4], seed)
        for decoding in (Decoding(), Decoding(temperature=1.0, seed=seed), Decoding(stop=("a", "\x10\x10"))):
            assert "".join(stream(lm, inputs, decoding)) == texts(lm, inputs, decoding)[0]
    assert list(stream(lm, inputs, Decoding(num_beams=2))) == texts(lm, inputs, Decoding(num_beams=2))


def test_a_stream_never_holds_half_a_character_nor_part_of_a_stop_string() -> None:
    lm, inputs = say("né €😀 EN ENDE")
    assert list(stream(lm, inputs, Decoding(stop=("END",)))) == ["n", "é", " ", "€", "😀", " ", "EN ", ""][:-1]
    lm, inputs = say("a" + "😀")
    assert list(stream(lm, inputs, Decoding(max_tokens=3))) == ["a"] == texts(lm, inputs, Decoding(max_tokens=3))
    lm, inputs = say(b"\xf0\x9fA")
    assert list(stream(lm, inputs, Decoding())) == ["\N{REPLACEMENT CHARACTER}A"]


def test_a_stream_comes_token_by_token_and_leaves_the_caller_in_its_own_mode() -> None:
    lm, inputs = say("abc")
    pieces = stream(lm, inputs, Decoding())
    assert next(pieces) == "a"
    assert len(lm.rows_seen) == 1
    assert not torch.is_inference_mode_enabled()


def test_a_stream_is_of_one_row() -> None:
    lm, inputs = say("a", "b")
    with pytest.raises(ConfigError, match="one row"):
        next(stream(lm, inputs, Decoding()))


def test_samples_depend_on_the_seed_and_differ_within_a_row() -> None:
    lm = ToyLM(5)
    inputs = ragged(lm, [3, 3])
    first, same, other = (
        decode(lm, inputs, Decoding(temperature=1.5, seed=seed, num_return=3, max_tokens=8)) for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other
    assert len({answer.ids for answer in first[0]}) == 3
    assert [a.score for a in first[0]] == sorted((a.score for a in first[0]), reverse=True)


def test_samples_follow_the_distribution_of_the_model() -> None:
    lm = ToyLM(6)
    inputs = ragged(lm, [3])
    probabilities = lm(inputs).logits[0, -1].softmax(dim=-1)
    drawn = torch.zeros(lm.vocab_size)
    answers = decode(lm, inputs, Decoding(temperature=1.0, max_tokens=1, num_return=4000, seed=3))[0]
    for answer in answers:
        drawn[answer.ids[0]] += 1 / len(answers)
    assert float((drawn - probabilities).abs().sum()) / 2 < 0.06  # total variation


def test_a_prefix_and_a_memory_stay_in_force_while_decoding() -> None:
    class Block(nn.Module):
        def forward(self, hidden: Tensor, memory: Memory) -> Tensor:
            usable = memory.mask.to(hidden.dtype)  # (B, L, M)
            return hidden + usable @ memory.states / usable.sum(-1, keepdim=True).clamp(min=1)

    lm = ToyLM(7)
    lm.attach_cross_attention({1: Block()})
    inputs, geometry = ragged(lm, [2, 5]), lm.prefix_geometry
    memory = Memory(torch.randn(2, 3, lm.dim) * 3, torch.rand(2, 5, 3) < 0.5)
    prefix = KVPrefix.from_tokens(torch.randn(2, 4, geometry.token_dim), torch.ones(2, 4, dtype=torch.bool), geometry)
    inputs = LMInputs(inputs.embeds, inputs.mask, None, memory, prefix)
    for row, answers in enumerate(decode(lm, inputs, Decoding(max_tokens=6))):
        size = int(inputs.mask[row].sum())
        embeds = inputs.embeds[row : row + 1, :size]
        allowed = memory.mask[row : row + 1, :size]
        own = KVPrefix(prefix.keys[:, row : row + 1], prefix.values[:, row : row + 1], prefix.mask[row : row + 1])
        for token in answers[0].ids:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
            full = lm(LMInputs(embeds, mask, None, Memory(memory.states[row : row + 1], allowed), own))
            assert int(full.logits[0, -1].argmax()) == token
            embeds = torch.cat([embeds, lm.embed(torch.tensor([[token]]))], dim=1)
            allowed = torch.cat([allowed, allowed[:, -1:]], dim=1)
    without = decode(lm, LMInputs(inputs.embeds, inputs.mask, None, memory, None), Decoding(max_tokens=6))
    assert [row[0].ids for row in without] != [row[0].ids for row in decode(lm, inputs, Decoding(max_tokens=6))]


def test_an_answer_ends_where_the_context_of_the_lm_ends() -> None:
    lm = ToyLM(8)
    lm.context_length = 10
    for beams in (1, 2):
        answer = decode(lm, ragged(lm, [6]), Decoding(max_tokens=50, min_tokens=20, num_beams=beams))[0][0]
        assert len(answer.ids) == 5  # the last token needs no place of its own


def test_labels_are_scored_alike_with_any_padding_and_company() -> None:
    lm = ToyLM(9)
    inputs = ragged(lm, [6, 9, 4])
    labels = torch.where(inputs.mask, torch.randint(0, 250, inputs.mask.shape), -100)
    labels[0, :3] = -100
    labels[2] = -100
    sums, counts = score_labels(lm, LMInputs(inputs.embeds, inputs.mask, labels))
    assert counts.tolist() == [3, 8, 0]
    assert float(sums[2]) == 0.0
    for row, size in ((0, 6), (1, 9)):
        logits = lm(one(inputs, row)).logits[0].log_softmax(dim=-1)
        wanted = labels[row, 1:size]
        expected = sum(float(logits[t, wanted[t]]) for t in range(size - 1) if wanted[t] >= 0)
        assert float(sums[row]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ShapeError, match="labels"):
        score_labels(lm, inputs)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_candidates_of_one_prompt_score_as_in_full_passes(batch_size: int) -> None:
    lm = ToyLM(10)
    prompt = ragged(lm, [5])
    candidates = [[1, 2, 3], [7], [4, 5, 6, 8, 9, EOS], [1, 2]]
    sums, counts = score_candidates(lm, prompt, candidates, batch_size=batch_size)
    assert counts.tolist() == [3, 1, 6, 2]
    for candidate, value in zip(candidates, sums.tolist(), strict=True):
        ids = torch.tensor([candidate])
        labels = torch.cat([torch.full((1, 5), -100), ids], dim=1)
        embeds = torch.cat([prompt.embeds, lm.embed(ids)], dim=1)
        plain, _ = score_labels(lm, LMInputs(embeds, torch.ones_like(labels, dtype=torch.bool), labels))
        assert value == pytest.approx(float(plain), abs=1e-4)
    with pytest.raises(ShapeError, match="empty"):
        score_candidates(lm, prompt, [[1], []])


def test_candidates_rank_by_sum_or_by_mean() -> None:
    assert rank([-3.0, -4.0, -3.5], [1, 4, 2], normalise=False) == [0, 2, 1]
    assert rank([-3.0, -4.0, -3.5], [1, 4, 2], normalise=True) == [1, 2, 0]
    assert rank([-1.0, -1.0], [1, 1], normalise=True) == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 0}, "max_tokens to be at least 1, found 0"),
        ({"min_tokens": 40}, "min_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"stop": "\n"}, "stop to be a tuple"),
        ({"stop": ("",)}, "stop"),
        ({"num_return": 2}, "2 answers cannot come from 1 beams"),
        ({"num_beams": 2, "temperature": 1.0}, "not both"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**wrong)


def test_a_row_with_nothing_to_continue_is_refused() -> None:
    lm = ToyLM(0)
    with pytest.raises(ShapeError, match="no position to continue"):
        decode(lm, LMInputs(torch.zeros(1, 2, lm.dim), torch.zeros(1, 2, dtype=torch.bool)), Decoding())


def test_an_empty_batch_has_no_answers() -> None:
    lm = ToyLM(0)
    assert decode(lm, LMInputs(torch.zeros(0, 2, lm.dim), torch.zeros(0, 2, dtype=torch.bool)), Decoding()) == []
