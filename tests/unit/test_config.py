"""The configuration: what is written in `config.toml`, what overrides it, and what is refused with which words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.tokens import Token
from outbox.forwarder.settings import Forward
from outbox.forwarder.sinks.making import make_sink
from service.config import Config, check_bind, load_config, retention_s, shown
from store.errors import ConfigError
from store.files import Disk

DOCUMENTED = Path(__file__).parents[2] / "config.toml"
ARRAYS = ("tokens", "forward")
DEFAULTS: dict[str, dict[str, Any]] = {
    section: keys for section, keys in msgspec.to_builtins(Config()).items() if section not in ARRAYS
}
KEYS = [(section, key) for section, keys in DEFAULTS.items() for key in keys]

# A value other than the default for every key, as it stands in an environment variable, and what it becomes.
OTHERS: dict[str, tuple[str, Any]] = {
    "store.data_dir": ("123", "123"),
    "store.fsync": ("false", False),
    "store.flush_interval_s": ("0.25", 0.25),
    "store.flush_rows": ("1_000", 1_000),
    "store.min_free_bytes": ("0", 0),
    "store.flush_bytes": ("4096", 4_096),
    "store.query_memory": ("1GB", "1GB"),
    "store.query_threads": ("3", 3),
    "store.query_timeout_s": ("9.5", 9.5),
    "store.compact": ("false", False),
    "store.compact_memory": ("64MB", "64MB"),
    "store.compact_rest_s": ("1.5", 1.5),
    "store.compact_grace_s": ("30.5", 30.5),
    "store.scrub_interval_s": ("3600.5", 3600.5),
    "ingest.unknown_fields": ("ignore", "ignore"),
    "ingest.negative_values": ("accept", "accept"),
    "ingest.settle_s": ("7", 7.0),
    "ingest.rescan_s": ("0.5", 0.5),
    "ingest.chunk_rows": ("10", 10),
    "ingest.queue_batches": ("11", 11),
    "ingest.queue_records": ("12", 12),
    "ingest.atomic_records": ("13", 13),
    "ingest.max_decompressed_bytes": ("14", 14),
    "ingest.max_ratio": ("24", 24),
    "ingest.max_batch_records": ("25", 25),
    "ingest.max_json_depth": ("26", 26),
    "api.max_header_bytes": ("20", 20),
    "api.header_timeout_s": ("21", 21.0),
    "api.write_timeout_s": ("22", 22.0),
    "api.max_connections": ("23", 23),
    "ingest.inbox_sources": ('{ "north/a" = ["a", "b"] }', {"north/a": ("a", "b")}),
    "alerts.threshold": ("0.50", "0.5"),
    "alerts.by_unit": ('{ SEK = "5.10" }', {"SEK": "5.1"}),
    "alerts.by_destination": ('{ "dest-1" = 7 }', {"dest-1": "7"}),
    "outbox.retention": ("30d", "30d"),
    "outbox.segment_bytes": ("15", 15),
    "rejected.retention": ("12h", "12h"),
    "api.host": ("::1", "::1"),
    "api.port": ("0", 0),
    "api.allow_anonymous": ("true", True),
    "api.max_body_bytes": ("16", 16),
    "api.body_timeout_s": ("17", 17.0),
    "api.concurrent_queries": ("18", 18),
    "api.waiting_queries": ("7", 7),
    "api.open_answers": ("9", 9),
    "api.max_answer_rows": ("1000", 1000),
    "api.shutdown_s": ("19", 19.0),
    "log.level": ("debug", "debug"),
    "log.format": ("json", "json"),
    "log.access": ("all", "all"),
}


def written(directory: Path, text: str) -> Path:
    path = directory / "oncelake.toml"
    path.write_text(text, "utf-8")
    return path


def value_of(config: Config, section: str, key: str) -> Any:
    return getattr(getattr(config, section), key)


def test_the_file_documents_every_key_with_its_default_and_no_other() -> None:
    """In the order of the code; loading it is the same as loading nothing."""
    found = tomllib.loads(DOCUMENTED.read_text("utf-8"))
    assert found == DEFAULTS
    assert [(section, key) for section, keys in found.items() for key in keys] == KEYS
    assert load_config(DOCUMENTED) == Config()


def test_the_file_explains_every_key() -> None:
    """A comment stands above each key, or above the one before it in the same paragraph."""
    is_explained = False
    for line in DOCUMENTED.read_text("utf-8").splitlines():
        is_explained = line.startswith("#") or (is_explained and "=" in line)
        assert is_explained or not line or line.startswith("["), f"nothing explains {line!r}"


@pytest.mark.parametrize(("section", "key"), KEYS, ids=".".join)
def test_each_key_is_overridden_by_its_environment_variable(tmp_path: Path, section: str, key: str) -> None:
    """Over the file's value, which is the default here, and without touching any other key."""
    text, expected = OTHERS[f"{section}.{key}"]
    config = load_config(DOCUMENTED, environ={f"ONCELAKE_{section}__{key}".upper(): text})
    assert value_of(config, section, key) == expected != DEFAULTS[section][key]
    others = [pair for pair in KEYS if pair != (section, key)]
    assert all(value_of(config, *pair) == DEFAULTS[pair[0]][pair[1]] for pair in others)


