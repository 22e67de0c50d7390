"""Flamingo's parts and the whole of it against transformers' Idefics, on random weights with open gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftlm.data.sentence import Image, Sentence
from graftlm.encoders.toy import ToyEncoder
from graftlm.lm.base import LMInputs, Memory
from graftlm.lm.huggingface import HuggingFaceLM
from graftlm.nn.attention import CrossAttention, Geometry
from graftlm.nn.flamingo_variants import VARIANTS
from graftlm.nn.gated_cross_attention import GatedCrossAttention
from graftlm.nn.resampler import PerceiverResampler
from graftlm.systems.base import Parts
from graftlm.systems.flamingo import Flamingo, FlamingoConfig
from tests.language_models import VOCABULARY, tiny_tokenizer
from tests.pictures import picture

transformers = pytest.importorskip("transformers")

DIM, VISION, HEADS, LATENTS, DEPTH, LAYERS = 32, 24, 4, 6, 2, 4
CLOSE = {"atol": 1e-5, "rtol": 0.0}
Names = Mapping[str, str]

ATTENTION: Names = {"to_queries": "q_proj", "to_keys": "k_proj", "to_values": "v_proj"}
QK_NORMS: Names = {"query_norm": "q_layer_norm", "key_norm": "k_layer_norm"}


def idefics_config(*, gate: str = "float", qk_norm: bool = True, interval: int = 2) -> Any:
    """Idefics for a tiny Llama; its dense layers are as wide as ours compute them for Llama's."""
    return transformers.IdeficsConfig(
        vocab_size=VOCABULARY,
        additional_vocab_size=0,
        hidden_size=DIM,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        cross_layer_interval=interval,
        use_resampler=True,
        alpha_type="vector" if gate == "vector" else "float",
        max_position_embeddings=128,
        qk_layer_norms=qk_norm,
        vision_config={
            "embed_dim": VISION, "image_size": 28, "patch_size": 14, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 48,
        },
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": LATENTS, "resampler_depth": DEPTH,
            "resampler_n_heads": HEADS, "resampler_head_dim": 96, "qk_layer_norms_perceiver": qk_norm,
        },
    )  # fmt: skip


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter is drawn: fresh ones are so near zero, or one, that a comparison would pass on nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) * 0.2)
            if "alpha" in name:
                parameter.add_(0.7)


def copy(ours: nn.Module, theirs: nn.Module, names: Names) -> set[str]:
    """Copies parameters; `names`: our module to theirs. Returns the names of ours that were filled."""
    filled = set()
    with torch.no_grad():
        for left, right in names.items():
            source: Any = theirs.get_submodule(right) if right else theirs
            for name, parameter in ours.get_submodule(left).named_parameters(recurse=False):
                parameter.copy_(getattr(source, name).view_as(parameter))
                filled.add(f"{left}.{name}")
    return filled


def copy_resampler(ours: PerceiverResampler, theirs: Any) -> None:
    names = {"norm": "layer_norm"}
    for layer in range(len(ours.layers)):
        mine, read, dense = f"layers.{layer}", f"blocks.{layer}.0", f"blocks.{layer}.1"
        attention = {**ATTENTION, "to_output": "output_proj", **(QK_NORMS if theirs.qk_layer_norms else {})}
        names |= {f"{mine}.attention.{left}": f"{read}.{right}" for left, right in attention.items()}
        names |= {f"{mine}.norm_context": f"{read}.context_layer_norm"}
        names |= {f"{mine}.norm_latents": f"{read}.latents_layer_norm", f"{mine}.norm_dense": f"{dense}.ln"}
        names |= {f"{mine}.dense.up": f"{dense}.fc", f"{mine}.dense.down": f"{dense}.c_proj"}
    filled = copy(ours, theirs, names)
    with torch.no_grad():
        ours.latents.copy_(theirs.latents)
    assert {*filled, "latents"} == {name for name, _ in ours.named_parameters()}


