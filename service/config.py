"""The configuration: `config.toml`, environment variables and the command line, checked before anything runs.

Every key is documented in `config.toml`, which a test holds against this module. A key is overridden by
`ONCELAKE_SECTION__KEY`, and that by the command line.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from api.tokens import Token
from outbox.forwarder.settings import Forward
from store.errors import ConfigError
from store.limits import SCALE, SCALED_VALUE_LIMIT

__all__ = [
    "Alerts",
    "Api",
    "Config",
    "Ingest",
    "Log",
    "Outbox",
    "Rejected",
    "StoreConfig",
    "check_bind",
    "load_config",
    "shown",
]

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Memory = Annotated[str, Meta(pattern=r"(?i)^[0-9]+(\.[0-9]+)? ?([kmgt]i?)b$")]


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how records are kept."""

    data_dir: Annotated[str, Meta(min_length=1)] = "data"
    fsync: bool = True
    min_free_bytes: Annotated[int, Meta(ge=0)] = 32 << 20
    flush_interval_s: Seconds = 5.0
    flush_rows: Positive = 350_000
    flush_bytes: Positive = 192 << 20
    query_memory: Memory = "192MB"
    query_threads: Positive = 2
    query_timeout_s: Seconds = 120.0
    compact: bool = True
    compact_memory: Memory = "128MB"
    compact_rest_s: Seconds = 600.0
    compact_grace_s: Seconds = 600.0
    scrub_interval_s: Seconds = 86_400.0


class Ingest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How records are taken."""

    unknown_fields: Literal["reject", "ignore"] = "reject"
    negative_values: Literal["reject", "accept"] = "reject"
    settle_s: Seconds = 2.0
    rescan_s: Seconds = 2.0
    chunk_rows: Positive = 8_192
    queue_batches: Positive = 4_096
    queue_records: Positive = 1_000_000
    atomic_records: Positive = 65_536
    max_decompressed_bytes: Positive = 256 << 20
    max_ratio: Positive = 500
    max_batch_records: Positive = 2_000_000
    max_json_depth: Annotated[int, Meta(ge=1, le=500)] = 64
    inbox_sources: dict[str, tuple[str, ...]] = {}


class Alerts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds: exact decimals."""

    threshold: str = "10000"
    by_unit: dict[str, str] = {}
    by_destination: dict[str, str] = {}


class Outbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The feeds."""

    retention: str = "forever"
    segment_bytes: Positive = 256 << 20


class Rejected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dead letters."""

    retention: str = "forever"


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP face."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    allow_anonymous: bool = False
    max_body_bytes: Positive = 32 << 20
    body_timeout_s: Seconds = 30.0
    max_header_bytes: Positive = 64 << 10
    header_timeout_s: Seconds = 10.0
    write_timeout_s: Seconds = 30.0
    max_connections: Positive = 1_000
    concurrent_queries: Positive = 4
    waiting_queries: Annotated[int, Meta(ge=0)] = 60
    open_answers: Positive = 64
    max_answer_rows: Annotated[int, Meta(ge=0)] = 0
    shutdown_s: Seconds = 30.0


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the service says of itself on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["human", "json"] = "human"
    access: Literal["none", "errors", "all"] = "errors"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it."""

    store: StoreConfig = StoreConfig()
    ingest: Ingest = Ingest()
    alerts: Alerts = Alerts()
    outbox: Outbox = Outbox()
    rejected: Rejected = Rejected()
    api: Api = Api()
    log: Log = Log()
    tokens: tuple[Token, ...] = ()
    forward: tuple[Forward, ...] = ()


def load_config(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] = {},
    overrides: Mapping[str, Any] = {},
) -> Config:
    """Read a file (by default `config.toml` here, if there is one), the environment and overrides (`"api.port": 1`).

    `ConfigError` names the source, the key and what is allowed.
    """
    values: dict[str, Any] = {}
    if path is None and Path("config.toml").is_file():
        path = Path("config.toml")
    if path is not None:
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from None
        _check(values, str(path))
        _converted(values, str(path))
    for name, text in environ.items():
        if name.startswith(_PREFIX) and "__" in name:
            _set(values, *_environment_key(name), text, name)
        elif name.removeprefix(_PREFIX).lower() in _arrays() and name.startswith(_PREFIX):
            _set_array(values, name, text)
    for key, value in overrides.items():
        if value is not None:
            section, name = key.split(".")
            _set(values, section, name, value, "the command line")
    return _converted(values, "the configuration")


def check_bind(config: Config) -> None:
    """Without tokens the service serves loopback only, unless `api.allow_anonymous` says otherwise."""
    if not _is_loopback(config.api.host) and not config.tokens and not config.api.allow_anonymous:
        raise ConfigError(
            f"api.host is {config.api.host!r}, and nobody would have to show a token: anyone on that network could "
            "read and write. Make a token with `oncelake token`, listen on 127.0.0.1, or set "
            "api.allow_anonymous = true if that is what you want"
        )


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; of names only `localhost` is known to be one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for a person to read: what is secret is hidden."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    for table in values["tokens"]:
        table["hash"] = "***"
    for table, forward in zip(values["forward"], config.forward, strict=True):
        table["url"] = forward.shown_url
        table["secret"] = "***" if forward.secret else ""
    return values


def retention_s(text: str) -> float | None:
    """Seconds of a retention such as `30d`, `12h`, `15m` or `90s`; None for `forever`."""
    if text == "forever":
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigError(f'{text!r} is no duration: write a number with s, m, h or d, as in "30d", or "forever"')
    return float(found[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[found[2]]


_PREFIX = "ONCELAKE_"
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: 'a table on one line, as in { SEK = "50000" }',
}
_DURATION = re.compile(r"([0-9]+)([smhd])")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


def _sections() -> dict[str, tuple[str, ...]]:
    return {
        field.name: tuple(inner.name for inner in msgspec.structs.fields(_table(field.type) or field.type))
        for field in msgspec.structs.fields(Config)
    }


def _table(kind: Any) -> Any:
    """The type of one table where a section is an array of tables (`[[forward]]`), else None."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _arrays() -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(Config) if _table(field.type))


def _check(values: Mapping[str, Any], source: str) -> None:
    """Unknown sections and keys are errors that name the nearest one."""
    sections, arrays = _sections(), _arrays()
    for section, content in values.items():
        if section not in sections:
            raise ConfigError(f"{source}: there is no section [{section}]{_nearest(section, sections)}")
        tables = content if section in arrays and isinstance(content, list) else [content]
        if not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{source}: {section} is a section: write [{section}] and its keys below it")
        if section in arrays and not isinstance(content, list):
            raise ConfigError(f"{source}: {section} is an array of tables: write [[{section}]] above the keys of each")
        for key in [key for table in tables for key in table]:
            if key not in sections[section]:
                raise ConfigError(f"{source}: there is no key {section}.{key}{_nearest(key, sections[section])}")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _environment_key(name: str) -> tuple[str, str]:
    section, _, key = name.removeprefix(_PREFIX).lower().partition("__")
    if section in _arrays():
        raise ConfigError(
            f"{name}: the tables of [[{section}]] are set all at once, as {_PREFIX}{section.upper()}='[{{…}}, …]', "
            "or in the file"
        )
    _check({section: {key: None}}, f"the environment variable {name}")
    return section, key


def _set_array(values: dict[str, Any], name: str, text: str) -> None:
    """Set all tables of an array from an environment variable that holds a TOML array of inline tables."""
    section = name.removeprefix(_PREFIX).lower()
    try:
        tables = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:  # the text may hold secrets: it is not shown
        raise ConfigError(f"{name} is no TOML array of inline tables: {error}") from None
    _check({section: tables}, f"the environment variable {name}")
    _converted({section: tables}, name)
    values[section] = tables


def _set(values: dict[str, Any], section: str, key: str, value: Any, source: str) -> None:
    """Set a key from outside the file. What is no text by its type is read as TOML is (numbers, booleans, tables)."""
    expected = {field.name: field.type for field in msgspec.structs.fields(Config)}[section]
    default = getattr(expected(), key)
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            kind = _KINDS.get(type(default), "a TOML value")
            raise ConfigError(f"{source}: {value!r} cannot be read: {section}.{key} is {kind}") from None
    values.setdefault(section, {})[key] = value
    _converted({section: {key: value}}, source)