def test_the_command_line_is_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    """An option that was not given (None) changes nothing."""
    path = written(tmp_path, '[api]\nport = 1\nhost = "localhost"\n[store]\ndata_dir = "of-the-file"\n')
    environ = {"ONCELAKE_API__PORT": "2", "ONCELAKE_STORE__DATA_DIR": "of-the-environment"}
    config = load_config(path, environ=environ, overrides={"api.port": 3, "store.data_dir": None})
    assert (config.api.port, config.store.data_dir, config.api.host) == (3, "of-the-environment", "localhost")


def test_config_toml_of_the_working_directory_is_read_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it is not, the defaults hold."""
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()
    Path("config.toml").write_text("[api]\nport = 9\n")
    assert load_config().api.port == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[stor]\n", ["[stor]", "'store'"]),
        ("[store]\nfsnyc = true\n", ["store.fsnyc", "'fsync'"]),
        ("[alerts]\nby_units = {}\n", ["alerts.by_units", "'by_unit'"]),
        ("[api]\nzzzzzz = 1\n", ["api.zzzzzz", "known are host, port"]),
        ("store = 1\n", ["store is a section", "[store]"]),
        ("[api]\nport = '8000'\n", ["api.port", "expected `int`"]),
        ("[api]\nport = 65536\n", ["api.port", "<= 65535"]),
        ("[api]\nport = -1\n", ["api.port", ">= 0"]),
        ("[api]\nmax_body_bytes = 1.5\n", ["api.max_body_bytes", "expected `int`"]),
        ("[store]\nfsync = 1\n", ["store.fsync", "expected `bool`"]),
        ("[store]\nflush_rows = 0\n", ["store.flush_rows", ">= 1"]),
        ("[store]\nflush_interval_s = 0.0\n", ["store.flush_interval_s", "> 0"]),
        ("[ingest]\nunknown_fields = 'drop'\n", ["ingest.unknown_fields", "'drop'"]),
        ("[outbox]\nretention = '3 weeks'\n", ["'3 weeks'", '"30d"']),
        ("[alerts]\nby_unit = 5\n", ["alerts.by_unit", "expected `object`"]),
        ("[api\n", ["line 1"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    """The key, what is allowed, and for an unknown one the nearest that there is."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("ONCELAKE_API__PROT", "1", "'port'"),
        ("ONCELAKE_APO__PORT", "1", "'api'"),
        ("ONCELAKE_API__PORT", "eighty", "cannot be read: api.port is a whole number"),
        ("ONCELAKE_API__PORT", "true", "expected `int`"),
        ("ONCELAKE_STORE__FSYNC", "yes", "cannot be read: store.fsync is true or false"),
        ("ONCELAKE_ALERTS__BY_UNIT", "SEK=5", "as in { SEK ="),
        ("ONCELAKE_STORE__DATA_DIR", "", "length >= 1"),
        ("ONCELAKE_ALERTS__THRESHOLD", "1e3", "no plain decimal"),
        ("ONCELAKE_LOG__LEVEL", "loud", "'loud'; it can be 'debug' or 'info' or 'warning' or 'error'"),
        ("ONCELAKE_STORE__QUERY_MEMORY", "lots", 'as in "192MB"'),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_the_variable(name: str, text: str, words: str) -> None:
    """So that it is not looked for in the file."""
    with pytest.raises(ConfigError) as error:
        load_config(DOCUMENTED, environ={name: text})
    assert name in str(error.value) and words in str(error.value)


