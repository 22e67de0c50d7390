"""Masked language models through the one call equal their own forward, peft's prefixes and attention by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftlm.data.labelled import Template
from graftlm.data.sentence import Sentence
from graftlm.data.tokenize import IGNORED, Layout, tokenize
from graftlm.errors import BackboneError, ShapeError, UnsupportedLMError
from graftlm.lm.base import KVPrefix, LMInputs
from graftlm.lm.cloze import cloze_logits, target_loss
from graftlm.lm.masked import MaskedLM, is_masked
from graftlm.lm.verbalise import Verbaliser
from tests.masked_models import mask_tokenizer, tiny_encoder

ROWS, LENGTH, PLACES = 3, 12, 5
LENGTHS = (12, 7, 9)
TEMPLATE = Template.model_validate({"text": "{a} is {mask}, said {b}", "words": {"x": ["bad"], "y": ["good"]}})


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm_roberta"])
def lm(request: pytest.FixtureRequest) -> MaskedLM:
    return MaskedLM.from_model(tiny_encoder(request.param), mask_tokenizer()).requires_grad_(False)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(5, 200, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))


def right_mask() -> Tensor:
    return torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, atol=2e-5, rtol=1e-4)


def prefix(lm: MaskedLM, *, used: bool = True, seed: int = 0) -> KVPrefix:
    geometry = lm.prefix_geometry
    tokens = torch.randn(ROWS, PLACES, geometry.token_dim, generator=torch.Generator().manual_seed(seed))
    return KVPrefix.from_tokens(tokens, torch.full((ROWS, PLACES), used), geometry)


@torch.no_grad()
def test_logits_equal_the_models_own_on_padded_ids(lm: MaskedLM, ids: Tensor) -> None:
    mask = right_mask()
    own = lm.model(input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long()).logits
    found = lm(LMInputs(lm.embed(ids), mask)).logits
    assert close(found[mask], own[mask])


@torch.no_grad()
def test_one_changed_weight_changes_the_logits(lm: MaskedLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask())
    before = lm(inputs).logits
    weight = next(p for name, p in lm.named_parameters() if "layer.1" in name)
    kept = weight.detach().clone()
    weight.view(-1)[0] += 0.5
    changed = lm(inputs).logits
    weight.copy_(kept)
    assert not close(changed, before)


@torch.no_grad()
def test_padding_on_the_left_and_on_the_right_agree_with_none(lm: MaskedLM, ids: Tensor) -> None:
    right = LMInputs(lm.embed(ids), right_mask())
    left = right.align_left()
    for row, length in enumerate(LENGTHS):
        alone = lm(LMInputs(lm.embed(ids[row : row + 1, :length]), torch.ones(1, length, dtype=torch.bool))).logits[0]
        assert close(lm(right).logits[row, :length], alone)
        assert close(lm(left).logits[row, LENGTH - length :], alone)


@torch.no_grad()
def test_chosen_positions_have_the_logits_they_have_among_all(lm: MaskedLM, ids: Tensor) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask())
    at = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    at[0, 3] = at[2, 1] = True
    assert close(lm(inputs, at=at).logits, lm(inputs).logits[at])
    assert close(lm(inputs, layers=(-1,)).layers[0], lm(inputs).hidden)


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_a_prefix_that_is_masked_out_is_no_prefix(lm: MaskedLM, ids: Tensor, left: bool) -> None:
    inputs = LMInputs(lm.embed(ids), right_mask())
    inputs = inputs.align_left() if left else inputs
    found = lm(LMInputs(inputs.embeds, inputs.mask, prefix=prefix(lm, used=False))).logits
    assert close(found[inputs.mask], lm(inputs).logits[inputs.mask])
    used = lm(LMInputs(inputs.embeds, inputs.mask, prefix=prefix(lm))).logits
    assert not close(used[inputs.mask], found[inputs.mask])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft, about transformers
def test_a_prefix_equals_peft_with_the_same_numbers(lm: MaskedLM, ids: Tensor) -> None:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    if lm.model.config.model_type != "bert":
        pytest.skip("peft gives RoBERTa ids, and positions with them, in another way")
    model = tiny_encoder("bert_headless")
    bare = MaskedLM.from_model(tiny_encoder("bert_headless"), mask_tokenizer())
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=PLACES)
    adapted = get_peft_model(model, config).eval()
    flat = torch.randn(PLACES, bare.prefix_geometry.token_dim, generator=torch.Generator().manual_seed(5))
    adapted.prompt_encoder["default"].embedding.weight.copy_(flat)
    mask = right_mask()
    wanted = adapted(input_ids=ids, attention_mask=mask.long(), return_dict=True).last_hidden_state
    tokens = flat.expand(ROWS, -1, -1)
    own = KVPrefix.from_tokens(tokens, torch.ones(ROWS, PLACES, dtype=torch.bool), bare.prefix_geometry)
    found = bare(LMInputs(bare.embed(ids), mask, prefix=own)).hidden
    assert close(found[mask], wanted[mask])
    other = bare(LMInputs(bare.embed(ids), mask, prefix=KVPrefix(own.keys, own.values + 0.1, own.mask))).hidden
    assert not close(other[mask], wanted[mask])


@torch.no_grad()
def test_a_prefix_equals_attention_by_hand(ids: Tensor) -> None:
    lm = MaskedLM.from_model(tiny_encoder("bert_headless"), mask_tokenizer())
    bert, heads = lm.model, lm.prefix_geometry.num_kv_heads
    mask, own = right_mask(), prefix(lm)
    positions = torch.cat([own.mask, mask], 1).long().cumsum(1)[:, PLACES:] - 1
    hidden = bert.embeddings(inputs_embeds=lm.embed(ids), position_ids=positions)
    usable = torch.cat([own.mask, mask], 1)[:, None, None]
    for number, layer in enumerate(bert.encoder.layer):
        part = layer.attention.self
        query, key, value = (
            matrix(hidden).unflatten(-1, (heads, -1)).transpose(1, 2) for matrix in (part.query, part.key, part.value)
        )
        key = torch.cat([own.keys[number], key], dim=2)
        value = torch.cat([own.values[number], value], dim=2)
        scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~usable, float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended = layer.attention.output(mixed, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    found = lm(LMInputs(lm.embed(ids), mask, prefix=own)).hidden
    assert close(found[mask], hidden[mask])


def test_gradients_reach_prompts_and_prefixes(lm: MaskedLM, ids: Tensor) -> None:
    soft = torch.randn(ROWS, 2, lm.dim, requires_grad=True)
    own = prefix(lm)
    keys = own.keys.clone().requires_grad_(True)
    embeds = torch.cat([soft, lm.embed(ids)], dim=1)
    mask = torch.cat([torch.ones(ROWS, 2, dtype=torch.bool), right_mask()], dim=1)
    lm(LMInputs(embeds, mask, prefix=KVPrefix(keys, own.values, own.mask))).logits[mask].square().mean().backward()
    assert soft.grad is not None
    assert keys.grad is not None
    assert soft.grad.abs().min() > 0
    assert keys.grad.any()


def batch(lm: MaskedLM, labels: tuple[int, ...] = (0, 1)) -> LMInputs:
    sentences = [TEMPLATE.sentence({"a": "it" * (row + 1), "b": "he"}, label) for row, label in enumerate(labels)]
    rows = tokenize(sentences, lm.tokenizer, Layout(mask_id=lm.mask_id))
    return LMInputs(lm.embed(rows.ids), rows.mask, rows.labels)


@torch.no_grad()
def test_a_class_is_told_at_the_mask(lm: MaskedLM) -> None:
    inputs = batch(lm)
    assert inputs.labels is not None
    places = (inputs.labels != IGNORED).nonzero()
    whole = lm(inputs).logits
    wanted = whole[places[:, 0], places[:, 1]]
    assert places.shape == (2, 2)
    assert close(cloze_logits(lm, inputs), wanted)
    targets = inputs.labels[places[:, 0], places[:, 1]]
    assert close(target_loss(lm, inputs), torch.nn.functional.cross_entropy(wanted, targets))
    scores = Verbaliser.of(lm.tokenizer, TEMPLATE.choices(), "mean").scores(cloze_logits(lm, inputs))
    assert torch.allclose(scores.exp().sum(1), torch.ones(2), atol=1e-5)


@torch.no_grad()
def test_the_right_class_is_not_to_be_seen_by_the_model(lm: MaskedLM) -> None:
    assert torch.equal(cloze_logits(lm, batch(lm, (0, 1))), cloze_logits(lm, batch(lm, (1, 0))))


@torch.no_grad()
def test_both_sides_of_the_mask_are_read(lm: MaskedLM) -> None:
    def of(after: str) -> Tensor:
        rows = tokenize([TEMPLATE.sentence({"a": "it", "b": after}, 0)], lm.tokenizer, Layout(mask_id=lm.mask_id))
        return cloze_logits(lm, LMInputs(lm.embed(rows.ids), rows.mask, rows.labels))

    assert not close(of("he"), of("me"))


@torch.no_grad()
def test_a_model_without_a_head_gives_states_and_their_mean(ids: Tensor) -> None:
    lm = MaskedLM.from_model(tiny_encoder("bert_headless"), mask_tokenizer())
    output = lm(LMInputs(lm.embed(ids), right_mask()))
    assert not lm.has_head
    assert output.logits.shape == (ROWS, LENGTH, 0)
    pooled = lm.pool(output.hidden, right_mask())
    for row, length in enumerate(LENGTHS):
        assert close(pooled[row], output.hidden[row, :length].mean(0))
    with pytest.raises(UnsupportedLMError, match="has no output vectors"):
        lm.token_rows()


@torch.no_grad()
def test_a_head_in_several_parts_is_left_out(ids: Tensor) -> None:
    """DistilBERT's is four modules in a row: it is read as a model without a head is, by its states."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    sizes = {"vocab_size": 300, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = DistilBertForMaskedLM(DistilBertConfig(**sizes)).eval()
    lm = MaskedLM.from_model(model, mask_tokenizer())
    wanted = model.distilbert(input_ids=ids, attention_mask=right_mask().long()).last_hidden_state
    output = lm(LMInputs(lm.embed(ids), right_mask()))
    assert close(output.hidden[right_mask()], wanted[right_mask()])
    assert not lm.has_head
    assert output.logits.shape == (ROWS, LENGTH, 0)
    with pytest.raises(UnsupportedLMError, match="take no keys and values"):
        _ = lm.prefix_geometry