def _converted(values: Mapping[str, Any], source: str) -> Config:
    alerts = dict(values.get("alerts", {}))
    if "threshold" in alerts:
        alerts["threshold"] = _threshold(alerts["threshold"], "alerts.threshold", source)
    for name in ("by_unit", "by_destination"):
        if isinstance(alerts.get(name), dict):
            alerts[name] = {
                key: _threshold(value, f"alerts.{name}.{key}", source) for key, value in alerts[name].items()
            }
    try:
        config = msgspec.convert({**values, "alerts": alerts}, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_readable(str(error))}") from None
    _check_forward(config, source)
    _check_tokens(config, source)
    for key, text in (("outbox.retention", config.outbox.retention), ("rejected.retention", config.rejected.retention)):
        try:
            retention_s(text)
        except ConfigError as error:
            raise ConfigError(f"{source}: {key}: {error}") from None
    return config


def _check_forward(config: Config, source: str) -> None:
    for number, table in enumerate(config.forward):
        try:
            table.check()
        except ConfigError as error:
            raise ConfigError(f"{source}: forward[{number}] ({table.name}): {error}") from None
        if table.name in [other.name for other in config.forward[:number]]:
            raise ConfigError(f"{source}: forward[{number}]: the name {table.name!r} is taken: each sink has its own")


def _check_tokens(config: Config, source: str) -> None:
    for number, token in enumerate(config.tokens):
        try:
            token.check()
        except ConfigError as error:
            raise ConfigError(f"{source}: tokens[{number}] ({token.name}): {error}") from None
        for other in config.tokens[:number]:
            if token.name == other.name or token.hash == other.hash:
                same = "name" if token.name == other.name else "token"
                raise ConfigError(f"{source}: tokens[{number}] ({token.name}): another one has the same {same}")
    for folder, sources in config.ingest.inbox_sources.items():
        if (
            folder in ("", ".")
            or str(PurePosixPath(folder)) != folder
            or {"..", "/"} & set(PurePosixPath(folder).parts)
        ):
            raise ConfigError(
                f"{source}: ingest.inbox_sources: {folder!r} is no folder of the inbox: write it as in "
                '"source-a" or "north/meters"'
            )
        if not sources:
            raise ConfigError(f"{source}: ingest.inbox_sources: {folder!r} may bring no source at all")


def _readable(message: str) -> str:
    """Msgspec says "Expected `int`, got `str` - at `$.api.port`", and of a choice or a pattern not what it takes."""
    reason, _, at = message.partition(" - at `$.")
    if not at:
        return message
    at = at.rstrip("`")
    if reason.startswith("Invalid enum value"):
        reason += f"; it can be {' or '.join(map(repr, get_args(_type_at(at))))}"
    elif "matching regex" in reason and _type_at(at) == Memory:
        reason = 'Expected an amount with its unit, as in "192MB"'
    return f"{at}: {reason[0].lower()}{reason[1:]}"


def _type_at(place: str) -> Any:
    """The type of a key such as `log.level` or `tokens[0].role`."""
    kind: Any = Config
    for name in re.sub(r"\[[^]]*\]", "", place).split("."):
        kind = next(field.type for field in msgspec.structs.fields(_table(kind) or kind) if field.name == name)
    return kind


def _threshold(value: Any, key: str, source: str) -> str:
    """The canonical text of an exact decimal. A TOML float is binary, so it is refused."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = "a binary number" if isinstance(value, float) else "no number"
        raise ConfigError(f'{source}: {key} is {kind}: write the exact decimal as a text, as in "{value}"')
    text = str(value)
    if _DECIMAL.fullmatch(text) is None:
        raise ConfigError(f'{source}: {key}: {text!r} is no plain decimal, as in "10000" or "0.5"')
    digits = text.partition(".")[2].rstrip("0")
    if len(digits) > SCALE or Decimal(text).copy_abs() >= SCALED_VALUE_LIMIT // 10**SCALE:  # abs() would round
        raise ConfigError(
            f"{source}: {key}: {text!r} has more than {SCALE} digits after the point, or is 10^20 or more"
        )
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