def test_other_variables_of_ours_are_no_keys() -> None:
    """Only two underscores make a key: tests and scripts have variables of their own."""
    assert load_config(DOCUMENTED, environ={"ONCELAKE_TEST_KILLS": "3", "HOME": "/"}) == Config()


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    """Where one was asked for; so is one that is no text."""
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        load_config(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("written_as", "text"),
    [
        ('"10000"', "10000"),
        ('"0.100000000"', "0.1"),
        ('"99999999999999999999.999999999"', "99999999999999999999.999999999"),
        ('"1.0"', "1"),
        ('"0.0"', "0"),
        ('"-0"', "0"),
        ('"-0.0"', "0"),
        ('"-5.50"', "-5.5"),
        ("10000", "10000"),
        ("0", "0"),
    ],
)
def test_thresholds_are_exact_and_canonical(tmp_path: Path, written_as: str, text: str) -> None:
    """To the last digit, and written as every other decimal that leaves the service; also those by unit."""
    path = written(tmp_path, f'[alerts]\nthreshold = {written_as}\nby_unit = {{ "SEK" = {written_as} }}\n')
    config = load_config(path)
    assert config.alerts.threshold == config.alerts.by_unit["SEK"] == text


@pytest.mark.parametrize(
    "written_as",
    ["10000.5", "1e3", "inf", "true", '"1e3"', '" 1"', '"1,5"', '"0.0000000001"', '"100000000000000000000"', '"NaN"',
     '"01"', '""', '"٣"', "[]", "2024-03-01"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["threshold = {}", "by_unit = {{ SEK = {} }}", 'by_destination = {{ "d" = {} }}'])
def test_a_threshold_that_is_not_exact_is_refused(tmp_path: Path, key: str, written_as: str) -> None:
    """A TOML float is binary, and what is out of the range of values can never be exceeded."""
    with pytest.raises(ConfigError, match=r"alerts\."):
        load_config(written(tmp_path, f"[alerts]\n{key.format(written_as)}\n"))


@given(st.decimals(min_value=0, max_value=10**20 - 1, places=9, allow_nan=False))
def test_any_exact_threshold_keeps_its_value(value: Any) -> None:
    """Whatever digits it has."""
    config = load_config(DOCUMENTED, overrides={"alerts.threshold": format(value, "f")})
    assert type(value)(config.alerts.threshold) == value


@pytest.mark.parametrize("memory", ["lots", "", "12", "-1GB", "5 parsecs"])
def test_a_size_of_memory_that_the_engine_cannot_read_is_refused(tmp_path: Path, memory: str) -> None:
    """Here, and not by a stack trace of the engine's once the store is open."""
    with pytest.raises(ConfigError, match=r"store\.query_memory"):
        load_config(written(tmp_path, f'[store]\nquery_memory = "{memory}"\n'))


@pytest.mark.parametrize("seconds", ["inf", "nan"])
def test_an_endless_time_is_refused(tmp_path: Path, seconds: str) -> None:
    """TOML can write them, and nothing can wait for them."""
    with pytest.raises(ConfigError, match=r"store\.flush_interval_s"):
        load_config(written(tmp_path, f"[store]\nflush_interval_s = {seconds}\n"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("forever", None), ("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)]
)
def test_a_retention_is_a_number_with_its_unit(text: str, seconds: float | None) -> None:
    """Or forever."""
    assert retention_s(text) == seconds


@pytest.mark.parametrize("text", ["30", "d", "1.5d", "-1d", "30 d", "30D", ""])
def test_a_retention_of_any_other_form_is_refused(text: str) -> None:
    """With an example of how to write it."""
    with pytest.raises(ConfigError, match="30d"):
        retention_s(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2", "127.255.255.254"])
def test_loopback_is_served_without_tokens(host: str) -> None:
    """Nobody but this machine can reach it."""
    check_bind(load_config(DOCUMENTED, overrides={"api.host": host}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "128.0.0.1", "127.0.0.1.nip.io"])
def test_another_host_is_served_only_where_anyone_is_allowed(host: str) -> None:
    """The message says which key that is."""
    with pytest.raises(ConfigError, match="allow_anonymous"):
        check_bind(load_config(DOCUMENTED, overrides={"api.host": host}))
    check_bind(load_config(DOCUMENTED, overrides={"api.host": host, "api.allow_anonymous": True}))
    check_bind(load_config(DOCUMENTED, environ={"ONCELAKE_TOKENS": f"[{INLINE}]"}, overrides={"api.host": host}))


HASH = "sha256:" + "0123456789abcdef" * 4
INLINE = f'{{ name = "a", role = "ingest", hash = "{HASH}", sources = ["source-a"] }}'
TOKEN = f'[[tokens]]\nname = "a"\nrole = "ingest"\nhash = "{HASH}"\nsources = ["source-a"]\n'


def test_the_commented_token_of_the_file_has_every_key(tmp_path: Path) -> None:
    """Uncommented it is a table as `oncelake token` prints it."""
    commented = re.findall(r"^# (\w+ = .*)$", DOCUMENTED.read_text("utf-8").split("# [[tokens]]")[1], re.MULTILINE)[:4]
    (token,) = load_config(written(tmp_path, "[[tokens]]\n" + "\n".join(commented))).tokens
    assert token == Token("a", "ingest", HASH, ("source-a",))


def test_tokens_come_from_the_file_or_all_at_once_from_the_environment(tmp_path: Path) -> None:
    """The variable replaces those of the file."""
    path = written(tmp_path, TOKEN + TOKEN.replace('"a"', '"b"', 1).replace("0", "f"))
    assert [token.name for token in load_config(path).tokens] == ["a", "b"]
    (token,) = load_config(path, environ={"ONCELAKE_TOKENS": f"[{INLINE}]"}).tokens
    assert token == Token("a", "ingest", HASH, ("source-a",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOKEN.replace("ingest", "root"), ["tokens[0].role", "'root'"]),
        (TOKEN.replace('"ingest"', '"read"'), ["tokens[0] (a)", "sources bind a token that only ingests"]),
        (TOKEN.replace(HASH, "olk_secret"), ["tokens[0] (a)", "the token itself"]),
        (TOKEN.replace(HASH, "sha256:abc"), ["tokens[0] (a)", "64 hexadecimal digits"]),
        (TOKEN.replace(HASH, HASH.upper()), ["tokens[0] (a)", "64 hexadecimal digits"]),
        (TOKEN + TOKEN.replace("0", "f"), ["tokens[1] (a)", "the same name"]),
        (TOKEN + TOKEN.replace('"a"', '"b"', 1), ["tokens[1] (b)", "the same token"]),
        (TOKEN.replace('"a"', '"a\\n"', 1), ["control character"]),
        (TOKEN.replace('"a"', '""', 1), ["tokens[0].name"]),
        (TOKEN.replace("sources", "source"), ["tokens.source", "'sources'"]),
        (TOKEN.replace("[[tokens]]", "[tokens]"), ["[[tokens]]"]),
        ('[ingest]\ninbox_sources = { "../x" = ["a"] }\n', ["inbox_sources", "'../x'"]),
        ('[ingest]\ninbox_sources = { "/x" = ["a"] }\n', ["inbox_sources", "'/x'"]),
        ('[ingest]\ninbox_sources = { "x/" = ["a"] }\n', ["inbox_sources", "'x/'"]),
        ('[ingest]\ninbox_sources = { "" = ["a"] }\n', ["inbox_sources", "''"]),
        ('[ingest]\ninbox_sources = { "x" = [] }\n', ["inbox_sources", "no source"]),
    ],
)
def test_what_is_wrong_with_a_token_or_a_folder_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    """And no secret with it."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(word in str(error.value) for word in [*words, str(path)]), str(error.value)
    assert "olk_secret" not in str(error.value)


def test_a_broken_variable_of_tokens_is_not_repeated() -> None:
    """It may hold what nobody is to read in a log."""
    with pytest.raises(ConfigError, match="ONCELAKE_TOKENS is no TOML array") as error:
        load_config(environ={"ONCELAKE_TOKENS": "[{ hash = olk_secret }]"})
    assert "olk_secret" not in str(error.value)


def test_a_shown_configuration_holds_no_hash(tmp_path: Path) -> None:
    """Only that there is one."""
    found = shown(load_config(written(tmp_path, TOKEN)))["tokens"]
    assert list(found) == [{"name": "a", "role": "ingest", "hash": "***", "sources": ("source-a",)}]


FORWARD = '[[forward]]\nname = "billing"\nurl = "http://127.0.0.1:9000/hook"\n'


def test_the_commented_table_of_the_file_is_one_with_the_defaults(tmp_path: Path) -> None:
    """Arrays have no default, so config.toml shows a table as comments: uncommented it loads, and no key lacks."""
    lines = DOCUMENTED.read_text("utf-8").partition("# [[forward]]")
    text = "".join(line.removeprefix("# ") + "\n" for line in ("# " + lines[1][2:] + lines[2]).splitlines())
    (table,) = load_config(written(tmp_path, text)).forward
    assert set(tomllib.loads(text)["forward"][0]) == set(Forward.__struct_fields__)
    expected = Forward("billing", "http://127.0.0.1:9000/hook", batch=100)
    assert table == expected


def test_tables_of_an_array_are_read_in_order(tmp_path: Path) -> None:
    """As many as there are."""
    text = FORWARD + FORWARD.replace("billing", "audit") + 'start = 7\nunit = "SEK"\nfeed = "alerts"\n'
    first, second = load_config(written(tmp_path, text)).forward
    assert (first.name, first.start, second.name, second.start, second.feed) == (
        "billing", "earliest", "audit", 7, "alerts",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("http://127.0.0.1:9000/hook", "webhook", {}),
        ("https://hooks.example/in?token=1", "webhook", {"token": "1"}),
        ("redis://127.0.0.1:6379/0?stream=notifications&channel=notifications", "redis",
         {"stream": "notifications", "channel": "notifications"}),
        ("nats://127.0.0.1:4222?stream=ONCELAKE&subject=oncelake.notifications", "nats",
         {"stream": "ONCELAKE", "subject": "oncelake.notifications"}),
        ("kafka://127.0.0.1:9092?topic=notifications", "kafka", {"topic": "notifications"}),
        ("amqp://user:password@127.0.0.1:5672/?exchange=oncelake&routing_key=notifications", "amqp",
         {"exchange": "oncelake", "routing_key": "notifications"}),
        ("s3://bucket/prefix?endpoint=http://127.0.0.1:8333", "objects", {"endpoint": "http://127.0.0.1:8333"}),
        ("file:///srv/out", "objects", {}),
    ],
)  # fmt: skip
def test_every_url_of_the_documentation_is_one(tmp_path: Path, url: str, kind: str, options: dict[str, str]) -> None:
    """As they are promised, to the letter; each makes its sink without asking its server."""
    (table,) = load_config(written(tmp_path, FORWARD.replace("http://127.0.0.1:9000/hook", url))).forward
    assert (table.kind, table.options()) == (kind, options)
    make_sink(table, "5f2c", Disk(fsync=False)).close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FORWARD.replace("[[forward]]", "[forward]"), ["array of tables", "[[forward]]"]),
        (FORWARD + "bach = 1\n", ["forward.bach", "'batch'"]),
        (FORWARD + FORWARD, ["forward[1]", "'billing' is taken"]),
        (FORWARD + "start = 'newest'\n", ["forward[0].start", "'newest'"]),
        (FORWARD.replace("http://", "gopher://"), ["forward[0] (billing)", "gopher", "http://"]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "redis://localhost/0"), ["?stream="]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "nats://localhost?stream=A"), ["?subject="]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "kafka://localhost?topic=A&acks=0"), ["'acks'", "topic"]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "redis://h/0?strem=A"), ["'strem'", "did you mean 'stream'"]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "s3://b/p?endpiont=http://h"), ["did you mean 'endpoint'"]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "file://srv/out"), ["file:///srv/out"]),
        (FORWARD.replace("http://127.0.0.1:9000/hook", "http://x:port/"), ["is no URL"]),
        (FORWARD + "secret = 'swordfish!'\n", ["secret", "env:NAME"]),
        (FORWARD.replace("billing", "../x"), ["forward[0].name"]),
        ("[[api]]\nport = 1\n", ["api is a section"]),
        ("forward = [1]\n", ["forward"]),
    ],
)
def test_what_is_wrong_in_a_table_is_named_with_the_table(tmp_path: Path, text: str, words: list[str]) -> None:
    """Its number and name, and what is allowed."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(word in str(error.value) for word in [*words, str(path)]), str(error.value)


def test_one_key_of_a_table_is_not_set_from_the_environment() -> None:
    """A variable would have to say which table it means."""
    with pytest.raises(ConfigError, match=r"\[\[forward\]\] are set all at once"):
        load_config(DOCUMENTED, environ={"ONCELAKE_FORWARD__NAME": "x"})


def test_what_is_secret_is_not_shown(tmp_path: Path) -> None:
    """Neither the secret of a webhook nor the password in a URL."""
    text = FORWARD + 'secret = "whsec_aGVq"\n' + FORWARD.replace("billing", "queue")
    text = text.replace("hook", "hook?token=t0ken", 1)
    text = text[::-1].replace("http://127.0.0.1:9000/hook"[::-1], "amqp://u:passw0rd@h/?routing_key=r"[::-1], 1)[::-1]
    found = str(shown(load_config(written(tmp_path, text))))
    assert "whsec" not in found and "passw0rd" not in found and "t0ken" not in found
    assert "amqp://u:***@h/?routing_key=r" in found and "http://127.0.0.1:9000/hook?***" in found


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """Each word of the variable and each line of the file is one."""
    (tmp_path / "secret").write_text("whsec_a\nwhsec_b\n")
    table = Forward("n", "http://h/", secret=("whsec_c", "env:MINE", f"file:{tmp_path}/secret"))
    assert table.secrets({"MINE": "whsec_d"}) == ("whsec_c", "whsec_d", "whsec_a", "whsec_b")
    with pytest.raises(ConfigError, match="MINE"):
        table.secrets({})
    with pytest.raises(ConfigError, match="none"):
        Forward("n", "http://h/", secret=f"file:{tmp_path}/none").secrets({})