def test_what_needs_a_cache_or_a_memory_is_refused(lm: MaskedLM, ids: Tensor) -> None:
    for ask in (lambda: lm.new_cache(1, 4), lambda: lm.attach_cross_attention({}), lambda: lm.read_cache(None)):
        with pytest.raises(UnsupportedLMError, match="choose a causal language model"):
            ask()
    long = torch.zeros(1, lm.context_length - PLACES + 1, dtype=torch.long)
    one = KVPrefix(prefix(lm).keys[:, :1], prefix(lm).values[:, :1], prefix(lm).mask[:1])
    with pytest.raises(ShapeError, match="positions given to a language model made for"):
        lm(LMInputs(lm.embed(long), torch.ones_like(long, dtype=torch.bool), prefix=one))


def test_a_folder_is_known_by_its_config(tmp_path: object) -> None:
    from pathlib import Path

    from graftlm.backbones import load_lm

    place = Path(str(tmp_path))
    for name, family, head in (("with", "roberta", True), ("without", "bert_headless", False)):
        tiny_encoder(family).save_pretrained(place / name)
        mask_tokenizer().save_pretrained(place / name)
        assert is_masked(place / name)
        lm = load_lm(str(place / name), "float32")
        assert isinstance(lm, MaskedLM)
        assert lm.has_head == head
        assert not any(parameter.requires_grad for parameter in lm.parameters())
    with pytest.raises(BackboneError, match="expected float32 or bfloat16, found 'int8'"):
        load_lm(str(place / "with"), "int8")
    assert not is_masked(place)


def test_plain_sentences_begin_and_end_with_the_models_own_tokens(lm: MaskedLM) -> None:
    rows = tokenize([Sentence.of("ab")], lm.tokenizer, Layout(mask_id=lm.mask_id))
    assert rows.ids[0].tolist() == [1, *lm.tokenizer.encode("ab"), 2]
