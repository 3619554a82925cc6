"""One damaged file of a stopped store, and what becomes of it; see `tests/crash/test_rot.py`.

As a program it tries a range of damages, one line of JSON before and after each: damage may end the process.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
from pathlib import Path

import msgspec

import store.store
from api.answers import json_answer
from api.questions import Question
from store.engine import Engine
from store.errors import OncelakeError
from store.filters import Filters
from store.verify import verify
from tests.support.direct import assert_holds
from tests.support.model import Model
from tests.support.promises import History, assert_kept
from tests.support.scenarios import JOURNAL_BYTES, Run, Scenario, compact, flush, follow, made, merge, one_day, post

WHOLE = Scenario(
    [
        post(0, 3), flush, post(3, 5), flush, post(5, 7), flush, post(7, 9, None), flush, merge,
        one_day(40, 43), flush, compact, post(20, 26, None), flush, post(30, 34, None), follow,
    ],
    [],
)  # fmt: skip
KINDS = (
    "records/**/*.parquet", "outbox/notifications/*.jsonl", "outbox/alerts/*.jsonl", "rejected/*.jsonl",
    "outbox/*/committed.json", "oncelake.json", "internal/journal/*", "internal/catalog.sqlite", "internal/index/*",
    "internal/summaries/*", "internal/rollups/*",
)  # fmt: skip


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit, cut the end off, or fill it with zeros; in place. Says what."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    how = chance.choice(("flip", "flip", "cut", "zeros"))
    if how == "flip":
        bit = chance.randrange(8)
        data[at] ^= 1 << bit
        how = f"bit {bit} of byte {at} flipped"
    elif how == "cut":
        del data[at:]
        how = f"cut to {at} bytes"
    else:
        data[at:] = bytes(len(data) - at)
        how = f"zeros from byte {at}"
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    return how


def outcome(root: Path, name: str, history: History, model: Model) -> str:
    """How it went; see the table in `docs/reliability.md`."""
    last = len(history.commits) - 1
    try:
        run = Run(root, None, model)
    except OncelakeError as error:
        return "refused" if is_named(name, str(error)) else f"unnamed: refused: {error}"
    except Exception as error:
        return f"unnamed: at the start: {error!r}"
    try:
        wrong = ""
        try:
            assert_kept(run.store, history, last, last)
        except Exception as error:
            wrong = f"{error!r}"
        try:
            told = totals(run)
        except Exception as error:
            return "named" if is_named(name, str(error)) else f"unnamed: in a question: {error!r}"
    finally:
        run.close()
    answers = told == model.aggregate()["groups"]
    if answers and not wrong:
        return "whole"
    if not any(difference.file in (name, str(Path(name).parent)) for difference in verify(root).differences):
        return f"SILENT: {wrong or 'wrong totals'}"
    return "named" if answers else "named, after a wrong answer"


def is_named(name: str, message: str) -> bool:
    """Whether a message says which file it is about; the journal may be named by its folder."""
    return name in message or Path(name).name in message or str(Path(name).parent) in message


def totals(run: Run) -> object:
    """All groups with their records, as the API answers."""
    temp = run.store.root / "internal" / "tmp"
    temp.mkdir(exist_ok=True)
    engine = Engine(run.store.root, temp)
    try:
        with json_answer(engine, run.store.snapshot(), Question(Filters(), "records")) as answer:
            pieces = b"".join(answer.pieces)
    finally:
        engine.close()
    return msgspec.json.decode(pieces)["groups"]


def main(memory: Path, seed: int, first: int, after: int) -> None:
    """Damages number `first` to before `after`; each is a function of the seed and its number."""
    logging.disable(logging.CRITICAL)
    store.store._JOURNAL_BYTES = JOURNAL_BYTES
    base, root = memory / "base" / "data", memory / "state" / "data"
    shutil.rmtree(base.parent, ignore_errors=True)
    base.parent.mkdir()
    model = made(WHOLE, base)
    run = Run(base, None, model)
    assert_holds(run.store, model)
    run.close()
    history = History()
    history.committed(base, {})
    history.finished()
    for number in range(first, after):
        chance = random.Random(f"{seed} {number}")
        shutil.rmtree(root.parent, ignore_errors=True)
        root.parent.mkdir()
        shutil.copytree(base, root)
        kind = KINDS[number % len(KINDS)]
        path = chance.choice([path for path in sorted(root.glob(kind)) if path.stat().st_size])
        how = f"{path.relative_to(root)}, {damage(path, chance)}"
        print(json.dumps({"number": number, "kind": kind, "how": how}), flush=True)
        found = outcome(root, str(path.relative_to(root)), history, model)
        print(json.dumps({"number": number, "kind": kind, "how": how, "found": found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
