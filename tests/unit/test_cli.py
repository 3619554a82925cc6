"""The command line: what it imports, its exit codes, and the commands that only read."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service import cli
from service.cli import main, parser
from service.config import Config
from service.exits import DONE, PROBLEM, USAGE
from tests.support.direct import Direct, open_store, record_of
from tests.support.forms import rows_in, rows_of_json
from tests.support.lake import Lake

ROOT = Path(__file__).parents[2]
HEAVY = ("pyarrow", "duckdb", "litestar", "numpy", "rich", "uvicorn", "msgspec", "zstandard")
# Runs the command line, and says on standard error what of the heavy libraries it has brought in.
PROBE = f"""
import sys
from service.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
sys.stderr.write("heavy:" + ",".join(name for name in {HEAVY!r} if name in sys.modules))
sys.exit(code)
"""


def commands() -> list[str]:
    found = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(found[0].choices)


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "recordId": f"rec-{number}",
        "time": f"2024-03-01T12:00:{number:02}Z",
        "sourceId": "source-a",
        "destinationId": f"dest-{number % 2}",
        "type": "positive",
        "value": f"{number}.5",
        "unit": "SEK",
        "reference": "invoice-9",
        **fields,
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no config.toml is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records in Parquet, two hot ones, a conflict, and two rejections of other sources."""
    root = tmp_path_factory.mktemp("cli") / "data"
    lake = Lake(root)
    lake.post(json.dumps([record(number) for number in range(3)]).encode())
    lake.store.flush_once()
    lake.post(json.dumps([record(3), record(4)]).encode())
    lake.post(json.dumps([record(0, unit="EUR"), record(9, value="-1")]).encode())
    lake.drop("broken.ndjson", json.dumps(record(8, sourceId="source-b", value="x")).encode() + b"\n{broken\n")
    while lake.inbox.run_once():
        pass
    lake.close()
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["", *commands()])
def test_help_answers_at_once(command: str) -> None:
    """Exit code 0, and none of the large libraries was imported for it, nor msgspec."""
    arguments = [command, "--help"] if command else ["--help"]
    found = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (DONE, "heavy:")
    assert found.stdout.startswith(f"usage: oncelake {command}".rstrip())