def copy_block(ours: GatedCrossAttention, theirs: Any) -> None:
    attention = {**ATTENTION, "to_output": "o_proj", **(QK_NORMS if theirs.cross_attn.qk_layer_norms else {})}
    names = {f"attention.{left}": f"cross_attn.{right}" for left, right in attention.items()}
    names |= {"norm_attention": "input_layernorm", "norm_dense": "post_attention_layernorm"}
    names |= {f"dense.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    filled = copy(ours, theirs, names)
    with torch.no_grad():
        ours.attention_gate.copy_(theirs.alpha_cross_attn.view(-1))
        ours.dense_gate.copy_(theirs.alpha_dense.view(-1))
    assert {*filled, "attention_gate", "dense_gate"} == {name for name, _ in ours.named_parameters()}


def idefics(**choices: Any) -> Any:
    model = transformers.IdeficsForVisionText2Text(idefics_config(**choices)).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@torch.no_grad()
def test_the_resampler_is_idefics(activation: Any, qk_norm: bool) -> None:
    """With GELU it is open_flamingo's, layer by layer the same as Idefics' otherwise."""
    theirs = idefics(qk_norm=qk_norm).model.perceiver_resampler
    if activation == "gelu":
        for _, dense in theirs.blocks:
            dense.act = nn.GELU()
    geometry = Geometry(HEADS, 96, 4 * VISION, activation, qk_norm=qk_norm)
    ours = PerceiverResampler(VISION, geometry, num_latents=LATENTS, depth=DEPTH)
    copy_resampler(ours, theirs)
    context = torch.randn(3, 7, VISION)
    mask = torch.ones(3, 7, dtype=torch.bool)
    wanted = theirs(context)
    torch.testing.assert_close(ours(context, mask), wanted, **CLOSE)
    ours.layers[1].attention.to_keys.weight[0, 0] += 0.5
    assert (ours(context, mask) - wanted).abs().max() > 1e-4


def test_idefics_own_choices_are_those_of_the_variant() -> None:
    variant = VARIANTS["idefics"]
    assert variant.resampler(1280, 16, width=0, dropout=0.0) == Geometry(16, 96, 5120, "relu", qk_norm=True)
    block = variant.block(4096, 32, width=0, dropout=0.0)
    assert block == Geometry(32, 128, 11008, "swiglu", "rms", qk_norm=True)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("gate", ["float", "vector"])
@torch.no_grad()
def test_the_gated_block_is_idefics(gate: str, qk_norm: bool) -> None:
    theirs = idefics(gate=gate, qk_norm=qk_norm).model.gated_cross_attn_layers[1]
    geometry = Geometry(HEADS, DIM // HEADS, 256, "swiglu", "rms", qk_norm)
    ours = GatedCrossAttention(DIM, VISION, geometry, gate="vector" if gate == "vector" else "scalar")
    copy_block(ours, theirs)
    hidden, states = torch.randn(2, 5, DIM), torch.randn(2, 9, VISION)
    mask = torch.rand(2, 5, 9) > 0.4
    mask[0, 1] = False  # a word that may read nothing
    added = torch.zeros(2, 1, 5, 9).masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    wanted = theirs(
        hidden,
        image_hidden_states=states,
        image_attention_mask=added,
        cross_attention_gate=mask.any(-1).float(),
    )
    torch.testing.assert_close(ours(hidden, Memory(states, mask)), wanted, **CLOSE)
    ours.dense_gate.add_(0.1)
    assert (ours(hidden, Memory(states, mask)) - wanted).abs().max() > 1e-4


@torch.no_grad()
def test_masked_cross_attention_is_torchs() -> None:
    """The attention of open_flamingo, whose heads may be narrower than the model: here they are not, as torch wants."""
    ours = CrossAttention(DIM, VISION, Geometry(HEADS, DIM // HEADS, 1))
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=False, kdim=VISION, vdim=VISION, batch_first=True)
    randomise(ours)
    for mine, name in ((ours.to_queries, "q"), (ours.to_keys, "k"), (ours.to_values, "v")):
        getattr(theirs, f"{name}_proj_weight").copy_(mine.weight)
    theirs.out_proj.weight.copy_(ours.to_output.weight)
    states, memory = torch.randn(1, 5, DIM), torch.randn(1, 9, VISION)
    mask = torch.rand(1, 5, 9) > 0.4
    wanted = theirs(states, memory, memory, attn_mask=~mask[0])[0]
    torch.testing.assert_close(ours(states, ours.project(memory), mask), wanted, **CLOSE)
    mask[0, 2, 3] = ~mask[0, 2, 3]
    assert (ours(states, ours.project(memory), mask) - wanted).abs().max() > 1e-4


def whole_model(theirs: Any, attends: str, gate: str) -> Flamingo:
    """Our system over a plain Llama with Idefics' weights in all its parts."""
    config = theirs.config
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=DIM,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=128,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=False,
        )
    ).eval()
    own = theirs.state_dict()
    llama.load_state_dict({name: own[name] for name in llama.state_dict()})
    lm = HuggingFaceLM.from_model(llama, tiny_tokenizer()).requires_grad_(False)
    options = FlamingoConfig.model_validate(
        {
            "variant": "idefics", "every": config.cross_layer_interval, "num_latents": LATENTS, "depth": DEPTH,
            "heads": HEADS, "attends": attends, "gate": gate, "precision": "float32",
        }
    )  # fmt: skip
    system = Flamingo.build(options, Parts(lm, {"image": ToyEncoder(dim=VISION)})).eval()
    copy_resampler(system.connector.resampler, theirs.model.perceiver_resampler)
    for layer, block in system.lm.blocks.items():
        assert isinstance(block, GatedCrossAttention)
        copy_block(block, theirs.model.gated_cross_attn_layers[layer // config.cross_layer_interval])
    return system


def logits_of_idefics(theirs: Any, system: Flamingo, inputs: LMInputs, images: list[Image]) -> Tensor:
    rows = len(inputs)
    seen = system.perceive(images).tokens  # (B * N, S, Dv)
    assert inputs.memory is not None
    logits: Tensor = theirs(
        inputs_embeds=inputs.embeds,
        attention_mask=inputs.mask.long(),
        image_encoder_embeddings=seen.unflatten(0, (rows, -1)),
        image_attention_mask=inputs.memory.mask[..., ::LATENTS].long(),
    ).logits
    return logits


@pytest.mark.parametrize(("attends", "gate", "interval"), [("latest", "scalar", 2), ("all", "vector", 1)])
@torch.no_grad()
def test_the_whole_of_it_is_idefics(attends: str, gate: str, interval: int) -> None:
    theirs = idefics(gate="vector" if gate == "vector" else "float", interval=interval)
    system = whole_model(theirs, attends, gate)
    images = [Image(picture(seed)) for seed in range(4)]
    pages = [
        Sentence.of("a cat ", images[0], "on a mat", images[1], "and a dog"),
        Sentence.of(images[2], "x", images[3], "yz"),
    ]
    inputs = system.inputs(pages)
    wanted = logits_of_idefics(theirs, system, inputs, images)[inputs.mask]
    found = system.lm(inputs).logits[..., :VOCABULARY][inputs.mask]
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert wanted.std() > 0.1
    other = system.inputs([pages[0].map(lambda part: images[3] if part is images[0] else part), pages[1]])
    assert (system.lm(other).logits[..., :VOCABULARY][inputs.mask] - wanted).abs().max() > 1e-3
    system.connector.resampler.layers[0].dense.down.weight[0, 0] += 0.5
    assert (system.lm(system.inputs(pages)).logits[..., :VOCABULARY][inputs.mask] - wanted).abs().max() > 1e-4
