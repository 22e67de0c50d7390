"""Decoding equals transformers' `generate`, and the controls equal its logits processors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.lm import sampling
from graftlm.lm.base import LMInputs
from graftlm.lm.decode import Decoding, decode
from graftlm.lm.huggingface import HuggingFaceLM

transformers = pytest.importorskip("transformers")
# Said of `generate` with embeddings: its controls do not look at the prompt. Neither do ours.
pytestmark = pytest.mark.filterwarnings("ignore:Passing `.*` with `inputs_embeds`")

VOCAB, EOS, WIDTH = 40, 2, 32
FAMILIES = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
    "gpt2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": WIDTH},
    "gpt_neox": {"intermediate_size": 64},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    words.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{EOS}", pad_token="w1")


@cache
def language_model(family: str, seed: int) -> HuggingFaceLM:
    """A tiny model whose every parameter is random and large enough for certain answers."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=VOCAB, eos_token_id=EOS, pad_token_id=1, bos_token_id=0, **sizes, **FAMILIES[family]
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 1.0))
        model.get_output_embeddings().weight[EOS] *= 4  # now certain, now impossible: answers of many lengths
    return HuggingFaceLM.from_model(model.eval(), tokenizer(), "tiny")


def prompts(seed: int, lengths: tuple[int, ...] = (3, 6, 1)) -> LMInputs:
    """Right-padded rows of random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator)
    return LMInputs(embeds, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def generate(lm: HuggingFaceLM, inputs: LMInputs, **settings: Any) -> tuple[list[list[int]], list[float]]:
    """transformers' answers, each up to its EOS, and their beam scores."""
    left = inputs.align_left()
    found = lm.model.generate(
        inputs_embeds=left.embeds,
        attention_mask=left.mask.long(),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=1,
        eos_token_id=EOS,
        **settings,
    )
    rows = [row[: row.index(EOS) + 1] if EOS in row else row for row in found.sequences.tolist()]
    scores = getattr(found, "sequences_scores", None)
    return rows, [] if scores is None else scores.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_of_a_ragged_batch_are_those_of_generate(family: str) -> None:
    lengths = set()
    for seed in range(4):
        lm, inputs = language_model(family, seed), prompts(seed)
        wanted, _ = generate(lm, inputs, max_new_tokens=10)
        ours = [list(row[0].ids) for row in decode(lm, inputs, Decoding(max_tokens=10))]
        assert ours == wanted
        lengths |= {len(ids) for ids in ours}
    assert len(lengths) > 1, "no answer ended early: the test proves little"


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -0.5])
@pytest.mark.parametrize("num_beams", [3, 5])
def test_beam_search_finds_what_generate_finds_with_the_same_scores(num_beams: int, length_penalty: float) -> None:
    lengths = set()
    for seed in range(8):
        family = list(FAMILIES)[seed % len(FAMILIES)]
        lm, inputs = language_model(family, seed % 4), prompts(seed)
        settings = {"num_beams": num_beams, "length_penalty": length_penalty, "num_return_sequences": num_beams}
        wanted, scores = generate(lm, inputs, max_new_tokens=10, **settings)
        decoding = Decoding(10, num_beams=num_beams, length_penalty=length_penalty, num_return=num_beams)
        ours = [one for row in decode(lm, inputs, decoding) for one in row]
        assert [list(one.ids) for one in ours] == wanted
        assert [one.score for one in ours] == pytest.approx(scores, abs=1e-4)
        lengths |= {len(one.ids) for one in ours}
    assert len(lengths) > 2, "hypotheses of one length only: the penalty is not tested"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_controls_change_the_search_as_they_change_generate(num_beams: int) -> None:
    for seed in range(4):
        lm, inputs = language_model("llama", seed), prompts(seed)
        # No repetition penalty: with embeddings, generate spares as many first answers as the prompt is long.
        settings = {"no_repeat_ngram_size": 2, "min_new_tokens": 5}
        wanted, _ = generate(lm, inputs, max_new_tokens=12, num_beams=num_beams, **settings)
        decoding = Decoding(12, 5, num_beams, no_repeat_ngram=2)
        assert [list(row[0].ids) for row in decode(lm, inputs, decoding)] == wanted


def test_one_weight_that_differs_changes_the_beams() -> None:
    lm, inputs = language_model("llama", 0), prompts(0)
    wanted, scores = generate(lm, inputs, max_new_tokens=10, num_beams=3)
    weight = lm.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[EOS] += 0.5
    try:
        ours = [row[0] for row in decode(lm, inputs, Decoding(10, num_beams=3))]
    finally:
        with torch.no_grad():
            weight[EOS] -= 0.5
    assert [one.score for one in ours] != pytest.approx(scores, abs=1e-4)
    assert len(wanted) == len(ours)


def scores_of(seed: int) -> tuple[Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, VOCAB, generator=generator) * 3
    written = torch.randint(0, 6, (3, 9), generator=generator).tolist()
    return scores, written


@pytest.mark.parametrize("seed", range(5))
def test_every_control_equals_the_processor_of_transformers(seed: int) -> None:
    scores, written = scores_of(seed)
    ids = torch.tensor(written)
    before = scores.clone()
    pairs = [
        (
            sampling.penalise_repetition(scores, written, 1.3),
            transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone()),
        ),
        *(
            (
                sampling.forbid_repeated_ngrams(scores, written, size),
                transformers.NoRepeatNGramLogitsProcessor(size)(ids, scores.clone()),
            )
            for size in (1, 2, 3, 4)
        ),
        (sampling.forbid_id(scores, EOS), transformers.MinLengthLogitsProcessor(50, EOS)(ids, scores.clone())),
        (sampling.keep_top_k(scores, 7), transformers.TopKLogitsWarper(7)(ids, scores.clone())),
        (sampling.keep_top_p(scores, 0.8), transformers.TopPLogitsWarper(0.8)(ids, scores.clone())),
        (sampling.keep_top_p(scores, 0.01), transformers.TopPLogitsWarper(0.01)(ids, scores.clone())),
    ]
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
    assert torch.equal(scores, before), "a control changed its input"


@pytest.mark.parametrize("vocabulary", [4, 64, 640, 1000])
def test_the_best_token_is_that_of_argmax_ties_included(vocabulary: int) -> None:
    scores = torch.randint(0, 5, (50, vocabulary), generator=torch.Generator().manual_seed(0)).float()
    scores[0] = float("-inf")
    assert torch.equal(sampling.best(scores), scores.argmax(dim=-1))


def test_top_1_keeps_all_that_tie_as_transformers_does() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert torch.equal(sampling.keep_top_k(scores, 1), transformers.TopKLogitsWarper(1)(None, scores))
