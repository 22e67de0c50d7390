"""`graft cache`: builds, lists and clears the features of photos that encoders have seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.errors import UsageError

if TYPE_CHECKING:
    from graftlm.data.sentence import MediaPart
    from graftlm.feature_store import CacheStats
    from graftlm.features import BuildStats

app = typer.Typer(no_args_is_help=True)


@app.callback()
def cache() -> None:
    """Builds, lists and clears the features of photos that encoders have seen."""


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="A recipe (.yaml), a data set, or a photo or folder of photos.")],
    encoder: Annotated[str, typer.Option(help="Name, hub id or path; a recipe's own without it.")] = "",
    reader: Annotated[str, typer.Option(help="Format of the data set; guessed from the path without it.")] = "",
    split: Annotated[str | None, typer.Option(help="Only this split of the data set.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of a film: how many frames are looked at.")] = 8,
    rate_hz: Annotated[float | None, typer.Option(min=0, help="Of a film: so many frames a second at most.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for photos, one for films.")] = False,
) -> None:
    """Encode every photo or film once, so that training, evaluation and serving need not; go on where it stopped."""
    import json

    from graftlm.backbones import load_encoder
    from graftlm.data.sentence import Video
    from graftlm.encoders.video import FrameEncoder
    from graftlm.features import CachedEncoder

    name, specs = _specs(source, encoder, {"reader": reader, "split": split})
    media = [part for spec in specs for part in _media(source, spec)]
    films = [part for part in media if isinstance(part, Video)]
    photos = [part for part in media if not isinstance(part, Video)]
    found = load_encoder(name)
    is_bad = False
    for own, given in ((found, photos), (FrameEncoder(found, frames, rate_hz), films)):
        if given or (own is found and not media):
            cached = CachedEncoder(own)
            stats = cached.build(given, quiet=quiet)
            for position, error in sorted(stats.bad.items()):
                typer.echo(f"{position + 1}: {error}", err=True)
            if as_json:
                typer.echo(json.dumps({"encoder": name, "folder": str(cached.store.folder), **_row(stats)}))
            is_bad = is_bad or bool(stats.bad)
    if is_bad:
        raise typer.Exit(1)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List what is cached: one line an encoder."""
    import json

    from graftlm.features import default_folder, list_caches

    found = list_caches()
    if as_json:
        rows = [_cache_row(cache) for cache in found]
        typer.echo(json.dumps({"folder": str(default_folder()), "caches": rows}))
    elif not found:
        typer.echo(f"nothing is cached in {default_folder()}")
    else:
        typer.echo(f"{default_folder()}:")
        for cache in found:
            typer.echo(_line(cache))


@app.command()
def clear(
    fingerprint: Annotated[str, typer.Argument(help="First letters of a fingerprint that `info` shows.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="The features of every encoder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Remove cached features, of one encoder or of all; they are computed again when needed."""
    import json

    from graftlm.features import clear_caches, default_folder, list_caches

    if bool(fingerprint) == everything:
        raise UsageError("expected a fingerprint (see `graft cache info`) or --all, found both or neither")
    known = [cache.fingerprint for cache in list_caches()]
    if fingerprint and not any(name.startswith(fingerprint) for name in known):
        shown = ", ".join(name[:12] for name in known) or "none"
        raise UsageError(f"no cached features of fingerprint '{fingerprint}' (there are: {shown})")
    removed = clear_caches(fingerprint=fingerprint)
    if as_json:
        typer.echo(json.dumps({"removed": [_cache_row(cache) for cache in removed]}))
    elif not removed:
        typer.echo(f"nothing is cached in {default_folder()}")
    for cache in removed if not as_json else ():
        typer.echo(f"removed {_line(cache)}")


def _specs(source: str, encoder: str, given: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The encoder's name and what to read; an empty spec stands for pictures."""
    if Path(source).suffix in (".yaml", ".yml"):
        from graftlm.train.setup import read_recipe

        recipe = read_recipe(source)
        also = [{key: value for key, value in table.items() if key != "factor"} for table in recipe.data.also]
        tables = [table for table in (recipe.data.train, *also, recipe.data.val) if table]
        own = recipe.system.options().get("encoder")
        if not encoder and own is None:
            raise UsageError(f"{source}: expected a recipe with an encoder, found one for words alone; name --encoder")
        return encoder or str(own), tables
    spec = {"path": source, **{key: value for key, value in given.items() if value}}
    return encoder or "efficientnet-lite0", [spec if "reader" in spec or _is_data(source) else {}]


def _is_data(source: str) -> bool:
    from graftlm.data.readers import detect
    from graftlm.errors import DataError

    try:
        return bool(detect(source))
    except DataError:
        return False


def _media(source: str, spec: Mapping[str, Any]) -> Iterator[MediaPart]:
    from graftlm.cli.caption import find_photos
    from graftlm.data.readers import read_all
    from graftlm.data.sentence import Image

    if not spec:
        yield from (Image(path) for path in find_photos([source]))
        return
    for sample in read_all({**spec, "per": "media"}):
        yield from sample.sentence.media()


def _row(stats: BuildStats) -> dict[str, Any]:
    return {
        "photos": stats.num_media,
        "different": stats.num_different,
        "cached": stats.num_cached,
        "computed": stats.num_computed,
        "bad": len(stats.bad),
        "seconds": round(stats.seconds, 3),
        "saved_seconds": round(stats.saved_seconds, 3),
    }


def _cache_row(cache: CacheStats) -> dict[str, Any]:
    return {
        "fingerprint": cache.fingerprint,
        "modality": cache.modality,
        "items": cache.num_items,
        "bytes": cache.num_bytes,
        "seconds_per_item": cache.seconds_per_item,
        "folder": str(cache.folder),
    }


def _line(cache: CacheStats) -> str:
    seconds = cache.seconds_per_item * cache.num_items
    saved = f"  saves {seconds:,.0f} s a pass" if seconds >= 1 else ""
    size = f"{cache.num_bytes / 1e6:,.1f} MB"
    return f"{cache.fingerprint[:12]}  {cache.modality}  {cache.num_items:,} items  {size}{saved}"