@pytest.mark.parametrize("command", commands())
def test_every_command_takes_the_data_directory_and_a_configuration(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """And says in its help what they are."""
    code, out, _ = run(capsys, command, "--help")
    assert code == DONE and "--data" in out and "--config" in out


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """With a line that says what it does."""
    _, out, _ = run(capsys, "--help")
    described = {line.split()[0] for line in out.splitlines() if line.startswith("    ")}
    assert set(commands()) <= described


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("aggregate", "--type", "both"),
        ("aggregate", "--as-of", "x"),
        ("aggregate", "--as-of", "-1"),
        ("aggregate", "--format", "xml"),
        ("aggregate", "--start-time", "2024-03-01"),
        ("aggregate", "--nothing"),
        ("rejected", "--status", "accepted"),
        ("rejected", "--limit", "-1"),
        ("ingest",),
        ("generate",),
        ("generate", "-1"),
        ("generate", "5", "--duplicates", "0.7", "--conflicts", "0.3"),
        ("generate", "5", "--duplicates", "-0.5", "--conflicts", "0.6"),
        ("generate", "5", "--duplicates", "nan"),
        ("generate", "5", "--start-time", "yesterday"),
        ("generate", "5", "--destinations", "0"),
        ("generate", "5", "--references", "0"),
        ("generate", "5", "--sources", "0"),
        ("generate", "5", "--days", "0"),
        ("generate", "5", "--days", "100000"),
        ("generate", "5", "--first", "-1"),
        ("generate", "5", "--units", "SEK,"),
        ("check-config", "--config", "nowhere.toml"),
        ("serve", "--port", "70000"),
        ("serve", "--host", "0.0.0.0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], data: Path, arguments: tuple[str, ...]) -> None:
    """With a sentence on standard error, and nothing on standard output."""
    target = ("--data", str(data)) if arguments and arguments[0] == "aggregate" else ()
    code, out, err = run(capsys, *arguments, *target)
    assert (code, out) == (USAGE, "")
    assert "oncelake" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("aggregate", "--data", "nowhere"),
        ("rejected", "--data", "nowhere"),
        ("verify", "--data", "nowhere"),
        ("ingest", "--data", "new", "nowhere.ndjson"),
        ("generate", "5", "--output", "nowhere/x.ndjson"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_ends_with_1(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    """One line that names it; nothing is made in passing."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (PROBLEM, "")
    assert err.startswith("oncelake: ") and err.count("\n") == 1 and "nowhere" in err
    assert list(Path().iterdir()) == []


def test_ingest_says_that_a_directory_is_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not that there is nothing of that name."""
    code, out, err = run(capsys, "ingest", "--data", "new", str(tmp_path))
    assert (code, out) == (PROBLEM, "") and "is no regular file" in err
    assert not Path("new").exists()


def test_check_config_shows_what_is_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file, over it the environment, over that --data; as JSON."""
    (tmp_path / "config.toml").write_text('[api]\nport = 1\n[store]\ndata_dir = "a"\n')
    monkeypatch.setenv("ONCELAKE_API__PORT", "2")
    code, out, _ = run(capsys, "check-config", "--data", "b")
    found = json.loads(out)
    assert code == DONE and found["api"]["port"] == 2 and found["store"]["data_dir"] == "b"
    assert found.keys() == msgspec.to_builtins(Config()).keys()


def test_check_config_names_the_nearest_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit code 2, and the file that it stands in."""
    (tmp_path / "mine.toml").write_text("[ingest]\nunknown_field = 'ignore'\n")
    code, _, err = run(capsys, "check-config", "--config", "mine.toml")
    assert code == USAGE and "mine.toml" in err and "'unknown_fields'" in err


def test_an_interrupted_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, without a stack trace."""

    def interrupted(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check_config", interrupted)
    assert run(capsys, "check-config") == (PROBLEM, "", "oncelake: interrupted\n")


def letters(capsys: pytest.CaptureFixture[str], data: Path, *filters: str) -> list[tuple[str, str | None]]:
    code, out, err = run(capsys, "rejected", "--json", "--data", str(data), *filters)
    assert (code, err) == (DONE, "")
    found = [json.loads(line) for line in out.splitlines()]
    return [(letter["status"], letter["recordId"]) for letter in found]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), [("rejected", None), ("rejected", "rec-8"), ("rejected", "rec-9"), ("conflict", "rec-0")]),
        (("--status", "conflict"), [("conflict", "rec-0")]),
        (("--status", "rejected", "--limit", "2"), [("rejected", None), ("rejected", "rec-8")]),
        (("--source-id", "source-b"), [("rejected", "rec-8")]),
        (("--source-id", "source-a"), [("rejected", "rec-9"), ("conflict", "rec-0")]),
        (("--source-id", "nobody"), []),
        (("--file", "broken.ndjson", "--source-id", "source-b"), [("rejected", "rec-8")]),
        (("--file", "other.ndjson"), []),
        (("--limit", "0"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_dead_letters_are_listed_newest_first(
    capsys: pytest.CaptureFixture[str], data: Path, filters: tuple[str, ...], expected: list[tuple[str, str | None]]
) -> None:
    """As the lines that they are; filters hold together, the limit counts what they let through."""
    assert letters(capsys, data, *filters) == expected


def test_dead_letters_are_shown_as_a_table_with_the_reason(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """Which record, why, and where it came from."""
    code, out, _ = run(capsys, "rejected", "--data", str(data))
    assert code == DONE
    assert all(word in out for word in ("rec-0", "conflict", "rejected", "unit"))


def test_an_aggregation_is_the_json_of_the_api(capsysbinary: pytest.CaptureFixture[bytes], data: Path) -> None:
    """With every filter, as of a seq, with records or only totals."""
    options = ("aggregate", "--data", str(data), "--format", "json")
    assert main([*options, "--include", "records"]) == DONE
    whole = json.loads(capsysbinary.readouterr().out)
    assert whole["asOf"] == 5 and [group["count"] for group in whole["groups"]] == [3, 2]
    assert [row["seq"] for group in whole["groups"] for row in group["records"]] == [1, 3, 5, 2, 4]
    filters = (
        "--start-time", "2024-03-01T13:00:01+01:00", "--end-time", "2024-03-01T12:00:04Z", "--type", "positive",
        "--destination-id", "dest-0", "--destination-id", "dest-1", "--source-id", "source-a",
        "--reference", "invoice-9", "--unit", "SEK", "--as-of", "3",
    )  # fmt: skip
    assert main([*options, *filters]) == DONE
    found = json.loads(capsysbinary.readouterr().out)
    assert found["asOf"] == 3
    assert found["totals"] == [{"unit": "SEK", "count": 2, "positive": "4", "negative": "0", "net": "4"}]
    assert all("records" not in group for group in found["groups"])


def test_an_aggregation_is_printed_as_csv(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """Totals with exact texts; records in canonical form, in the order of the API."""
    _, out, _ = run(capsys, "aggregate", "--data", str(data), "--format", "csv")
    assert out.splitlines() == [
        "destinationId,unit,count,positive,negative,net",
        "dest-0,SEK,3,7.5,0,7.5",
        "dest-1,SEK,2,5,0,5",
    ]
    _, out, _ = run(capsys, "aggregate", "--data", str(data), "--format", "csv", "--include", "records")
    assert out.splitlines()[:2] == [
        "seq,recordId,time,sourceId,destinationId,type,value,unit,reference",
        "1,rec-0,2024-03-01T12:00:00.000000Z,source-a,dest-0,positive,0.5,SEK,invoice-9",
    ]


@pytest.mark.parametrize("include", ["records", "totals"])
@pytest.mark.parametrize("form", ["ndjson", "csv", "arrow", "parquet"])
def test_an_aggregation_is_written_in_every_format_of_the_api(
    capsysbinary: pytest.CaptureFixture[bytes], data: Path, form: str, include: str
) -> None:
    """The rows of its JSON, to standard output."""
    options = ["aggregate", "--data", str(data), "--include", include, "--format"]
    assert main([*options, "json"]) == DONE
    expected = rows_of_json(json.loads(capsysbinary.readouterr().out), include)
    assert main([*options, form]) == DONE
    assert rows_in(form, capsysbinary.readouterr().out, include) == expected != []


def test_an_aggregation_is_printed_as_a_table(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """Totals, and below them the records where they are asked for."""
    code, out, _ = run(capsys, "aggregate", "--data", str(data), "--include", "records")
    assert code == DONE and "as of seq 5" in out and "Records" in out and "7.5" in out


def test_an_aggregation_as_of_a_seq_that_is_not_there_is_a_problem(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    """Exit code 1, and the newest seq."""
    code, out, err = run(capsys, "aggregate", "--data", str(data), "--as-of", "6")
    assert (code, out) == (PROBLEM, "") and "the newest seq is 5" in err


def test_verify_proves_a_good_directory(capsysbinary: pytest.CaptureFixture[bytes], data: Path) -> None:
    """With a JSON report and exit code 0."""
    assert main(["verify", "--data", str(data)]) == DONE
    assert json.loads(capsysbinary.readouterr().out)


def test_ingest_takes_files_and_says_what_became_of_them(tmp_path: Path) -> None:
    """A receipt for each; a dry run stores nothing; 1 where one cannot be decoded; the same again is duplicates."""
    (tmp_path / "a.ndjson").write_text("\n".join(json.dumps(record(number)) for number in range(3)))
    (tmp_path / "b.json").write_text("[{")

    def ingest(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
        found = subprocess.run(
            [sys.executable, "-m", "service.cli", "ingest", "--data", str(tmp_path / "data"), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "ONCELAKE_STORE__FSYNC": "false"},
        )  # fmt: skip
        decoder = json.JSONDecoder()
        receipts, rest = [], found.stdout
        while rest.strip():
            receipt, end = decoder.raw_decode(rest.lstrip())
            receipts.append(receipt)
            rest = rest.lstrip()[end:]
        return found.returncode, receipts

    good, bad = str(tmp_path / "a.ndjson"), str(tmp_path / "b.json")
    code, (dry,) = ingest("--dry-run", good)
    assert (code, dry["accepted"], dry["firstSeq"]) == (DONE, 3, None)
    assert not (tmp_path / "data").exists()
    code, (first, failed) = ingest(good, bad)
    assert (code, first["accepted"], first["lastSeq"]) == (PROBLEM, 3, 3)
    assert failed["code"] and failed["message"] and failed["accepted"] == 0
    code, (again,) = ingest(good)
    assert (code, again["duplicate"], again["accepted"]) == (DONE, 3, 0)


def test_status_shows_what_there_is_and_who_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a process that holds the store, and after it."""
    root = tmp_path / "data"
    store = open_store(root)
    committer = Direct(store)
    committer.take([record_of(number) for number in range(3)])
    store.flush_once()
    committer.take([record_of(3)])
    (root / "inbox").mkdir()
    (root / "inbox" / "a.csv").write_text("x")
    assert main(["status", "--data", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seq"], found["flushedSeq"], found["inbox"]) == (4, 3, 1)
    assert found["parquet"]["files"] >= 1
    assert found["service"] == f"runs (pid {os.getpid()})"
    committer.stop()
    store.close()
    assert main(["status", "--data", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "does not run" in shown
    assert main(["status", "--data", str(tmp_path / "none")]) == 1
