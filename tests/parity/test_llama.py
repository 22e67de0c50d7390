"""A Llama read without transformers answers bit by bit what transformers' own does, and becomes it where it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graftlm.errors import BackboneError, UnsupportedLMError
from graftlm.lm.base import KVPrefix, LMInputs, Memory
from graftlm.lm.decode import Decoding, decode
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.lm.llama import LlamaLM
from graftlm.losses import causal_lm
from graftlm.nn.attention import Geometry
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from tests.architecture.source import ROOT
from tests.language_models import tiny_model, tiny_tokenizer

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 kernels"
)
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}\n{% endfor %}{{ bos_token }}"
TEXTS = ("a photo of <s> </s> things", "caf\u00e9, \u732b\n", "", "two  spaces")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def ours(folder: Path) -> LlamaLM:
    assert LlamaLM.reads(folder)
    return LlamaLM(folder, name="tiny", fingerprint="f")


@pytest.fixture
def theirs(folder: Path) -> HuggingFaceLM:
    return HuggingFaceLM.load(folder, name="tiny", precision="bfloat16", fingerprint="f").requires_grad_(False)


def prompts(lm: Any, lengths: tuple[int, ...] = (3, 7, 1)) -> LMInputs:
    ids = torch.randint(3, 250, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return LMInputs(lm.embed(ids), mask)


def is_folded(lm: LlamaLM) -> bool:
    return type(lm.model).__module__ == "graftlm.lm.llama"


def test_logits_hidden_states_and_answers_are_equal(folder: Path, theirs: HuggingFaceLM) -> None:
    lm, found = ours(folder), []
    for one in (lm, theirs):
        inputs = prompts(one)
        with torch.no_grad():
            output = one(inputs, layers=(0, 1, -1))
        answers = decode(one, inputs, Decoding(max_tokens=6))
        beams = decode(one, inputs, Decoding(max_tokens=6, num_beams=3))
        states = (
            output.logits[inputs.mask],
            output.hidden[inputs.mask],
            *(each[inputs.mask] for each in output.layers),
        )
        found.append((states, answers, beams))
    assert is_folded(lm)
    assert all(torch.equal(left, right) for left, right in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1:] == found[1][1:]


def test_it_says_of_itself_what_transformers_own_does(folder: Path, theirs: HuggingFaceLM) -> None:
    lm = ours(folder)
    assert (lm.is_causal, lm.has_head, lm.mask_id) == (theirs.is_causal, theirs.has_head, theirs.mask_id)
    assert (lm.is_causal, lm.has_head, lm.mask_id) == (True, True, None)
    for name in ("dim", "hidden_dim", "num_layers", "vocab_size", "context_length", "prefix_geometry"):
        assert getattr(lm, name) == getattr(theirs, name)
    inputs = prompts(lm)
    pooled = lm.pool(inputs.embeds, inputs.mask)
    assert torch.equal(pooled, inputs.embeds[[0, 1, 2], [2, 6, 0]])
    assert is_folded(lm)


def test_another_weight_is_another_answer(folder: Path, tmp_path: Path) -> None:
    model = tiny_model("llama", seed=1).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lms = [ours(folder), ours(tmp_path)]
    with torch.no_grad():
        assert not torch.allclose(*(lm(prompts(lm)).logits[0, :3] for lm in lms), atol=0.1)


def test_gradients_and_losses_are_equal(folder: Path, theirs: HuggingFaceLM) -> None:
    found = []
    for one in (ours(folder), theirs):
        inputs = prompts(one)
        at = inputs.mask.clone()
        targets = torch.arange(int(at.sum()))
        soft = torch.randn(3, 2, 3 * 2 * 2 * 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        prefix = KVPrefix.from_tokens(soft.bfloat16(), torch.ones(3, 2, dtype=torch.bool), one.prefix_geometry)
        loss = one.target_loss(LMInputs(inputs.embeds, inputs.mask, prefix=prefix), at, targets)
        loss.backward()
        found.append((loss.detach(), soft.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_blocks_read_a_memory(folder: Path, theirs: HuggingFaceLM) -> None:
    torch.manual_seed(0)
    block = GatedCrossAttention(32, 8, Geometry(heads=2, head_dim=8, dense_dim=16))
    torch.nn.init.ones_(block.attention_gate)
    found = []
    for one in (ours(folder), theirs):
        one.attach_cross_attention({1: block})
        inputs = prompts(one)
        states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
        memory = Memory(states, torch.ones(3, 7, 4, dtype=torch.bool))
        with torch.no_grad():
            found.append(one(LMInputs(inputs.embeds, inputs.mask, memory=memory)).logits[inputs.mask])
    assert torch.equal(*found)
    with pytest.raises(UnsupportedLMError, match="3 layers"):
        ours(folder).attach_cross_attention({3: block})


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_read_and_written_alike(folder: Path, theirs: HuggingFaceLM, text: str) -> None:
    words, wanted = ours(folder).tokenizer, theirs.tokenizer
    assert words.encode(text) == wanted.encode(text)
    assert words.encode_template(text) == wanted.encode_template(text)
    ids = wanted.encode_template(text)
    assert words.decode(ids) == wanted.decode(ids)
    assert words.settings() == wanted.settings()
    assert len(words.encode("<s>")) > len(words.encode_template("<s>"))
    messages = [{"role": "user", "content": text}]
    assert words.render_chat(messages, add_generation_prompt=True) == wanted.render_chat(
        messages, add_generation_prompt=True
    )


def test_tensors_and_modules_bear_the_same_names(folder: Path, theirs: HuggingFaceLM) -> None:
    lm = ours(folder)

    def tree(one: Any) -> dict[str, str]:
        return {name: type(module).__qualname__ for name, module in one.model.named_modules()}

    assert tree(lm) == tree(theirs)
    mine, other = lm.model.state_dict(), theirs.model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert dict(lm.named_parameters()).keys() == dict(theirs.named_parameters()).keys()


@torch.no_grad()
def test_a_text_too_long_for_the_quick_pass_is_answered_by_transformers(
    folder: Path, theirs: HuggingFaceLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftlm.lm import llama_gradient

    lm, names = ours(folder), set(dict(ours(folder).named_parameters()))
    monkeypatch.setattr(llama_gradient, "LARGEST_SCORES", 10)
    inputs = prompts(lm)
    found = lm(inputs).logits[inputs.mask]
    assert not is_folded(lm)
    assert torch.equal(found, theirs(inputs).logits[inputs.mask])
    assert set(dict(lm.named_parameters())) == names
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    cache = lm.new_cache(3, 8)
    assert lm(inputs, cache=cache).logits.shape == (3, 7, lm.vocab_size)
    assert decode(lm, inputs, Decoding(max_tokens=4)) == decode(theirs, inputs, Decoding(max_tokens=4))


def test_low_rank_updates_are_trained_by_transformers(folder: Path) -> None:
    pytest.importorskip("peft")
    lm = ours(folder)
    lm.add_lora(2)
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    assert trained
    loss: Tensor = causal_lm(lm(prompts(lm), at=prompts(lm).mask).logits, torch.arange(11))
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_a_gradient_through_a_cache_is_refused(folder: Path) -> None:
    lm = ours(folder)
    with pytest.raises(UnsupportedLMError, match="no_grad"):
        lm(prompts(lm), cache=lm.new_cache(3, 8))


def test_a_folder_that_is_no_plain_llama_is_not_read_and_a_broken_one_is_a_sentence(
    folder: Path, tmp_path: Path
) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert not LlamaLM.reads(tmp_path)
    assert not LlamaLM.reads(tmp_path / "nothing")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(BackboneError, match="'tiny' cannot be read"):
        ours(broken)


def test_transformers_stays_unloaded(folder: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from graftlm.lm.llama import LlamaLM; "
        "from graftlm.lm.base import LMInputs; from graftlm.lm.decode import Decoding, decode; "
        f"lm = LlamaLM(Path({str(folder)!r}), name='tiny', fingerprint='f'); ids = torch.tensor([[5, 6]]); "
        "print(decode(lm, LMInputs(lm.embed(ids), ids > 0), Decoding(max_tokens=3))); "
        "assert 'transformers' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT / "src")}, check=True)
