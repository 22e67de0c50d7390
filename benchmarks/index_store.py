"""The image index against one numpy product over the same vectors: latency, memory, recall, adding, kills.

    python benchmarks/index_store.py [--json] [--rows 1000000] [--kills 20] [--queries 60] [--table]

Data: unit vectors of 256 dims in 2,000 clusters, rounded to float16, so that every way searches the same numbers; a
query is drawn from the same clusters. `theirs` is `matrix @ query` in float32 with `argpartition` for the best ten;
`ours` is `ImageIndex.search`, photos looked up, at exact search. The two run in turn, so that a busy machine disturbs
both; a figure is the median, `best_ms` the quickest query. Memory is what the process holds more (RSS, mapped pages
too) after its queries than before it opened the vectors, each way in a process of its own. `--table` adds other
kinds of index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np

from graftlm.index import ImageIndex
from graftlm.index.catalogue import Identity
from graftlm.index.exact import num_threads
from graftlm.index.writer import IndexWriter, Photo

WIDTH, COUNT, CLUSTERS = 256, 10, 2_000
BLOCK = 50_000
TURN, PAUSE_S, WARMING = 10, 0.2, 200
IDENTITY = Identity("benchmark", "0" * 64, "0" * 64, WIDTH)
KILL_ROWS, KILL_BATCH = 20_000, 32
Search = Callable[[np.ndarray], "list[int]"]


def vectors(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Blocks of unit vectors in clusters, each about 45 degrees from its centre, float16."""
    centres = np.random.default_rng(99).standard_normal((CLUSTERS, WIDTH)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for start in range(0, rows, BLOCK):
        draw = np.random.default_rng([seed, start])
        count = min(BLOCK, rows - start)
        block = centres[draw.integers(0, CLUSTERS, count)]
        block = block + draw.standard_normal((count, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        yield (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)


def content(row: int) -> bytes:
    """A stand-in for a content hash."""
    return hashlib.sha256(row.to_bytes(8, "little")).digest()


def photo(row: int) -> Photo:
    """A photo that exists nowhere."""
    return Photo(f"/photos/{row // 1000:05d}/IMG_{row:08d}.jpg", 100_000, row, content(row), float(row))


def row_of(hit: Any) -> int:
    """The row that a hit stands for."""
    return int(hit.image.source[-12:-4])


def build(folder: Path, rows: int) -> dict[str, float]:
    """An index of that many photos; seconds by step."""
    started = time.perf_counter()
    at = 0
    with IndexWriter(folder, IDENTITY) as writer:
        for block in vectors(rows):
            photos = [photo(row) for row in range(at, at + len(block))]
            writer.add(photos, {each.key: vector for each, vector in zip(photos, block, strict=True) if each.key})
            at += len(block)
        filled = time.perf_counter()
        writer.build_approximate(always=True)
    return {"add_all_s": round(filled - started, 2), "build_approximate_s": round(time.perf_counter() - filled, 2)}


def change(folder: Path, rows: int) -> dict[str, float]:
    """Seconds to add 1,000 photos' vectors and to delete 1,000 photos, opening and committing included."""
    new = next(vectors(1_000, seed=7))
    photos = [photo(rows + place) for place in range(1_000)]
    started = time.perf_counter()
    with IndexWriter(folder, IDENTITY) as writer:
        writer.add(photos, {each.key: vector for each, vector in zip(photos, new, strict=True) if each.key})
        writer.tidy()
    added = time.perf_counter()
    with IndexWriter(folder, IDENTITY) as writer:
        writer.remove([each.path for each in photos])
        writer.tidy()
    return {"add_1000_s": round(added - started, 3), "delete_1000_s": round(time.perf_counter() - added, 3)}


def matrix_file(folder: Path, rows: int) -> Path:
    """The same vectors as float32, for numpy."""
    path = folder / "matrix.npy"
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
    for number, block in enumerate(vectors(rows)):
        matrix[number * BLOCK : number * BLOCK + len(block)] = block
    matrix.flush()
    return path


def numpy_search(path: Path) -> Search:
    """One product and its best ten, over a matrix in memory."""
    matrix = np.load(path)

    def search(query: np.ndarray) -> list[int]:
        scores = matrix @ query
        best = np.argpartition(scores, len(scores) - COUNT)[len(scores) - COUNT :]
        return [int(row) for row in best[np.argsort(-scores[best])]]

    return search


def index_search(folder: Path, exactly: bool) -> Search:
    """Our index, through the call that `graft find` makes."""
    index = ImageIndex(folder)
    return lambda query: [row_of(hit) for hit in index.search(query[None], COUNT, exactly=exactly)[0]]


def faiss_search(path: Path, factory: str, probes: int = 0) -> Search:
    """Another kind of index of faiss, in memory."""
    import faiss

    matrix = np.load(path, mmap_mode="r")
    index = faiss.index_factory(WIDTH, factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        chosen = np.random.default_rng(0).choice(len(matrix), min(len(matrix), 65_536), replace=False)
        index.train(np.array(matrix[np.sort(chosen)]))
    for start in range(0, len(matrix), BLOCK):
        index.add(np.array(matrix[start : start + BLOCK]))
    if probes:
        index.nprobe = probes
    return lambda query: [int(row) for row in index.search(query[None], COUNT)[1][0]]


def opened(way: str, place: Path) -> Search:
    """A way of searching by name."""
    if way == "numpy":
        return numpy_search(place / "matrix.npy")
    if way in ("exact", "approximate"):
        return index_search(place / "index", way == "exact")
    factory, _, probes = way.partition(":")
    return faiss_search(place / "matrix.npy", factory, int(probes or 0))


def timed(search: Search, query: np.ndarray) -> tuple[float, list[int]]:
    """Milliseconds and rows of one query."""
    start = time.perf_counter()
    rows = search(query)
    return 1e3 * (time.perf_counter() - start), rows


def latencies(
    searches: dict[str, Search], queries: np.ndarray
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Milliseconds of every query in each way, and what each found.

    Each way first answers other queries, until what it reads lies in memory. Then they take turns of some queries. A
    pause and a query that is not counted come before each turn: for 70 ms after a product numpy's threads wait busily,
    and would take their time from whoever comes next.
    """
    times: dict[str, list[float]] = {way: [] for way in searches}
    found: dict[str, list[list[int]]] = {way: [] for way in searches}
    warming = next(vectors(WARMING, seed=2)).astype(np.float32)
    for search in searches.values():
        for query in warming:
            search(query)
    for first in range(0, len(queries), TURN):
        for way, search in searches.items():
            time.sleep(PAUSE_S)
            search(queries[first])
            for query in queries[first : first + TURN]:
                milliseconds, rows = timed(search, query)
                times[way].append(milliseconds)
                found[way].append(rows)
    return times, found


def recall(found: list[list[int]], truth: list[list[int]]) -> float:
    """Share of the true best ten that was found."""
    return statistics.mean(len({*ours} & {*theirs}) / COUNT for ours, theirs in zip(found, truth, strict=True))


def held_kb() -> int:
    """Resident memory of this process, mapped pages among it."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")))


def memory_of(way: str, place: Path, queries: Path) -> float:
    """Megabytes that a way holds after its queries, measured in a process of its own."""
    command = [sys.executable, __file__, "--hold", way, str(place), str(queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def hold(way: str, place: Path, queries: Path) -> None:
    """The process of `memory_of`."""
    asked = np.load(queries)
    np.zeros((64, WIDTH), np.float32) @ asked[0]
    num_threads()  # loads faiss
    before = held_kb()
    search = opened(way, place)
    for query in asked:
        search(query)
    print((held_kb() - before) / 1024)


def add_until_killed(folder: Path) -> None:
    """Adds batches of known vectors, saying after each how many are in."""
    stored = np.concatenate(list(vectors(KILL_ROWS)))
    with IndexWriter(folder, IDENTITY) as writer:
        print("ready", flush=True)
        for start in range(0, KILL_ROWS, KILL_BATCH):
            photos = [photo(row) for row in range(start, min(start + KILL_BATCH, KILL_ROWS))]
            new = writer.unknown(each.key for each in photos if each.key)
            if new:
                writer.add(
                    photos, {content(row): stored[row] for row in range(start, KILL_ROWS) if content(row) in new}
                )
                print(min(start + KILL_BATCH, KILL_ROWS), flush=True)


def kill_and_check(kills: int, seed: int) -> dict[str, Any]:
    """Kills a process that adds, again and again, and looks at the index after each kill."""
    moments = random.Random(seed)
    stored = np.concatenate(list(vectors(KILL_ROWS)))
    result = {"kills": 0, "unreadable": 0, "lost": 0, "doubled": 0, "wrong_vector": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "index"
        while result["kills"] < kills:
            told = _killed(folder, moments.uniform(0, 0.08))
            result["kills"] += 1
            _check(folder, told, stored, result)
            with ImageIndex(folder) as index:
                if len(index) >= KILL_ROWS * 9 // 10:
                    shutil.rmtree(folder)
    return result


def _killed(folder: Path, delay_s: float) -> int:
    """Runs the adding process for a moment; returns how many photos it said were in."""
    command = [sys.executable, __file__, "--adder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines(keepends=True)
    process.wait()
    process.stdout.close()
    return max(int(line) for line in lines if line.endswith("\n") and line.strip().isdigit())


def _check(folder: Path, told: int, stored: np.ndarray, result: dict[str, Any]) -> None:
    try:
        with ImageIndex(folder) as index:
            count = len(index)
            everything = index.search(stored[:1], KILL_ROWS)[0]
            nearest = [row_of(hits[0]) for hits in index.search(stored[:count], 1)]
    except Exception as error:  # noqa: BLE001  (whatever it is, the index was not readable)
        print(f"unreadable: {error}", file=sys.stderr)
        result["unreadable"] += 1
        return
    rows = [row_of(hit) for hit in everything]
    result["lost"] += max(0, told - count) + len(set(range(count)) - set(rows))
    result["doubled"] += len(rows) - len(set(rows))
    result["wrong_vector"] += sum(row != own for row, own in enumerate(nearest))


def measure(rows: int, num_queries: int, place: Path, others: list[str]) -> dict[str, Any]:
    """Every figure at one size."""
    folder = place / "index"
    figures: dict[str, Any] = {"rows": rows, **build(folder, rows)}
    matrix_file(place, rows)
    queries = next(vectors(num_queries, seed=1)).astype(np.float32)
    np.save(place / "queries.npy", queries)
    ways = ["numpy", "exact", "approximate", *others]
    times, found = latencies({way: opened(way, place) for way in ways}, queries)
    for way in ways:
        megabytes = memory_of(way, place, place / "queries.npy")
        share = round(recall(found[way], found["numpy"]), 4)
        figures[way] = {
            "latency_ms": round(statistics.median(times[way]), 3),
            "best_ms": round(min(times[way]), 3),
            "memory_mb": round(megabytes, 1),
            "recall@10": share,
        }
    figures["disk_mb"] = disk_of(folder)
    return {**figures, **change(folder, rows)}


def disk_of(folder: Path) -> dict[str, float]:
    """Megabytes on the disk by kind of file."""
    sizes: dict[str, float] = {}
    for path in folder.iterdir():
        kind = path.name.split("-")[0].split(".")[0]
        sizes[kind] = sizes.get(kind, 0.0) + path.stat().st_size / 1e6
    return {kind: round(size, 1) for kind, size in sizes.items()}


def summary(figures: dict[str, Any], killed: dict[str, Any]) -> dict[str, Any]:
    """The object that is printed last."""
    numpy_, exact, quick = (figures[way] for way in ("numpy", "exact", "approximate"))
    ratio = round(exact["latency_ms"] / numpy_["latency_ms"], 4)
    against = {
        "latency_ratio": ratio,
        "memory_ratio": round(exact["memory_mb"] / numpy_["memory_mb"], 4),
        "recall@10": exact["recall@10"],
    }
    return {
        "name": "index_store",
        "ours": exact["latency_ms"],
        "theirs": numpy_["latency_ms"],
        "ratio": ratio,
        "unit": f"ms a query, exact search of {figures['rows']:,} x {WIDTH}",
        "exact": against,
        "approximate": {
            "latency_ratio": round(quick["latency_ms"] / exact["latency_ms"], 4),
            "latency_ratio_of": "exact",
            "memory_ratio": round(quick["memory_mb"] / numpy_["memory_mb"], 4),
            "recall@10": quick["recall@10"],
        },
        "add_1000_s": figures["add_1000_s"],
        "delete_1000_s": figures["delete_1000_s"],
        "killed": killed,
        "threads": num_threads(),
        "figures": figures,
    }


def main() -> int:
    """Runs the benchmark; 1 when a kill lost, doubled or broke anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--table", action="store_true", help="other stores of faiss too")
    parser.add_argument("--hold", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--adder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        hold(options.hold[0], Path(options.hold[1]), Path(options.hold[2]))
        return 0
    if options.adder:
        add_until_killed(Path(options.adder))
        return 0
    lists = 1 << max(4, round(np.log2(options.rows) / 2))
    others = ["Flat", "SQfp16", f"IVF{lists},SQfp16:8", f"IVF{lists},SQ8:8"] if options.table else []
    killed = kill_and_check(options.kills, options.seed) if options.kills else {}
    with tempfile.TemporaryDirectory() as place:
        figures = measure(options.rows, options.queries, Path(place), others)
    result = summary(figures, killed)
    if not options.json:
        for way in ("numpy", "exact", "approximate", *others):
            print(f"{way:<20} {figures[way]}")
    print(json.dumps(result))
    return int(any(value for name, value in killed.items() if name != "kills"))


if __name__ == "__main__":
    raise SystemExit(main())
