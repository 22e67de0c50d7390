"""`graft ask`: answers a question about a photo."""

from __future__ import annotations

from typing import Annotated

import typer


def ask(
    photo: Annotated[str, typer.Argument(help="A photo.")],
    question: Annotated[str, typer.Argument(help="A question about it, in quotes.")],
    graft: Annotated[str, typer.Option(help="Ready-made name, folder, run or hub id.")] = "clipcap-smollm2",
    beam: Annotated[int, typer.Option(min=1, max=64, help="Beams; 1 is greedy and quickest.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answers a question about a photo. A graft trained on captions alone answers poorly: train one on questions."""
    import json

    import graftlm
    from graftlm.data.media import load_image
    from graftlm.errors import UsageError

    if not question.strip():
        raise UsageError("expected a question, found an empty one; for example: graft ask photo.jpg 'What is this?'")
    load_image(photo)
    answer = graftlm.ask(photo, question, graft, beams=beam)
    if as_json:
        row = {"graft": graft, "path": photo, "question": question, "answer": answer}
        typer.echo(json.dumps(row, ensure_ascii=False))
    else:
        typer.echo(answer)
