"""FROMAGe's released names load into ours; pickles only when asked for, and then tensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from graftlm import grafts
from graftlm.cli.main import main
from graftlm.data.sentence import Image, Sentence
from graftlm.errors import CheckpointError
from graftlm.grafts.released import import_fromage, read_released
from tests.language_models import tiny_model, tiny_tokenizer
from tests.pictures import picture

WIDTH, SEEN, SHARED = 32, 16, 8


def released(num_tokens: int, *, whole_matrix: bool = False) -> dict[str, Tensor]:
    """A synthetic state dict in the official layout."""
    generator = torch.Generator().manual_seed(num_tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = {
        "model.logit_scale": torch.tensor(2.65625),
        "model.text_hidden_fcs.0.0.weight": draw(SHARED, WIDTH),
        "model.text_hidden_fcs.0.0.bias": draw(SHARED),
        "model.visual_embeddings.weight": draw(num_tokens * WIDTH, SEEN),
        "model.visual_embeddings.bias": draw(num_tokens * WIDTH),
        "model.visual_fc.weight": draw(SHARED, SEEN),
        "model.visual_fc.bias": draw(SHARED),
    }
    if whole_matrix:
        state["model.input_embeddings.weight"] = draw(12, WIDTH)
    else:
        state["ret_input_embeddings.weight"] = draw(1, WIDTH)
    return state


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tied tiny language model."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_released_weights_compute_what_their_names_say(num_tokens: int, tiny: str, tmp_path: Path) -> None:
    state = released(num_tokens)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "pretrained.pth.tar")
    loaded = read_released(tmp_path / "pretrained.pth.tar", allow_pickle=True)
    system: Any = import_fromage(loaded, lm=tiny, encoder="toy", precision="float32")
    assert system.config.num_tokens == num_tokens
    seen = system.perceive([Image(picture(0))])
    pooled = seen.pooled.float()
    visual = pooled @ state["model.visual_embeddings.weight"].T + state["model.visual_embeddings.bias"]
    torch.testing.assert_close(system.connector(seen), visual.view(1, num_tokens, WIDTH))
    found = F.normalize(pooled @ state["model.visual_fc.weight"].T + state["model.visual_fc.bias"], dim=-1)
    torch.testing.assert_close(system.embed_media([Image(picture(0))]), found, atol=1e-6, rtol=1e-5)
    batch = system.tokens([Sentence.of("a dog", Image.sought())])
    row = state["ret_input_embeddings.weight"]
    torch.testing.assert_close(system.lm.embed(batch.ids)[batch.retrieval], row)
    hidden = system.lm(system._read(batch)).hidden[batch.retrieval]
    query = hidden @ state["model.text_hidden_fcs.0.0.weight"].T + state["model.text_hidden_fcs.0.0.bias"]
    torch.testing.assert_close(
        system.embed_queries([Sentence.of("a dog")]), F.normalize(query, dim=-1), atol=1e-5, rtol=1e-4
    )
    assert system.log_scale.item() == 2.65625


def test_the_row_of_a_whole_matrix_is_its_last(tiny: str) -> None:
    state = released(1, whole_matrix=True)
    system: Any = import_fromage(
        {name.removeprefix("model."): value for name, value in state.items()},
        lm=tiny,
        encoder="toy",
        precision="float32",
    )
    assert torch.equal(system.lm.tokens.input_vectors[0], state["model.input_embeddings.weight"][-1])


def test_the_verb_writes_a_graft_that_loads(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(released(4), tmp_path / "weights.safetensors")
    parts = ("--lm", tiny, "--encoder", "toy", "--precision", "float32")
    arguments = ("import", "fromage", str(tmp_path / "weights.safetensors"), str(tmp_path / "graft"), *parts, "--json")
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["system"] == "fromage"
    system: Any = grafts.load(tmp_path / "graft")
    assert row["parameters"] == sum(parameter.numel() for _, parameter in system.trainable())
    assert system.config.compat
    assert len(system.embed_media([Image(picture(0))])) == 1


def test_a_pickle_is_refused_unless_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pretrained.pth.tar"
    torch.save(released(1), path)
    assert main(["import", "fromage", str(path), str(tmp_path / "graft")]) == 1
    assert "--pickle" in capsys.readouterr().err
    assert not (tmp_path / "graft").exists()


def test_what_runs_code_or_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("ran",)

    torch.save({"state_dict": {"model.logit_scale": Evil()}}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("evil.pth", "list.pth", "text.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_released(tmp_path / name, allow_pickle=True)


@pytest.mark.parametrize(
    ("gone", "said"),
    [("visual_fc.weight", "visual_fc.weight"), ("text_hidden_fcs.0.0.weight", "text_hidden_fcs"), ("ret", "ret_input")],
)
def test_a_missing_tensor_is_named(tiny: str, gone: str, said: str) -> None:
    state = {name.removeprefix("model."): value for name, value in released(1).items()}
    kept = {name: value for name, value in state.items() if not name.startswith(gone.partition(".0.0")[0])}
    with pytest.raises(CheckpointError, match=said):
        import_fromage(kept, lm=tiny, encoder="toy", precision="float32")


def test_weights_for_another_width_are_refused(tiny: str) -> None:
    state = {name.removeprefix("model."): value for name, value in released(1).items()}
    state["visual_fc.weight"] = torch.zeros(SHARED, SEEN + 1)
    with pytest.raises(CheckpointError, match=r"image_head\.project\.weight"):
        import_fromage(state, lm=tiny, encoder="toy", precision="float32")
