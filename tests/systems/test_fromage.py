"""FROMAGe: what it answers and finds, every difference of the released code by name, and two processes as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import backbones
from graftlm.data.gallery import MemoryGallery
from graftlm.data.media import content_hash
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import ConfigError
from graftlm.lm.decode import Decoding
from graftlm.lm.pictures import Pictures
from graftlm.losses import MAX_LOG_SCALE
from graftlm.systems.base import Retriever
from graftlm.systems.fromage import FROMAGe, FROMAGeConfig
from tests.pictures import picture

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("a red dog", "two blue cats", "the green sea", "one old hat")
SHORT = Decoding(max_tokens=6)
ALWAYS = 1e4


def build(**fields: Any) -> FROMAGe:
    torch.manual_seed(0)
    toys = {"lm": "toy", "encoder": "toy", "precision": "float32", "shared_dim": 16, "num_tokens": 2}
    config = FROMAGeConfig.model_validate({**toys, **fields})
    return FROMAGe.build(config, backbones.load_parts(config))


def sentences() -> list[Sentence]:
    return [Sentence.of(Image(picture(seed)), Text(text, target=True)) for seed, text in enumerate(WORDS)]


def train(system: FROMAGe, steps: int = 40) -> FROMAGe:
    system.train()
    optimiser = torch.optim.Adam([parameter for _, parameter in system.trainable()], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.stack(list(system.losses(sentences()).values())).sum().backward()
        optimiser.step()
        system.after_step()
    return system.eval()


@pytest.fixture(scope="module")
def trained() -> FROMAGe:
    return train(build(concat_probability=0))


@pytest.fixture
def gallery(trained: FROMAGe) -> MemoryGallery:
    images = [Image(picture(seed)) for seed in range(len(WORDS))]
    return MemoryGallery(images, trained.embed_media(images).numpy())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mapper": "grid", "num_tokens": 5, "rank": 8},
        {"mapper": "prefix", "num_tokens": 5, "rank": 8, "concat_probability": 0},
        {"head_hidden": 12, "text_layers": (1, -1), "word_layers": (1,), "ret_tokens": 3},
    ],
)
def test_every_choice_learns_to_find_and_to_describe(fields: dict[str, Any]) -> None:
    system = build(**fields)
    system.eval()
    before = {name: loss.item() for name, loss in system.losses(sentences()).items()}
    after = {name: loss.item() for name, loss in train(system).losses(sentences()).items()}
    assert list(after) == ["caption", "text", "text_to_image", "image_to_text"]
    assert after["text_to_image"] < 0.3 * before["text_to_image"]
    assert after["image_to_text"] < 0.3 * before["image_to_text"]
    assert after["caption"] < before["caption"]
    assert after["text"] < before["text"]
    shown, plain = system.embed_queries([Sentence.of(Image(picture(1)), "a dog"), Sentence.of("a dog")])
    assert (shown - plain).norm() > 1e-3


def test_words_find_their_pictures_and_a_query_may_leave_out_what_is_sought(trained: FROMAGe) -> None:
    assert isinstance(trained, Retriever)
    vectors = trained.embed_queries([Sentence.of(words) for words in WORDS])
    seen = trained.embed_media([Image(picture(seed)) for seed in range(4)])
    assert vectors.dtype == seen.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert (vectors @ seen.T).argmax(dim=1).tolist() == [0, 1, 2, 3]
    closed = trained.embed_queries([Sentence.of(f"{words} ", Image.sought()) for words in WORDS])
    torch.testing.assert_close(closed, vectors)
    assert trained.embed_queries([]).shape == (0, 16)
    assert trained.embed_media([]).shape == (0, 16)


def test_a_query_does_not_depend_on_its_batch_and_marker_text_is_text(trained: FROMAGe) -> None:
    queries = [Sentence.of(words) for words in (*WORDS, "a dog [RET]", "a dog")]
    together = trained.embed_queries(queries)
    alone = torch.cat([trained.embed_queries([query]) for query in queries])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (together[4] - together[5]).norm() > 1e-3


def test_a_query_with_a_picture_reads_the_closing_token_not_one_before_it(trained: FROMAGe) -> None:
    """The released code counts text positions alone and reads too early by the number of visual tokens."""
    shown = Image(picture(1))
    one, other = trained.embed_queries([Sentence.of(shown, "seen at sea"), Sentence.of(shown, "seen at Sea")])
    assert (one - other).norm() > 1e-3  # the last words count
    batch = trained.tokens([Sentence.of(shown, Text("at sea"), Image.sought())])
    assert batch.retrieval.nonzero().tolist() == [[0, batch.mask.shape[1] - 1]]
    without = trained.embed_queries([Sentence.of("seen at sea")])[0]
    assert (one - without).norm() > 1e-3


def test_the_fingerprint_is_that_of_the_picture_side_alone(trained: FROMAGe) -> None:
    before = trained.retrieval_fingerprint()
    with torch.no_grad():
        trained.text_head.project.bias.add_(0.1)
        assert trained.retrieval_fingerprint() == before
        trained.text_head.project.bias.sub_(0.1)
        trained.image_head.project.bias[0] += 0.1
        assert trained.retrieval_fingerprint() != before
        trained.image_head.project.bias[0] -= 0.1


def test_without_a_gallery_it_writes_and_never_asks_for_a_picture(trained: FROMAGe) -> None:
    with torch.no_grad():
        trained.lm.tokens.output_vectors[0].mul_(50)  # type: ignore[index]
    try:
        answers = trained.respond(sentences(), SHORT)
    finally:
        trained.after_step()
    assert all(isinstance(part, Text) for answer in answers for part in answer)


def test_an_answer_holds_the_picture_that_its_words_ask_for(trained: FROMAGe, gallery: MemoryGallery) -> None:
    prompts = [Sentence.of(words) for words in WORDS]
    answers = trained.respond(prompts, SHORT, gallery=gallery, pictures=Pictures(bias=ALWAYS))
    assert [content_hash(answer.parts[-1]) for answer in answers] == list(gallery.keys)
    assert all(part.role == "assistant" for answer in answers for part in answer)
    again = [trained.respond([one], SHORT, gallery=gallery, pictures=Pictures(bias=ALWAYS))[0] for one in prompts]
    assert again == answers


def test_several_pictures_differ_and_none_of_the_dialogue_comes_again(trained: FROMAGe, gallery: MemoryGallery) -> None:
    settings = Pictures(bias=ALWAYS, most=3)
    (answer,) = trained.respond([Sentence.of(Image(picture(0)), WORDS[0])], SHORT, gallery=gallery, pictures=settings)
    keys = [content_hash(part) for part in answer if isinstance(part, Image)]
    assert len(keys) == 3
    assert set(keys) == set(gallery.keys) - {content_hash(Image(picture(0)))}
    settings = Pictures(bias=ALWAYS, most=9, per_token=2)
    (all_of_them,) = trained.respond([Sentence.of(WORDS[0])], SHORT, gallery=gallery, pictures=settings)
    assert [content_hash(part) for part in all_of_them][:1] == [gallery.keys[0]]
    assert len(all_of_them.media()) == 4


@pytest.mark.parametrize("settings", [Pictures(bias=ALWAYS, threshold=1.1), Pictures(bias=-ALWAYS), Pictures(most=0)])
def test_it_abstains_below_the_threshold_under_a_negative_bias_and_where_none_is_allowed(
    settings: Pictures, trained: FROMAGe, gallery: MemoryGallery
) -> None:
    answers = trained.respond([Sentence.of(words) for words in WORDS], SHORT, gallery=gallery, pictures=settings)
    assert all(isinstance(part, Text) for answer in answers for part in answer)


def test_the_factor_of_the_released_code_and_its_absolute_value(trained: FROMAGe, gallery: MemoryGallery) -> None:
    prompt = [Sentence.of("zzz")]
    inputs = trained.inputs(prompt)
    logit = trained.lm(inputs).logits[0, int(inputs.mask.sum()) - 1, -1]
    sign = 1 if logit > 0 else -1
    with torch.no_grad():
        trained.lm.tokens.output_vectors[0].mul_(-sign)  # type: ignore[index]
    try:
        plain = trained.respond(prompt, Decoding(max_tokens=1), gallery=gallery, pictures=Pictures(factor=1e4))
        settings = Pictures(factor=1e4, compat=True)
        absolute = trained.respond(prompt, Decoding(max_tokens=1), gallery=gallery, pictures=settings)
    finally:
        with torch.no_grad():
            trained.lm.tokens.output_vectors[0].mul_(-sign)  # type: ignore[index]
    assert not plain[0].media()
    assert len(absolute[0].media()) == 1


def test_a_picture_is_shown_where_it_is_likelier_than_words_and_otherwise_only_if_drawn_or_asked_for_as_in_the_paper(
    trained: FROMAGe, gallery: MemoryGallery
) -> None:
    prompt = [Sentence.of("zzz")]
    inputs = trained.inputs(prompt)
    logits = trained.lm(inputs).logits[0, int(inputs.mask.sum()) - 1].detach().float()
    words = logits[: trained.lm.base.vocab_size]
    bias = float(words.max() - logits[-1]) + 0.01  # a little above the best word, far below all together
    assert float(words.logsumexp(0) - words.max()) > 0.02

    def shown(pictures: Pictures, how: Decoding = SHORT) -> int:
        return len(trained.respond(prompt, how, gallery=gallery, pictures=pictures)[0].media())

    first = replace(SHORT, max_tokens=1)
    assert shown(Pictures(bias=bias), first) == 0
    assert shown(Pictures(bias=bias, outright=False), first) == 1
    assert shown(Pictures(bias=float(words.logsumexp(0) - logits[-1]) + 0.01), first) == 1
    drawn = [shown(Pictures(bias=bias), replace(first, temperature=1.0, seed=seed)) for seed in range(60)]
    assert 0 < sum(drawn) < 60


def test_a_shown_picture_is_seen_in_later_turns_unless_it_is_not_fed_back(
    trained: FROMAGe, gallery: MemoryGallery
) -> None:
    asked: list[int] = []
    inputs = trained.inputs

    def count(given: Any) -> Any:
        asked.append(sum(len(sentence.media()) for sentence in given))
        return inputs(given)

    dialogue = Sentence.of(
        Text("a dog?", role="user"), Image(picture(1), role="assistant"), Text("and a cat?", role="user")
    )
    trained.inputs = count  # type: ignore[method-assign]
    try:
        for feed_back in (True, False):
            settings = Pictures(bias=ALWAYS, most=2, feed_back=feed_back)
            (answer,) = trained.respond([dialogue], SHORT, gallery=gallery, pictures=settings)
            assert content_hash(Image(picture(1))) not in [content_hash(part) for part in answer]
    finally:
        del trained.inputs
    assert asked == [1, 2, 0, 0]


def test_concatenation_joins_neighbours_in_training_alone() -> None:
    system = build(concat_probability=1)
    assert [len(one) for one in system.train()._part(sentences()[:3])] == [4, 2]
    assert [len(one) for one in system.eval()._part(sentences()[:3])] == [2, 2, 2]
    system = build(concat_probability=0, caption_fraction=0.5)
    assert system.train()._part(sentences()) == sentences()[::2]


def labels_of(system: FROMAGe, batch: list[Sentence]) -> list[list[int]]:
    labels = system.inputs(batch).labels
    assert labels is not None
    return [[int(label) for label in row if label != -100] for row in labels]


def test_compat_bos_label_trains_bos_behind_the_picture() -> None:
    first = sentences()[:1]
    assert labels_of(build(), first) == [[*b"a red dog", 257]]
    assert labels_of(build(compat=("bos_label",)), first) == [[256, *b"a red dog", 257]]


def test_compat_no_eos_leaves_the_end_of_a_caption_untrained() -> None:
    assert labels_of(build(compat=("no_eos",)), sentences()[:1]) == [[*b"a red dog"]]


def test_compat_second_bos_gives_each_of_two_joined_captions_one() -> None:
    seen: list[int] = []
    for compat in ((), ("second_bos",)):
        system = build(compat=compat)
        tokens = system.tokens

        def count(*given: Any, tokens: Any = tokens) -> Any:
            batch = tokens(*given)
            seen.append(int((batch.ids == 256).sum()))
            return batch

        system.tokens = count  # type: ignore[method-assign]
        system._caption([sentences()[0] + sentences()[1]])
    assert seen == [1, 2]


def test_compat_bos_each_text_gives_every_text_of_a_query_one() -> None:
    story = Sentence.of("one", Image(picture(0)), "two", Image.sought())
    assert int((build().tokens([story]).ids == 256).sum()) == 1
    batch = build(compat=("bos_each_text",)).tokens([story])
    assert batch.ids[0].tolist() == [256, *b"one", 258, 258, 256, *b"two", 259]


def test_compat_halved_halves_both_contrastive_losses() -> None:
    whole, half = (build(compat=compat).eval().losses(sentences()) for compat in ((), ("halved",)))
    for name in ("text_to_image", "image_to_text"):
        torch.testing.assert_close(half[name], whole[name] / 2)
    torch.testing.assert_close(half["text"], whole["text"])


def test_compat_repeated_photos_makes_captions_of_one_photo_negatives() -> None:
    batch = [*sentences()[:2], Sentence.of(Image(picture(0)), Text("a dog in red", target=True))]
    ours, theirs = (
        build(compat=compat).eval().losses(batch)["text_to_image"].item() for compat in ((), ("repeated_photos",))
    )
    assert theirs > ours + 0.05


def test_the_blind_control_counts_every_row_as_a_negative() -> None:
    black = [Sentence.of(Image(picture(0)), *sentence.parts[1:]) for sentence in sentences()]
    losses = build().eval().losses(black)
    assert losses["image_to_text"].item() > 1.0


def test_a_step_keeps_the_norm_of_ret_and_the_temperature_in_bounds() -> None:
    system = build()
    with torch.no_grad():
        system.log_scale.fill_(9.0)
        system.lm.tokens.input_vectors[0].mul_(4)
    system.after_step()
    assert system.log_scale.item() == pytest.approx(MAX_LOG_SCALE)
    assert system.lm.tokens.input_vectors[0].norm().item() == pytest.approx(system.lm.tokens.input_norm, rel=1e-5)


def test_a_dialogue_that_shows_a_picture_teaches_the_query_and_the_words() -> None:
    system = build()
    dialogue = Sentence.of(
        Text("a dog, please", role="user"), Text("Here:", target=True), Image(picture(0), target=True)
    )
    alone = Sentence.of(Text("hello", role="user"), Text("hi", target=True))
    losses = system.losses([dialogue, alone, *sentences()])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert labels_of(system, [dialogue]) == [[*b"Here:", 259]]
    only_words = system.losses([alone])
    assert only_words["text_to_image"].item() == 0.0
    assert only_words["caption"].item() > 0.0


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="2, 5, 10"):
        build(mapper="grid", num_tokens=4)
    with pytest.raises(ConfigError, match="concat_probability"):
        build(mapper="prefix", num_tokens=5)
    with pytest.raises(ConfigError, match="per_token"):
        Pictures(per_token=0)


TWO = """
import os, sys, torch
torch.set_num_threads(1)
from torch import distributed
sys.path.insert(0, {root!r})
from tests.systems.test_fromage import contrastive_gradients
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[1]), world_size=2)
found = contrastive_gradients(sys.argv[3], rank=int(sys.argv[1]), world=2)
for name in sorted(found):
    distributed.all_reduce(found[name])
    found[name] /= 2
