"""Many sentences answered in batches: equal prompts once, alike ones together, results in the order asked.

Prompts that begin with the same words and media, as the worked examples of a few-shot prompt, are answered behind one
opening where the system can: the same answers, with less computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftlm.data.sample import Sample
from graftlm.data.sentence import Part, Sentence, State, Text
from graftlm.errors import ShapeError
from graftlm.evaluate.task import Options, Progress, Task
from graftlm.lm.decode import Decoding
from graftlm.systems.base import Opener, Responder

WORTH_OPENING = 32
"""Characters that prompts begin with from which on an opening is read for them; for less it saves nothing."""


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
    prompts of like length that begin alike. Raises: ShapeError when the responder gives another number of answers.
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
    for batch, answers in _answered(responder, prompts, order, decoding, batch_size):
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


def prompt_key(sentence: Sentence) -> tuple[Hashable, ...]:
    """Equal for sentences that say the same with the same media objects; one entry a part."""
    return tuple((type(part), part.role, part_key(part)) for part in sentence)


def shared_start(sentences: Sequence[Sentence]) -> int:
    """How many parts all of these sentences begin with: what a prefix computed once can hold."""
    first, *others = map(prompt_key, sentences)
    rows = zip(first, *others, strict=False)
    return next((place for place, row in enumerate(rows) if len(set(row)) > 1), min(map(len, (first, *others))))


def part_key(part: Part) -> Hashable:
    """Text and numbers by value; media by path or bytes, decoded pictures by identity."""
    if isinstance(part, Text):
        return part.content
    if isinstance(part, State):
        return part.values
    return part.source if isinstance(part.source, str | bytes | Path) else id(part.source)


@dataclass(frozen=True, slots=True)
class Alike:
    """Prompts, by number, that begin with the same `shared` parts."""

    prompts: tuple[int, ...]
    shared: int


def begin_alike(prompts: Sequence[Sentence], order: Sequence[int], least: int) -> list[Alike]:
    """The prompts of `order` in groups of at least `least` that begin alike, each group in their order.

    A group is divided by its next part where every group that this gives is as large again: prompts of 4 and of 8
    fixed worked examples begin with the same 4, and are better read as two groups. The last part of a prompt is
    never shared.
    """
    keys = {number: prompt_key(prompts[number]) for number in order}
    waiting = [Alike(tuple(order), 0)] if order else []
    found: list[Alike] = []
    while waiting:
        group = waiting.pop()
        by_next: dict[Hashable, list[int]] = {}
        for number in group.prompts:
            key = keys[number]
            by_next.setdefault(key[group.shared] if len(key) > group.shared + 1 else None, []).append(number)
        large = [members for part, members in by_next.items() if part is not None and len(members) >= least]
        apart = {number for members in large for number in members}
        rest = tuple(number for number in group.prompts if number not in apart)
        if not large or 0 < len(rest) < least:
            found.append(group)
            continue
        waiting += [Alike(tuple(members), group.shared + 1) for members in large]
        found += [Alike(rest, group.shared)] if rest else []
    return sorted(found, key=lambda group: order.index(group.prompts[0]))


def _answered(
    responder: Responder, prompts: Sequence[Sentence], order: Sequence[int], decoding: Decoding, batch_size: int
) -> Iterator[tuple[Sequence[int], list[Sentence]]]:
    """Batches of prompts by number, each with its answers."""
    opener = responder if isinstance(responder, Opener) else None
    least = min(batch_size, len(order))
    groups = [Alike(tuple(order), 0)] if opener is None else begin_alike(prompts, order, least)
    for group in groups:
        start = Sentence(prompts[group.prompts[0]].parts[: group.shared]) if group.shared else Sentence()
        is_worth = len(group.prompts) > 1 and len(start.text()) >= WORTH_OPENING and _is_plain(start)
        opening = opener.opening(start) if opener is not None and is_worth else None
        for place in range(0, len(group.prompts), batch_size):
            batch = group.prompts[place : place + batch_size]
            asked = [prompts[number] for number in batch]
            if opener is None or opening is None:
                answers = responder.respond(asked, decoding)
            else:
                rest = [Sentence(prompt.parts[group.shared :]) for prompt in asked]
                answers = opener.respond_after(opening, rest, decoding)
            if len(answers) != len(batch):
                raise ShapeError(f"responder: expected {len(batch)} answers, one per sentence, found {len(answers)}")
            yield batch, answers


def _is_plain(sentence: Sentence) -> bool:
    """Whether it may be cut: a chat template need not take the first turns of a dialogue for one."""
    return all(part.role is None for part in sentence)
