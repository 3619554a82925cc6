"""The files to run it with, and the tables of the operator's guide: what they name is there."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import parser
from service.config import Config, StoreConfig, load_config
from service.runtime import Lake

ROOT = Path(__file__).parents[2]
TOKENS = '[{ name = "a", role = "read", hash = "sha256:' + 64 * "0" + '" }]'


def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with what follows them."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], " ".join(line.split(" ", 1)[1].split())) for line in lines]


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in steps() if instruction == name]


def test_the_image_is_made_of_files_that_are_there() -> None:
    """And all of them pass .dockerignore; every package is among them."""
    sources = [source for rest in all_of("COPY") if "--from" not in rest for source in rest.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    passed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == passed
    packages = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert {name.split(".")[0] for name in json.loads(packages[1])} <= passed


def test_the_image_runs_a_command_that_there_is_and_is_not_root() -> None:
    """Its data is where the volume is, and the port is the one that is told."""
    assert all_of("USER")[-1] == "oncelake"
    command = json.loads(all_of("ENTRYPOINT")[-1]) + json.loads(all_of("CMD")[-1])
    found = parser().parse_args(command[1:])
    assert str(found.data) == all_of("VOLUME")[0] == "/data"
    assert str(found.port) == all_of("EXPOSE")[0]
    assert str(found.config) in {rest.split()[-1] for rest in all_of("COPY")}
    assert all_of("STOPSIGNAL") == ["SIGTERM"]
    assert f":{found.port}/health" in all_of("HEALTHCHECK")[0]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def test_compose_sets_keys_that_there_are() -> None:
    """The tokens are taken from outside; the sink is the Redis beside it; the data is in a volume."""
    service = compose()["services"]["oncelake"]
    environment = dict(service["environment"])
    assert environment["ONCELAKE_TOKENS"].startswith("${ONCELAKE_TOKENS:?")
    config = load_config(ROOT / "config.toml", environ={**environment, "ONCELAKE_TOKENS": TOKENS})
    assert [(table.name, table.feed) for table in config.forward] == [("redis", "notifications")]
    assert re.match(r"redis://(\w+):", config.forward[0].url)[1] in compose()["services"]  # type: ignore[index]
    assert [volume.split(":") for volume in service["volumes"]] == [["data", "/data"]]
    assert set(compose()["volumes"]) == {"data", "redis"}
    assert int(service["stop_grace_period"].removesuffix("s")) > config.api.shutdown_s
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_the_unit_runs_a_command_that_there_is() -> None:
    """It may write to its state directory and nowhere else, and has the time to end that the service takes."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(ROOT / "service/systemd/oncelake.service")
    service = unit["Service"]
    command = shlex.split(service["ExecStart"])
    found = parser().parse_args(command[1:])
    assert command[0].endswith("/.venv/bin/oncelake")
    assert str(found.data) == f"/var/lib/{service['StateDirectory']}"
    assert service["ProtectSystem"] == "strict" and service["DynamicUser"] == "yes"
    assert int(service["TimeoutStopSec"]) > Config().api.shutdown_s


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("metrics") / "data"
    lake = Lake(Config(store=StoreConfig(data_dir=str(root), fsync=False)))
    try:
        return lake.metrics.text()[0].decode()
    finally:
        lake.store.close()


def test_the_guide_lists_every_metric_as_it_is(metrics: str) -> None:
    """Name, type and meaning."""
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", metrics, re.MULTILINE))
    there = {(name, kind, helps[name]) for name, kind in types.items() if not name.endswith("_created")}
    guide = (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"^\| `(oncelake_\w+)` \| (\w+) \| (.*) \|$", guide, re.MULTILINE)) == there