if sys.argv[1] == "0":
    torch.save(found, sys.argv[4])
distributed.destroy_process_group()
"""


def contrastive_gradients(compat: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Gradients of both contrastive losses of one process's part of a batch with a photo that comes twice."""
    system = build(concat_probability=0, compat=(compat,) if compat else ()).train()
    batch = [*sentences()[:3], Sentence.of(Image(picture(0)), Text("a dog in red", target=True))]
    losses = system.losses(batch[rank::world])
    (losses["text_to_image"] + losses["image_to_text"]).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad for name, value in system.trainable() if value.grad is not None and value.grad.any()}


def in_two_processes(compat: str, folder: Path) -> dict[str, torch.Tensor]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    script = TWO.format(root=str(ROOT))
    name = compat or "exact"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder / f"{name}.meet"), compat, str(folder / f"{name}.pt")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors[-2000:]
    found: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt", weights_only=True)
    return found


def test_two_processes_have_the_gradient_of_one_and_the_released_code_half_of_it(tmp_path: Path) -> None:
    one = contrastive_gradients("", rank=0, world=1)
    two = in_two_processes("", tmp_path)
    assert set(two) == set(one)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    half = in_two_processes("local_gradient", tmp_path)
    torch.testing.assert_close(half["log_scale"], one["log_scale"], atol=1e-6, rtol=1e-4)
    for name in set(one) - {"log_scale"}:
        torch.testing.assert_close(half[name], one[name] / 2, atol=1e-6, rtol=1e-4, msg=name)


