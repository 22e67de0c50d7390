"""What `graft demo` does, step by step.

Photos are captioned with the ready-made graft; then a new graft is trained on generated scenes (`data/scenes.py`),
and held-out scenes are answered by it before training, after it, and blind (every picture black).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm import NO_REPEAT_NGRAM, READY_MADE
from graftlm.config import Recipe
from graftlm.data.sample import Sample
from graftlm.data.scenes import Scenes
from graftlm.data.sentence import Image, Sentence, Text
from graftlm.errors import GraftError, UsageError
from graftlm.evaluate.answers import answer_all
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder
from graftlm.train.guard import FrozenGuard
from graftlm.train.log import Bar, read_metrics
from graftlm.train.progress import TrainResult
from graftlm.train.setup import Run, prepare, read_recipe
from graftlm.train.source import blind
from graftlm.train.trainer import Trainer

RECIPE = "recipes/demo_scenes.yaml"
PHOTOS = "examples/photos"
_BATCH = 50
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Options:
    """What a demonstration is asked for.

    Attributes:
        minutes: bound of the training alone; None: as the recipe says
        seed: of the scenes, the weights and the order
        held_out: scenes that are answered
        recipe: another recipe over the `scenes` reader; None: the demonstration's own
        overrides: `table.key=value`, as for `graft train`
        folder: where runs go, each in a folder of its own; quiet: no bars
    """

    minutes: float | None = None
    seed: int = 0
    held_out: int = 200
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    folder: Path = Path("runs/demo")
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Photo:
    """A captioned photo."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out scene and what was said about it."""

    sample: Sample
    before: str
    after: str
    blind: str

    @property
    def reference(self) -> str:
        """The right answer."""
        return self.sample.references[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a demonstration found.

    Attributes:
        photos, note: captions of the photos, or why there are none
        metrics: rows of the run's metrics.jsonl; frozen: digest of all frozen bytes before and after
        seconds: wall time by step
    """

    photos: list[Photo]
    note: str
    answered: list[Answered]
    metrics: list[dict[str, Any]]
    training: TrainResult
    recipe: Recipe
    frozen: tuple[str, str]
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def frozen_unchanged(self) -> bool:
        """Whether every frozen byte is what it was."""
        return self.frozen[0] == self.frozen[1]

    def accuracy(self) -> dict[str, float]:
        """Percent of held-out scenes answered exactly right: before, after, blind."""
        hits = {
            "before": [row.before == row.reference for row in self.answered],
            "after": [row.after == row.reference for row in self.answered],
            "blind": [row.blind == row.reference for row in self.answered],
        }
        return {name: round(100 * sum(right) / max(len(right), 1), 1) for name, right in hits.items()}

    def to_json(self) -> dict[str, Any]:
        """What `graft demo --json` prints, without the report's path."""
        return {
            "scenes": self.accuracy(),
            "n": len(self.answered),
            "seed": self.seed,
            "frozen_unchanged": self.frozen_unchanged,
            "frozen_fingerprint": self.frozen[1],
            "trainable_parameters": self.training.trainable_parameters,
            "steps": self.training.steps,
            "photos": [{"path": str(photo.path), "caption": photo.caption} for photo in self.photos],
            "note": self.note,
            "graft": str(self.training.graft),
            "seconds": round(sum(self.seconds.values()), 1),
            "phases": {name: round(value, 1) for name, value in self.seconds.items()},
        }


class Stopwatch:
    """Wall time by named step; a name given again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends the step that ran until now."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def run(options: Options, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """The whole demonstration; `say` is told what happens next.

    Raises: what loading the frozen parts and training raise. A missing ready-made graft is only noted.
    """
    watch = Stopwatch()
    recipe = demo_recipe(options)
    say(f"1. Photos of {PHOTOS}, captioned with the ready-made graft {READY_MADE}")
    photos, note = caption_photos(READY_MADE, photo_paths())
    for line in [f"   {photo.path.name:<18} {photo.caption}" for photo in photos] or [f"   {note}"]:
        say(line)
    watch.lap("photos")
    say("2. A new graft, trained from nothing on generated scenes; language model and encoder stay frozen")
    folder = options.folder / time.strftime("%Y%m%d-%H%M%S")
    with prepare(recipe, folder, resume=False, quiet=options.quiet) as prepared:
        watch.lap("models and features")
        return _train_and_ask(prepared, options, (photos, note), watch, say)


def _train_and_ask(
    prepared: Run, options: Options, photos: tuple[list[Photo], str], watch: Stopwatch, say: Callable[[str], None]
) -> Outcome:
    system = prepared.system.eval()
    families = prepared.recipe.data.train.get("families", ("position",))
    samples = list(Scenes("test", options.held_out, seed=options.seed, families=families))
    sentences = [sample.sentence.prompt() for sample in samples]
    frozen_before = FrozenGuard.of(system).fingerprint
    before = answer(system, sentences, "before", quiet=options.quiet)
    watch.lap("answers")
    trainer = Trainer(
        system,
        prepared.recipe,
        prepared.folder,
        prepared.source,
        prepared.validation,
        quiet=options.quiet,
    )
    training = trainer.run()
    watch.lap("training")
    say(f"3. {len(samples)} held-out scenes, answered by the trained graft, and by the same graft with black pictures")
    after = answer(system, sentences, "after", quiet=options.quiet)
    unseen = answer(system, [blind(sentence) for sentence in sentences], "blind", quiet=options.quiet)
    frozen_after = FrozenGuard.of(system).fingerprint
    watch.lap("answers")
    return Outcome(
        *photos,
        answered=[Answered(*row) for row in zip(samples, before, after, unseen, strict=True)],
        metrics=read_metrics(prepared.folder / "metrics.jsonl"),
        training=training,
        recipe=prepared.recipe,
        frozen=(frozen_before, frozen_after),
        seed=options.seed,
        seconds=watch.seconds,
    )


def demo_recipe(options: Options) -> Recipe:
    """The recipe with the options in it. Raises: UsageError where GraftLM came without it; ConfigError."""
    path = options.recipe or shipped(RECIPE)
    if path is None:
        raise UsageError(f"graft demo: expected {RECIPE}, found none; run it in a clone of GraftLM, or give --recipe")
    overrides = [f"train.seed={options.seed}", f"data.train.seed={options.seed}", f"data.val.seed={options.seed}"]
    if options.minutes is not None:
        overrides.append(f"train.max_minutes={options.minutes}")
    return read_recipe(path, [*overrides, *options.overrides])


def shipped(name: str) -> Path | None:
    """A file or folder that comes with GraftLM: in the wheel beside this file, in a clone under its root."""
    places = (_PACKAGE / Path(name).name, _PACKAGE.parents[2] / name)
    return next((place for place in places if place.exists()), None)


def photo_paths() -> list[Path]:
    """The sample photos, by name."""
    folder = shipped(PHOTOS)
    return sorted(folder.glob("*.jpg")) if folder else []


def caption_photos(graft: str, paths: Sequence[Path]) -> tuple[list[Photo], str]:
    """Captions of photos, or none and the sentence that says why."""
    from graftlm.grafts import load, ready_made

    if not paths:
        return [], f"Skipped: there are no sample photos here ({PHOTOS} is part of a clone of GraftLM)."
    if graft not in ready_made():
        return [], f"Skipped: the ready-made graft {graft} is not part of this installation."
    try:
        system = load(graft)
    except GraftError as error:
        return [], f"Skipped: {error}"
    sentences = [Sentence.of(Image(path), Text("", target=True)) for path in paths]
    decoding = Decoding(num_beams=3, max_tokens=32, no_repeat_ngram=NO_REPEAT_NGRAM)
    answers = system.respond(sentences, decoding)
    return [Photo(path, found.text().strip()) for path, found in zip(paths, answers, strict=True)], ""


def answer(system: Responder, sentences: Sequence[Sentence], title: str, *, quiet: bool) -> list[str]:
    """Greedy answers, in batches, with a bar on stderr."""
    decoding = Decoding(max_tokens=16, stop=("\n",))
    with Bar(f"answers {title}", len(sentences), quiet=quiet) as bar:
        return answer_all(
            system,
            sentences,
            decoding,
            batch_size=_BATCH,
            stage=title,
            progress=lambda stage, done, total: bar.move(done),
        )
