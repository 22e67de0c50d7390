"""The adapter around transformers: tokenizer, cache, attention, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlm.errors import BackboneError, MissingExtraError, ShapeError, UnsupportedLMError
from graftlm.lm.attention import grouped_attention
from graftlm.lm.base import LMInputs
from graftlm.lm.huggingface import HuggingFaceLM, fingerprint_folder
from tests.language_models import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


@pytest.fixture(scope="module")
def lm() -> HuggingFaceLM:
    return HuggingFaceLM.from_model(tiny_model("llama"), tiny_tokenizer(template=TEMPLATE)).requires_grad_(False)


def test_plain_text_never_becomes_a_special_token(lm: HuggingFaceLM) -> None:
    tokenizer = lm.tokenizer
    assert tokenizer.eos_id not in tokenizer.encode("bye</s>")
    assert tokenizer.decode(tokenizer.encode("bye</s>")) == "bye</s>"
    assert tokenizer.encode_template("bye</s>")[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in tokenizer.encode("bye</s>")  # also after a template was read
    assert tokenizer.encode("hi")[0] != tokenizer.bos_id


def test_special_tokens_are_left_out_of_words(lm: HuggingFaceLM) -> None:
    assert lm.tokenizer.decode([1, *lm.tokenizer.encode("hi"), 2, 0]) == "hi"


def test_padding_falls_back_to_eos_and_bos_may_be_missing() -> None:
    tokenizer = tiny_tokenizer(bos=None)
    tokenizer.pad_token = None
    found = HuggingFaceLM.from_model(tiny_model("qwen2"), tokenizer).tokenizer
    assert (found.bos_id, found.pad_id, found.eos_id) == (None, 2, 2)


def test_a_dialogue_is_rendered_by_the_models_own_template(lm: HuggingFaceLM) -> None:
    rendered = lm.tokenizer.render_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert rendered == "<s>user: hi</s><s>"


def test_without_a_template_a_dialogue_is_refused() -> None:
    found = HuggingFaceLM.from_model(tiny_model("gpt2"), tiny_tokenizer()).tokenizer
    with pytest.raises(BackboneError, match="no chat template"):
        found.render_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)


def test_a_template_that_refuses_a_role_is_a_sentence() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    found = HuggingFaceLM.from_model(tiny_model("gpt2"), tiny_tokenizer(template=template)).tokenizer
    with pytest.raises(BackboneError, match="no system"):
        found.render_chat([{"role": "system", "content": "hi"}], add_generation_prompt=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("length", "places"), [(5, 5), (1, 9), (200, 300)])
def test_grouped_attention_equals_the_formula(dtype: torch.dtype, length: int, places: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 6, length, 8, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(2, 3, places, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    usable = torch.ones(length, places, dtype=torch.bool).tril(places - length)
    mask = torch.zeros(2, 1, length, places, dtype=dtype).masked_fill(~usable, torch.finfo(dtype).min)
    found, _ = grouped_attention(nn.Identity().eval(), query, key, value, mask, scaling=0.3)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    wide = [doubles[0], *(tensor.repeat_interleave(2, dim=1) for tensor in doubles[1:])]
    wanted = F.scaled_dot_product_attention(*wide, attn_mask=usable, scale=0.3).transpose(1, 2)
    assert found.shape == (2, length, 6, 8)
    found.double().square().sum().backward()
    wanted.square().sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert (found - wanted).norm() < tolerance * wanted.norm()
    for tensor, double in zip((query, key, value), doubles, strict=True):
        assert tensor.grad is not None
        assert double.grad is not None
        assert (tensor.grad - double.grad).norm() < tolerance * double.grad.norm()


def test_the_quick_attention_is_used_on_a_cpu(lm: HuggingFaceLM) -> None:
    assert lm.model.config._attn_implementation == "graftlm_grouped"


def test_lora_trains_in_float32_beside_a_frozen_bfloat16_model() -> None:
    pytest.importorskip("peft")
    found = HuggingFaceLM.from_model(tiny_model("llama").bfloat16(), tiny_tokenizer()).requires_grad_(False)
    ids = torch.randint(3, 300, (2, 5))
    inputs = LMInputs(found.embed(ids), torch.ones(2, 5, dtype=torch.bool))
    before = found(inputs).logits
    found.add_lora(4)
    trained = {name: p for name, p in found.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert not any("lm_head" in name for name in trained)
    after = found(inputs).logits
    assert torch.equal(after, before)  # LoRA begins as nothing
    after.float().square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())


def test_a_cache_too_small_is_refused_with_its_size(lm: HuggingFaceLM) -> None:
    inputs = LMInputs(torch.zeros(2, 5, lm.dim), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match="2 rows of 3 positions"):
        lm(inputs, cache=lm.new_cache(2, 3))
    with pytest.raises(ShapeError, match="129 positions"):
        lm(LMInputs(torch.zeros(1, 129, lm.dim), torch.ones(1, 129, dtype=torch.bool)))


def test_a_block_for_a_layer_that_is_not_there_is_refused(lm: HuggingFaceLM) -> None:
    with pytest.raises(UnsupportedLMError, match=r"3 layers.*7"):
        lm.attach_cross_attention({7: nn.Identity()})


def test_a_decoder_that_leaves_out_a_layer_cannot_take_memory() -> None:
    model = tiny_model("llama")
    found = HuggingFaceLM.from_model(model, tiny_tokenizer())
    found.attach_cross_attention({})
    model.model.layers = model.model.layers[:2]  # as in a family that does not call all the layers it lists
    with pytest.raises(UnsupportedLMError, match="2 of 3"):
        found.attach_cross_attention({0: nn.Identity()})


def test_a_model_that_is_no_decoder_is_refused() -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(UnsupportedLMError, match="bert"):
        HuggingFaceLM.from_model(BertModel(BertConfig(vocab_size=50, **sizes)), tiny_tokenizer())


def test_logits_that_change_on_the_way_are_noticed() -> None:
    model = tiny_model("llama")
    own = model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(UnsupportedLMError, match="logits change"):
        HuggingFaceLM.from_model(model, tiny_tokenizer())


def saved(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def test_the_fingerprint_follows_weights_and_tokenizer_not_the_folder(tmp_path: Path) -> None:
    first = fingerprint_folder(saved(tmp_path / "one"), "one")
    assert fingerprint_folder(saved(tmp_path / "two"), "two") == first
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(str(tmp_path / "two"))
    assert fingerprint_folder(tmp_path / "two", "two") != first
    tiny_tokenizer(template="x").save_pretrained(str(tmp_path / "one"))
    assert fingerprint_folder(tmp_path / "one", "one") != first


def test_quantised_precisions_name_the_extra_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"graftlm\[quant\]"):
        HuggingFaceLM.load(saved(tmp_path), name="tiny", precision="int8", fingerprint="")
    with pytest.raises(BackboneError, match="int3"):
        HuggingFaceLM.load(tmp_path, name="tiny", precision="int3", fingerprint="")


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_gradients_pass_through_a_quantised_model_to_its_inputs(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra 'quant' is not installed")
    from bitsandbytes.functional import dequantize_4bit

    quantised = HuggingFaceLM.load(saved(tmp_path), name="tiny", precision=precision, fingerprint="")
    before = {name: tensor.clone() for name, tensor in quantised.state_dict().items() if isinstance(tensor, Tensor)}
    plain = HuggingFaceLM.load(tmp_path, name="tiny", precision="float32", fingerprint="")
    with torch.no_grad():
        for name, weight in quantised.model.named_parameters():
            if precision == "nf4" and hasattr(weight, "quant_state"):
                plain.model.get_parameter(name).copy_(dequantize_4bit(weight.data, weight.quant_state))
    gradients = []
    for found in (quantised, plain):
        embeds = torch.randn(2, 5, found.dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
        inputs = LMInputs(embeds, torch.ones(2, 5, dtype=torch.bool))
        with torch.no_grad():
            found(inputs)  # a call without gradient must not spoil the next one with
        found(inputs).logits.float().logsumexp(-1).sum().backward()
        assert embeds.grad is not None
        gradients.append(embeds.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9
    assert all(torch.equal(tensor, quantised.state_dict()[name]) for name, tensor in before.items())


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(BackboneError, match=r"safetensors"):
        fingerprint_folder(tmp_path, "pickled")