def test_a_run_that_was_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    from graftlm.train.setup import complete_recipe
    from graftlm.train.trainer import train as run

    tree: dict[str, dict[str, Any]] = {
        "system": {"name": "fromage", "lm": "toy", "encoder": "toy", "precision": "float32", "num_tokens": 2},
        "data": {"train": {"reader": "scenes", "split": "train", "limit": 40}},
        "train": {"lr": 1e-2, "batch_size": 4, "max_steps": 6, "save_every": 3},
        "run": {"threads": 1, "keep_last": 9},
    }
    whole = run(complete_recipe(tree), run_folder=tmp_path / "whole", quiet=True)
    import shutil

    (tmp_path / "part" / "checkpoints").mkdir(parents=True)
    first = next((tmp_path / "whole" / "checkpoints").glob("step_*3"))
    shutil.copytree(first, tmp_path / "part" / "checkpoints" / first.name)
    shutil.copy(tmp_path / "whole" / "recipe.yaml", tmp_path / "part" / "recipe.yaml")
    part = run(complete_recipe(tree), run_folder=tmp_path / "part", resume=True, quiet=True)
    same = [(result.graft / "graft.safetensors").read_bytes() for result in (whole, part)]
    assert same[0] == same[1]


def test_an_answer_with_pictures_survives_a_json_round_trip(
    trained: FROMAGe, gallery: MemoryGallery, tmp_path: Path
) -> None:
    path = tmp_path / "p.png"
    picture(0).save(path)
    found = replace(gallery.images[0], source=str(path))
    own = MemoryGallery([found], gallery.vectors[:1])
    (answer,) = trained.respond([Sentence.of("a")], SHORT, gallery=own, pictures=Pictures(bias=ALWAYS))
    assert Sentence.from_json(json.loads(json.dumps(answer.to_json()))) == answer
