"""Many sentences answered in batches: equal prompts once, alike ones together, results in the order asked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from graftlm.data.sample import Sample
from graftlm.data.sentence import Part, Sentence, State, Text
from graftlm.errors import ShapeError
from graftlm.evaluate.task import Options, Progress, Task
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Responder


def answer_all(
    responder: Responder,
    sentences: Sequence[Sentence],
    decoding: Decoding,
    *,
    batch_size: int,
    stage: str,
    progress: Progress,
) -> list[str]:
    """The words of each answer, stripped.

    A prompt that stands several times is answered once, unless answers are sampled (temperature > 0). Batches hold
    prompts of like length. Raises: ShapeError when the responder gives another number of answers.
    """
    prompts = [sentence.prompt() for sentence in sentences]
    keys = [prompt_key(prompt) if decoding.temperature <= 0 else number for number, prompt in enumerate(prompts)]
    first: dict[Hashable, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    repeats = dict.fromkeys(first, 0)
    for key in keys:
        repeats[key] += 1
    order = sorted(first.values(), key=lambda number: (len(prompts[number].text()), number))
    found: dict[Hashable, str] = {}
    done = 0
    progress(stage, done, len(sentences))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers = responder.respond([prompts[number] for number in batch], decoding)
        if len(answers) != len(batch):
            raise ShapeError(f"responder: expected {len(batch)} answers, one per sentence, found {len(answers)}")
        found.update((keys[number], answer.text().strip()) for number, answer in zip(batch, answers, strict=True))
        done += sum(repeats[keys[number]] for number in batch)
        progress(stage, done, len(sentences))
    return [found[key] for key in keys]


def answer_samples(
    task: Task, responder: Responder, samples: Sequence[Sample], options: Options, progress: Progress
) -> list[str]:
    """The words of each answer to a task's samples, with its own search where the options name none."""
    return answer_all(
        responder,
        [sample.sentence for sample in samples],
        options.decoding or task.decoding(options.beam),
        batch_size=options.batch_size,
        stage="answers",
        progress=progress,
    )


def prompt_key(sentence: Sentence) -> Hashable:
    """Equal for sentences that say the same with the same media objects."""
    return tuple((type(part), part.role, part_key(part)) for part in sentence)


def shared_start(sentences: Sequence[Sentence]) -> int:
    """How many parts all of these sentences begin with: what a prefix computed once can hold."""
    first, *others = ([(type(part), part.role, part_key(part)) for part in sentence] for sentence in sentences)
    rows = zip(first, *others, strict=False)
    return next((place for place, row in enumerate(rows) if len(set(row)) > 1), min(map(len, (first, *others))))


def part_key(part: Part) -> Hashable:
    """Text and numbers by value; media by path or bytes, decoded pictures by identity."""
    if isinstance(part, Text):
        return part.content
    if isinstance(part, State):
        return part.values
    return part.source if isinstance(part.source, str | bytes | Path) else id(part.source)
