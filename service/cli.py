"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.exits import run

__all__ = ["main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = parser().parse_args(arguments)
    return run(lambda: int(options.command(options)))


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="oncelake",
        description="Takes data records from many sources, processes each exactly once, answers aggregations and feeds "
        "downstream services.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "run the service")
    serve.add_argument("--host", help="address to listen on (api.host)")
    serve.add_argument("--port", type=int, help="port to listen on, 0 for a free one (api.port)")

    ingest = _command(commands, "ingest", _ingest, "take files, without the service")
    ingest.add_argument("files", nargs="+", type=Path, metavar="FILE")
    ingest.add_argument("--dry-run", action="store_true", help="say what would become of the records, store nothing")
    ingest.add_argument("--no-progress", action="store_true", help="show no progress bar")

    _aggregate_options(_command(commands, "aggregate", _aggregate, "totals and records by destination"))
    _generate_options(_command(commands, "generate", _generate, "make sample records"))

    _command(commands, "verify", _verify, "prove that outboxes, Parquet, index and catalog agree (JSON report)")

    backup = _command(commands, "backup", _backup, "copy the data directory, also of a running service")
    backup.add_argument("directory", type=Path, metavar="DIR", help="a new or empty directory")

    rebuild = _command(commands, "rebuild", _rebuild, "make index, summaries and rollups anew from the records")
    rebuild.add_argument(
        "--mend", action="store_true",
        help="instead, make missing or damaged Parquet files again from the notification log, and segments of the "
        "outboxes from the Parquet files",
    )  # fmt: skip
    rebuild.add_argument(
        "--accept-loss", choices=["rejected"],
        help="with --mend: go on with those lines of damaged dead letters that can be read",
    )  # fmt: skip

    replay = _command(commands, "replay", _replay, "write the lines of a range of seqs again, from the stored records")
    replay.add_argument("--from", dest="first", type=_count, default=1, metavar="SEQ", help="the first seq (1)")
    replay.add_argument("--to", dest="last", type=_count, metavar="SEQ", help="the last seq (the newest)")
    replay.add_argument("--feed", choices=["notifications", "alerts"], default="notifications")
    replay.add_argument("--output", type=Path, help="a file (default: standard output)")

    rejected = _command(commands, "rejected", _rejected, "list dead letters, newest first")
    rejected.add_argument("--status", choices=["conflict", "rejected", "resolved"])
    rejected.add_argument("--source-id", help="of the record")
    rejected.add_argument("--file", help="the file that it came in")
    rejected.add_argument("--limit", type=_count, default=100)
    rejected.add_argument("--json", action="store_true", help="the lines as they are")

    token = _command(commands, "token", _token, "make a token: printed once, with the table to paste into the config")
    token.add_argument("--role", required=True, choices=["ingest", "read", "admin"])
    token.add_argument("--name", required=True, help="whose it is; the log and answers name it")
    token.add_argument(
        "--source", action="append", default=[], metavar="SOURCE_ID", help="the only sourceIds it may bring; repeatable"
    )

    forward = _command(commands, "forward", _forward, "send the feeds to the sinks of [[forward]], without the service")
    forward.add_argument("names", nargs="*", metavar="NAME", help="only these sinks")
    forward.add_argument("--once", action="store_true", help="send what is committed now, then end (for cron)")
    forward.add_argument(
        "--retry", action="store_true", help="send dead letters again, enable sinks that said 410, then end"
    )

    shown = _command(commands, "status", _status, "show what the data directory holds and whether a service has it")
    shown.add_argument("--json", action="store_true", help="as JSON")

    _command(commands, "check-config", _check_config, "check the configuration and show what is in force")
    return top


def _command(commands: Any, name: str, function: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    command.add_argument("--data", help="the data directory (store.data_dir)")
    command.add_argument(
        "--config", type=Path, help="the configuration file (default: config.toml here, if there is one)"
    )
    command.set_defaults(command=function)
    return command


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must not be negative")
    return number


_count.__name__ = "number"  # argparse says "invalid number value"


def _aggregate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--start-time", help="RFC 3339, inclusive")
    command.add_argument("--end-time", help="RFC 3339, exclusive")
    command.add_argument("--type", choices=["positive", "negative"])
    for name in ("destination-id", "source-id", "reference", "unit"):
        command.add_argument(f"--{name}", action="append", default=[], help="repeatable")
    command.add_argument("--include", choices=["records", "totals"], default="totals")
    command.add_argument("--as-of", type=_count, metavar="SEQ")
    command.add_argument("--format", choices=["table", "json", "csv", "ndjson", "arrow", "parquet"], default="table")


def _generate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("count", type=int, metavar="N")
    command.add_argument("--output", type=Path, help="a file (default: standard output)")
    command.add_argument("--format", choices=["ndjson", "json", "csv", "parquet", "arrows"], default="ndjson")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--first", type=int, default=0, help="number of the first record")
    command.add_argument("--duplicates", type=float, default=0.0, metavar="FRACTION", help="records sent again")
    command.add_argument(
        "--conflicts", type=float, default=0.0, metavar="FRACTION", help="ids sent again with another value"
    )
    command.add_argument("--destinations", type=int, default=1_000)
    command.add_argument("--references", type=int, default=100_000)
    command.add_argument("--sources", type=int, default=20)
    command.add_argument("--units", default="SEK", help="comma-separated")
    command.add_argument("--start-time", default="2024-03-01T00:00:00Z")
    command.add_argument("--days", type=int, default=7, help="times spread over so many days")


def _config(options: argparse.Namespace, **overrides: Any) -> Any:
    from service.config import load_config

    found = {"store.data_dir": options.data, **overrides}
    return load_config(options.config, environ=os.environ, overrides=found)


def _serve(options: argparse.Namespace) -> int:
    from service.config import check_bind

    config = _config(options, **{"api.host": options.host, "api.port": options.port})
    check_bind(config)
    from service.serve import serve

    code = serve(config)
    # everything is synced and closed; taking the interpreter down would only let libraries complain of what they leak
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ingest(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.ingesting import ingest

    return ingest(config, options.files, dry_run=options.dry_run, progress=not options.no_progress)


def _aggregate(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.aggregating import aggregate

    return aggregate(config, options)


def _generate(options: argparse.Namespace) -> int:
    from service.generate import generate

    return generate(options)


def _verify(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.verifying import verify

    return verify(config)


def _backup(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.backing import backup

    return backup(config, options.directory)


def _rebuild(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.rebuilding import mend, rebuild
    from store.errors import ConfigError

    if options.mend:
        return mend(config, give_up_letters=options.accept_loss == "rejected")
    if options.accept_loss:
        raise ConfigError("--accept-loss goes with --mend: what can be made again need not be given up")
    return rebuild(config)


def _replay(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.replaying import replay

    return replay(config, options.feed, options.first, options.last, options.output)


def _rejected(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.rejects import rejected

    return rejected(config, options)


def _token(options: argparse.Namespace) -> int:
    from service.token import token

    return token(options)


def _forward(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.forwarding import forward

    return forward(config, once=options.once, retry=options.retry, names=options.names)


def _status(options: argparse.Namespace) -> int:
    config = _config(options)
    from service.status import status

    return status(config, options)


def _check_config(options: argparse.Namespace) -> int:
    config = _config(options)
    import msgspec

    from service.config import shown

    print(msgspec.json.format(msgspec.json.encode(shown(config)), indent=2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
