"""The docs are tested like code: what they name exists, and what exists is named."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import record
from ingest.record import parse_record
from tests.support.model import canonical

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "ingest", "outbox", "service", "store")
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCS]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_TERM = re.compile(r"^- \*\*(.+?)\*\*: .+\.$")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _prose(name: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", _text(name))


def _blocks(name: str, *languages: str) -> list[str]:
    return [body for language, body in _FENCE.findall(_text(name)) if language in languages]


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _modules() -> set[str]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py"}


def _first_cells(text: str) -> list[str]:
    """What stands in backticks in the first column of the tables of a text."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def _section(name: str, heading: str) -> str:
    """The text under a heading, down to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", _prose(name), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{name} has no section {heading!r}"
    return found[1]


def _keys(table: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_a_file_and_a_heading(name: str) -> None:
    """A link to a file or to a heading that is not there is a broken promise."""
    broken = []
    for link in _LINK.findall(_prose(name)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_json_examples_parse(name: str) -> None:
    """An example that a reader copies is JSON."""
    for body in _blocks(name, "json"):
        json.loads(body)


@pytest.mark.parametrize("name", NAMES)
def test_docs_name_no_line_numbers_and_no_machine(name: str) -> None:
    """Line numbers and paths of one machine are wrong on the next day, and on the next machine."""
    text = re.sub(r"`oncelake verify --data /backup/data`|cp -a data /backup/data", "", _text(name))
    assert not re.search(r"\.py:\d+|\bline \d+ of\b|/(?:work|home|root|Users)/", text)


def test_the_module_table_lists_every_module_once() -> None:
    """Whoever looks for a module finds it in the architecture, and nothing that is not there."""
    listed = _first_cells(_section("docs/architecture.md", "Modules"))
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == _modules()


def test_the_glossary_has_every_term_once_and_in_order() -> None:
    """One word, one meaning."""
    lines = [line for line in _text("docs/glossary.md").splitlines() if line.startswith("- ")]
    terms = [found[1] for line in lines if (found := _TERM.match(line))]
    assert len(terms) == len(lines), "a line of the glossary is not `- **term**: meaning.`"
    folded = [term.casefold() for term in terms]
    assert folded == sorted(set(folded))


@pytest.mark.parametrize(
    "word",
    "record batch commit seq frame journal catalog log segment run flush compaction snapshot".split()
    + "outbox feed sink checkpoint receipt input part chunk".split()
    + ["hot rows", "dead letter"],
)
def test_the_words_of_the_house_are_in_the_glossary(word: str) -> None:
    """The house style names these words; their meaning stands in one place."""
    assert f"- **{word}**: " in _text("docs/glossary.md")


def test_the_error_codes_are_those_of_the_code() -> None:
    """The table of codes in the formats has exactly the codes of `ingest.record`."""
    section = _section("docs/formats.md", "Error codes")
    documented = _first_cells(section.split("whole body")[0])
    assert documented == _first_cells(record.__doc__ or "")


def test_every_code_of_an_unreadable_input_is_documented() -> None:
    """The code that a receipt or a problem names can be looked up."""
    raised = {
        code
        for path in ("ingest/files.py", "store/errors.py")
        for code in re.findall(r'\bcode\s*=\s*"(\w+)"', _text(path))
    }
    documented = set(_first_cells(_section("docs/formats.md", "Error codes")))
    assert raised - {"invalid_input"} <= documented


def test_every_problem_code_is_documented() -> None:
    """A client can look up every code that the API answers with."""
    found = set()
    for path in ("api/problems.py", "api/records.py"):
        found |= set(re.findall(r'\b(?:problem|ProblemError)\(\s*\d+,\s*"(\w+)"', _text(path)))
    assert {"conflict", "disk_full"} <= found
    documented = re.findall(
        r"`(\w+)`", " ".join(re.findall(r"^\| (`.+?`) \| \d", _section("docs/formats.md", "Problems"), re.M))
    )
    assert found <= set(documented)


def test_every_config_key_is_explained() -> None:
    """Each key stands under a comment, or beside one, in config.toml; a blank line ends what a comment explains."""
    section, explained, seen = "", False, set()
    unexplained = []
    for line in _text("config.toml").splitlines():
        if found := re.match(r"\[+([\w.]+)\]+", line):
            section, explained = found[1], False
        elif found := re.match(r'"?([\w-]+)"?\s*=', line):
            key = f"{section}.{found[1]}"
            seen.add(key)
            if not explained and "#" not in line:
                unexplained.append(key)
        else:
            explained = line.startswith("#")
    assert not unexplained
    assert set(_keys(tomllib.loads(_text("config.toml")))) <= seen


def test_config_keys_that_the_docs_name_exist() -> None:
    """A key that the docs tell to set is one that the configuration has."""
    import msgspec

    from service.config import Config

    sections = {field.encode_name: field.type for field in msgspec.structs.fields(Config)}
    known = {
        f"{section}.{field.encode_name}"
        for section, kind in sections.items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        for field in msgspec.structs.fields(kind)
    }
    assert known >= {"store.fsync", "api.port"}
    pattern = re.compile(rf"`((?:{'|'.join(sections)})\.[a-z_]+)\b(?!\.)")
    named = {key for name in NAMES for key in pattern.findall(_text(name))}
    modules = {module.removesuffix(".py").replace("/", ".") for module in _modules()}
    assert named - known - modules == set()


def test_commands_of_the_readme_exist() -> None:
    """Every command that the README names answers to `--help`."""
    from service import cli

    named = set(re.findall(r"^\| `oncelake ([a-z-]+)", _text("README.md"), re.MULTILINE))
    assert {"serve", "ingest", "verify"} <= named
    missing = []
    for command in sorted(named):
        try:
            cli.main([command, "--help"])
        except SystemExit as end:
            if end.code:
                missing.append(command)
    assert not missing


def test_make_targets_of_the_readme_exist() -> None:
    """`make` knows what the README tells to make."""
    named = set(re.findall(r"`make ([a-z]+)`", _text("README.md"))) | {"run", "test"}
    assert named <= set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))


def test_samples_that_the_readme_copies_exist() -> None:
    """The command that a newcomer pastes finds its file."""
    named = re.findall(r"data/samples/[\w.-]+", _text("README.md"))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_sample_record_of_the_readme_is_what_its_notification_says() -> None:
    """The record that the README posts is accepted, and is the one in the notification that it shows."""
    from ingest.record import Rules

    sent = re.search(r"-d '(\{.*?\})'", _text("README.md"), re.DOTALL)
    assert sent is not None
    found = parse_record(sent[1].encode(), Rules())
    examples = [json.loads(body) for body in _blocks("README.md", "json")]
    notification = next(example for example in examples if "previous" in example)
    aggregation = next(example for example in examples if "groups" in example)
    assert notification["record"] == canonical(tuple(found))  # type: ignore[arg-type]
    assert aggregation["groups"][0]["records"] == [{"seq": 1, **notification["record"]}]


def test_the_tail_of_the_readme_tells_committed_lines_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program that the README offers to downstream reads each committed line once, and none above it."""
    feed = tmp_path / "data/outbox/notifications"
    feed.mkdir(parents=True)
    lines = [json.dumps({"seq": seq, "record": {"recordId": f"r{seq}"}}) + "\n" for seq in range(1, 8)]
    (feed / f"{1:020d}.jsonl").write_text("".join(lines[:3]))
    (feed / f"{4:020d}.jsonl").write_text("".join(lines[3:6]) + lines[6][:9])
    passes = iter([2, 5, 5, 6])

    class Done(Exception):
        pass

    def commit(_: float = 0.0) -> None:
        if (seq := next(passes, None)) is None:
            raise Done
        (feed / "committed.json").write_text(json.dumps({"seq": seq}))

    commit()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", commit)
    (program,) = (block for block in _blocks("README.md", "python") if "committed.json" in block)
    with pytest.raises(Done):
        exec(compile(program, "README.md", "exec"), {})  # noqa: S102  (our own README)
    assert capsys.readouterr().out.splitlines() == [f"{seq} r{seq}" for seq in range(1, 7)]
