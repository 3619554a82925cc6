"""One sink, driven step by step with a clock that only moves when it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outbox.forwarder.backoff import delay_s
from outbox.forwarder.checkpoint import Checkpoint, Desk
from outbox.forwarder.forwarder import advance
from outbox.forwarder.sink import Found, Gone, Message, Rejected, Stale, Undelivered
from store.files import Disk
from tests.support.forwarding import STORE, Clock, ListSource, PlainSink, drive, line_of, lines_of, shipper


def seqs(messages: list[Any]) -> list[int]:
    return [message[0] for message in messages]


def checkpoint_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "internal/forward/sink.json").read_bytes())
    return found


def test_everything_arrives_once_in_order_to_the_byte(tmp_path: Path) -> None:
    """And in batches of the configured size."""
    source, sink = ListSource(lines_of(1, 1_234)), PlainSink()
    drive(shipper(tmp_path, source, sink=sink, batch=100), 1_234)
    assert [tuple(message) for message in sink.got] == source.lines
    assert max(sink.sizes) == 100


def test_the_checkpoint_moves_only_after_the_acknowledgement(tmp_path: Path) -> None:
    """What the sink does not take is not passed over."""
    sink = PlainSink()
    ship = shipper(tmp_path, ListSource(lines_of(1, 10)), sink=sink, batch=4)

    def look(messages: Any) -> None:
        assert ship.shipped == messages[0].seq - 1

    sink.answer = look
    drive(ship, 10)
    ship.close()
    assert checkpoint_of(tmp_path) == {
        "storeId": STORE, "feed": "notifications", "start": 0, "seq": 10, "sent": 10, "resent": 0, "disabled": "",
        "attempts": 3, "failures": 0, "state": "ok", "problem": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("start", "expected"), [("earliest", [1, 2, 3, 4, 5, 6]), ("latest", [5, 6]), (2, [3, 4, 5, 6])]
)
def test_a_new_sink_starts_where_it_is_told(tmp_path: Path, start: Any, expected: list[int]) -> None:
    """And keeps that start, however often it is begun before something is sent."""
    source, sink = ListSource(lines_of(1, 4)), PlainSink()
    sink.is_down = True
    first = shipper(tmp_path, source, sink=sink, start=start)
    first.step()
    first.close()
    source.lines = lines_of(1, 6)
    sink.is_down = False
    drive(shipper(tmp_path, source, sink=sink, start=start), 6)
    assert seqs(sink.got) == expected


def test_the_first_retry_comes_within_half_a_second_and_the_last_ones_every_minute() -> None:
    """Doubled each time, with up to half of it taken off by chance."""
    assert [delay_s(count, 0.0) for count in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert delay_s(1, 0.999) > 0.25 and delay_s(5_000, 0.999) > 30


def test_a_success_resets_the_waiting(tmp_path: Path) -> None:
    """The next failure is a first one again."""
    clock, sink = Clock(), PlainSink()
    source = ListSource(lines_of(1, 1))
    ship = shipper(tmp_path, source, sink=sink, clock=clock)
    sink.is_down = True
    waits = []
    for _ in range(4):
        waits.append(ship.step())
        clock.at += waits[-1]
    sink.is_down = False
    assert ship.step() == 0.0
    source.lines = lines_of(1, 2)
    sink.is_down = True
    assert [*waits, ship.step()] == [0.5, 1.0, 2.0, 4.0, 0.5]


def test_a_sink_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    """`Retry-After` is longer than our own waiting, and holds though we ask earlier."""
    clock, sink = Clock(), PlainSink()

    def later(messages: Any) -> None:
        raise Undelivered("429", retry_after_s=7.0)

    sink.answer = later
    ship = shipper(tmp_path, ListSource(lines_of(1, 1)), sink=sink, clock=clock)
    assert ship.step() == 7.0
    clock.at += 3.0
    assert ship.step() == 4.0
    assert sink.sizes == [1]


def test_a_day_of_outage_is_made_up_in_order(tmp_path: Path) -> None:
    """Nothing is lost or sent twice; it is asked at most once a minute or so, and only a batch is kept in memory."""
    clock, sink, source = Clock(), PlainSink(), ListSource([])
    ship = shipper(tmp_path, source, sink=sink, batch=50, clock=clock)
    source.lines = lines_of(1, 500)
    drive(ship, 500)
    sink.is_down = True
    steps, everything = 0, lines_of(1, 5_500)
    end = clock.at + 86_400
    while clock.at < end:
        source.lines = everything[: 501 + int(5_000 * (1 - (end - clock.at) / 86_400))]
        clock.at += ship.step()
        steps += 1
    assert 1_400 < steps < 1_500
    assert ship.status().lag_seqs == len(source.lines) - 500 and ship.status().lag_s > 80_000
    assert ship.status().state == "retrying"
    sink.is_down = False
    drive(ship, len(source.lines))
    assert [tuple(message) for message in sink.got] == source.lines
    assert source.most <= 50 and ship.status().lag_seqs == 0


def test_one_message_that_is_not_taken_becomes_a_dead_letter_and_the_others_pass(tmp_path: Path) -> None:
    """It is found by sending one by one, and can be sent again later."""
    sink, source = PlainSink(), ListSource(lines_of(1, 40))

    def picky(messages: Any) -> None:
        if 17 in seqs(messages):
            raise Rejected("400: I do not like 17")

    sink.answer = picky
    ship = shipper(tmp_path, source, sink=sink, batch=10, attempts=3)
    drive(ship, 40)
    assert seqs(sink.got) == [seq for seq in range(1, 41) if seq != 17]
    (letter,) = (tmp_path / "internal/forward/sink.dead.jsonl").read_bytes().splitlines()
    assert json.loads(letter)["seq"] == 17 and json.loads(letter)["error"] == "400: I do not like 17"
    assert letter.endswith(b'"message":' + line_of(17) + b"}")
    assert ship.status().dead_letter_bytes > 0

    ship.desk.ask_to_retry()
    drive(ship, 40)
    assert sink.again == [], "it still does not take it, and that stops nothing"
    sink.answer = lambda messages: None
    ship.desk.ask_to_retry()
    drive(ship, 40)
    assert [tuple(message) for message in sink.again] == [(17, line_of(17))]
    assert ship.status().dead_letter_bytes == 0


def test_a_dead_letter_that_is_refused_again_stays_and_holds_up_no_other(tmp_path: Path) -> None:
    """Nor does it cost messages that come meanwhile."""
    sink, source = PlainSink(), ListSource(lines_of(1, 30))
    sink.is_down = True
    ship = shipper(tmp_path, source, sink=sink, batch=10, attempts=2)
    drive(ship, 30)
    sink.is_down = False

    def picky(messages: Any) -> None:
        if 17 in seqs(messages) or 3 in seqs(messages):
            raise Rejected("no")

    sink.answer = picky
    source.lines = lines_of(1, 33)
    ship.desk.ask_to_retry()
    drive(ship, 33)
    assert sorted(seqs(sink.again)) == [seq for seq in range(1, 31) if seq not in (3, 17)]
    assert seqs(sink.got) == [31, 32, 33]
    letters = (tmp_path / "internal/forward/sink.dead.jsonl").read_bytes().splitlines()
    assert [json.loads(letter)["seq"] for letter in letters] == [3, 17]
    sink.answer = lambda messages: None
    ship.desk.ask_to_retry()
    drive(ship, 33)
    assert seqs(sink.again)[-2:] == [3, 17] and ship.status().dead_letter_bytes == 0


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("length", [12, 200_000])
def test_a_dead_letter_that_a_power_cut_tore_does_not_spoil_the_next(tmp_path: Path, before: int, length: int) -> None:
    """It is cut off: the letters go out again when they are asked for, and the sink goes on."""
    sink = PlainSink()
    desk = Desk(tmp_path, "sink", Disk(fsync=False))
    desk.folder.mkdir(parents=True)
    path = tmp_path / "internal/forward/sink.dead.jsonl"
    desk.bury([Message(*line) for line in lines_of(1, before)], "down")
    path.write_bytes(path.read_bytes() + b'{"seq":2,"error":"'.ljust(length, b"x"))
    desk.bury([Message(2, line_of(2))], "down")
    assert [json.loads(letter)["seq"] for letter in path.read_bytes().splitlines()] == [1, 2][1 - before :]
    ship = shipper(tmp_path, ListSource(lines_of(1, 4)), sink=sink, start=2)
    ship.desk.ask_to_retry()
    drive(ship, 4)
    assert seqs(sink.again) == [1, 2][1 - before :] and seqs(sink.got) == [3, 4]


def test_dead_letters_that_could_not_be_synced_are_not_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken back, because they are buried anew."""
    desk = Desk(tmp_path, "sink", Disk(fsync=False))
    desk.folder.mkdir(parents=True)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr("store.files.Appender.sync", out_of_room)
        desk.bury([Message(1, line_of(1))], "down")
    desk.bury([Message(1, line_of(1))], "down")
    assert len((tmp_path / "internal/forward/sink.dead.jsonl").read_bytes().splitlines()) == 1


def test_without_a_limit_nothing_is_given_up(tmp_path: Path) -> None:
    """A sink that refuses one message is asked for ever, in order."""
    sink, clock = PlainSink(), Clock()

    def never(messages: Any) -> None:
        raise Rejected("no")

    sink.answer = never
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    for _ in range(300):
        clock.at += ship.step()
    assert ship.shipped == 0 and ship.status().dead_letter_bytes == 0


def test_with_a_limit_a_dead_sink_costs_dead_letters_and_no_order(tmp_path: Path) -> None:
    """Also where it cannot even be connected to; they go out again in order."""
    sink = PlainSink()
    sink.is_down = True
    ship = shipper(tmp_path, ListSource(lines_of(1, 25)), sink=sink, batch=10, attempts=2)
    drive(ship, 25)
    sink.is_down = False
    ship.desk.ask_to_retry()
    drive(ship, 25)
    assert seqs(sink.again) == list(range(1, 26)) and sink.got == []


def test_a_sink_that_is_gone_is_disabled_until_it_is_asked_for_again(tmp_path: Path) -> None:
    """Also over a restart; nothing is skipped."""
    clock, sink = Clock(), PlainSink()

    def gone(messages: Any) -> None:
        raise Gone("410")

    sink.answer = gone
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    for _ in range(5):
        clock.at += ship.step()
    assert sink.sizes == [3] and ship.status().state == "disabled"
    ship.close()
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    clock.at += ship.step()
    assert sink.sizes == [3]
    sink.answer = lambda messages: None
    ship.desk.ask_to_retry()
    drive(ship, 3)
    assert seqs(sink.got) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"unit": "EUR"}, [2, 4, 6, 8, 10]),
        ({"unit": ["SEK", "EUR"]}, list(range(1, 11))),
        ({"destination": ["d3"]}, [3, 10]),
        ({"source": "s0", "unit": "SEK"}, [3, 9]),
        ({"unit": "JPY"}, []),
    ],
)
def test_a_filter_lets_through_what_it_names(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    """And the checkpoint passes the others."""
    sink = PlainSink()
    source = ListSource([(seq, line_of(seq, unit="SEK" if seq % 2 else "EUR")) for seq in range(1, 11)])
    drive(shipper(tmp_path, source, sink=sink, batch=2, **options), 10)
    assert seqs(sink.got) == expected


def test_the_gaps_of_an_alert_feed_are_passed(tmp_path: Path) -> None:
    """The checkpoint follows the store, not only the alerts."""
    sink, source = PlainSink(), ListSource([(3, line_of(3)), (9, line_of(9))], newest=20)
    drive(shipper(tmp_path, source, sink=sink, feed="alerts"), 20)
    assert seqs(sink.got) == [3, 9]


def test_a_checkpoint_of_another_store_is_refused(tmp_path: Path) -> None:
    """With words that say what to do; nothing is sent."""
    sink = PlainSink()
    Desk(tmp_path, "sink", Disk()).folder.mkdir(parents=True)
    Desk(tmp_path, "sink", Disk()).save(Checkpoint("other", "notifications", 0, 0))
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink)
    ship.step()
    assert ship.status().state == "refused" and "another store" in ship.status().problem and sink.got == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_checkpoint_that_cannot_be_read_is_the_problem_of_its_sink(tmp_path: Path, is_folder: bool) -> None:
    """Before the first step and after it; nothing is sent until it is restored or removed."""
    sink, clock = PlainSink(), Clock()
    path = tmp_path / "internal/forward/sink.json"
    path.parent.mkdir(parents=True)
    path.mkdir() if is_folder else path.write_bytes(b"garbage")
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    for state in ("starting", "retrying", "retrying"):
        told = ship.status()
        assert (told.state, told.seq, told.lag_seqs) == (state, 0, 3) and str(path) in told.problem
        clock.at += advance(ship)
    path.rmdir() if is_folder else path.unlink()
    drive(ship, 3)
    assert seqs(sink.got) == [1, 2, 3] and ship.status().problem == ""


def test_a_checkpoint_ahead_of_the_store_is_refused(tmp_path: Path) -> None:
    """A store that was restored from a backup gives the same seqs to other records."""
    sink = PlainSink()
    ship = shipper(tmp_path, ListSource(lines_of(1, 9)), sink=sink)
    drive(ship, 9)
    ship.close()
    ship = shipper(tmp_path, ListSource(lines_of(1, 5)), sink=sink)
    ship.step()
    assert ship.status().state == "refused"
    assert "ahead of the store" in ship.status().problem and "backup" in ship.status().problem


@pytest.mark.parametrize(
    ("found", "word"), [(Found(9), "ahead"), (Found(3, line_of(3, salt="x")), "another message under seq 3")]
)
def test_a_sink_that_holds_what_this_store_never_wrote_is_refused(tmp_path: Path, found: Found, word: str) -> None:
    """By its seq, or by the bytes under the seq."""
    sink = PlainSink()
    sink.found = found
    ship = shipper(tmp_path, ListSource(lines_of(1, 5)), sink=sink)
    ship.step()
    assert ship.status().state == "refused" and word in ship.status().problem and sink.got == []


def test_a_sink_that_holds_more_than_was_acknowledged_is_gone_on_with(tmp_path: Path) -> None:
    """The forwarder was killed between the acknowledgement and the checkpoint."""
    sink = PlainSink()
    sink.found = Found(3, line_of(3))
    drive(shipper(tmp_path, ListSource(lines_of(1, 5)), sink=sink), 5)
    assert seqs(sink.got) == [4, 5]


def test_what_a_sink_lost_is_sent_again(tmp_path: Path) -> None:
    """A server that forgot what it had acknowledged gets it once more, but nothing from before the start."""
    sink = PlainSink()
    ship = shipper(tmp_path, ListSource(lines_of(1, 9)), sink=sink, start=2)
    drive(ship, 9)
    ship.close()
    sink.got, sink.found = [], Found(0)
    ship = shipper(tmp_path, ListSource(lines_of(1, 9)), sink=sink, start=2)
    ship.step()
    drive(ship, 9)
    assert seqs(sink.got) == [3, 4, 5, 6, 7, 8, 9]


def test_a_stale_view_of_the_sink_is_looked_up_at_once(tmp_path: Path) -> None:
    """An attempt that timed out and went through after all costs no waiting."""
    sink, clock = PlainSink(), Clock()

    def stale(messages: Any) -> None:
        sink.found = Found(2, line_of(2))
        sink.answer = lambda messages: None
        raise Stale("there is more")

    sink.answer = stale
    ship = shipper(tmp_path, ListSource(lines_of(1, 4)), sink=sink, clock=clock)
    assert ship.step() == 0.0
    drive(ship, 4)
    assert seqs(sink.got) == [3, 4]


def test_two_processes_never_ship_for_the_same_sink(tmp_path: Path) -> None:
    """The second one waits for the lock, and takes over."""
    sink = PlainSink()
    first = shipper(tmp_path, ListSource(lines_of(1, 4)), sink=sink)
    drive(first, 4)
    second = shipper(tmp_path, ListSource(lines_of(1, 6)), sink=sink)
    second.step()
    second._clock.at += 60  # type: ignore[attr-defined]
    assert second.status().state == "elsewhere" and second.status().seq == 4
    assert (second.status().lag_seqs, second.status().attempts) == (2, 1) and second.status().lag_s > 0
    first.close()
    drive(second, 6)
    assert seqs(sink.got) == [1, 2, 3, 4, 5, 6]


def test_how_it_goes_stands_in_the_checkpoint(tmp_path: Path) -> None:
    """For `oncelake status`, which asks no process: failures while they last, and that it is over."""
    sink, clock = PlainSink(), Clock()
    sink.is_down = True
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    for _ in range(3):
        clock.at += ship.step()
    told = checkpoint_of(tmp_path)
    assert (told["state"], told["problem"], told["failures"], told["seq"]) == ("retrying", "nobody answers", 3, 0)
    sink.is_down = False
    drive(ship, 3)
    clock.at += ship.step()
    told = checkpoint_of(tmp_path)
    assert (told["state"], told["problem"], told["attempts"], told["seq"]) == ("ok", "", 1, 3)


def test_a_full_disk_does_not_end_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint cannot be kept, and is later."""
    sink, clock = PlainSink(), Clock()
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock)
    sink.is_down = True
    clock.at += ship.step()
    sink.is_down = False

    def full(checkpoint: Checkpoint) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ship.desk, "save", full)
        for _ in range(5):
            clock.at += ship.step()
        assert ship.status().state == "retrying" and "No space left" in ship.status().problem
    drive(ship, 3)
    clock.at += ship.step()
    assert checkpoint_of(tmp_path)["seq"] == 3 and seqs(sink.got) == [1, 2, 3]


def out_of_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["bury", "save"])
def test_a_full_disk_does_not_end_a_sink_that_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What the dead letters cannot take is not passed over; with room again it is, and once."""
    sink, clock = PlainSink(), Clock()
    ship = shipper(tmp_path, ListSource(lines_of(1, 3)), sink=sink, clock=clock, attempts=1)
    source, ship._source = ship._source, ListSource([])
    ship.step()  # its first checkpoint
    ship._source, sink.is_down, clock.at = source, True, clock.at + 1
    with monkeypatch.context() as patched:
        patched.setattr(ship.desk, call, out_of_room)
        for step in range(5):
            wait = advance(ship)
            assert wait > 0 and ship.status().state == "retrying" and checkpoint_of(tmp_path)["seq"] == 0
            assert step or "No space left" in ship.status().problem
            clock.at += wait
    drive(ship, 3)
    letters = (tmp_path / "internal/forward/sink.dead.jsonl").read_bytes().splitlines()
    assert [json.loads(letter)["seq"] for letter in letters] == [1, 2, 3]
    clock.at += ship.step()
    assert checkpoint_of(tmp_path)["seq"] == 3 and sink.got == []


@pytest.mark.parametrize("call", ["bury", "save"])
def test_a_full_disk_does_not_end_a_sink_whose_dead_letter_is_refused_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The letter stays where it is, until it can stand at the end."""
    sink, clock = PlainSink(), Clock()

    def never(messages: Any) -> None:
        raise Rejected("no")

    sink.answer = never
    ship = shipper(tmp_path, ListSource(lines_of(1, 1)), sink=sink, clock=clock, attempts=1)
    drive(ship, 1)
    ship.desk.ask_to_retry()
    clock.at += 1
    with monkeypatch.context() as patched:
        patched.setattr(ship.desk, call, out_of_room)
        for step in range(5):
            wait = advance(ship)
            assert wait > 0 and "No space left" in ship.status().problem, step
            clock.at += wait
    drive(ship, 1)
    letters = (tmp_path / "internal/forward/sink.dead.jsonl").read_bytes().splitlines()
    assert [json.loads(letter)["seq"] for letter in letters] == [1]


def test_a_sink_that_is_gone_while_the_disk_is_full_stays_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked again, and once there is room a restart knows it too."""
    sink, clock = PlainSink(), Clock()

    def gone(messages: Any) -> None:
        raise Gone("410")

    sink.answer = gone
    source = ListSource([])
    ship = shipper(tmp_path, source, sink=sink, clock=clock)
    clock.at += ship.step()
    source.lines = lines_of(1, 3)
    with monkeypatch.context() as patched:
        patched.setattr(ship.desk, "save", out_of_room)
        for step in range(5):
            wait = advance(ship)
            assert wait > 0 and "No space left" in ship.status().problem, step
            clock.at += wait
    clock.at += ship.step()
    assert ship.status().state == "disabled" and checkpoint_of(tmp_path)["disabled"] == "410"
    assert sink.sizes == [3]


@pytest.mark.parametrize(("url", "most"), [("http://127.0.0.1:9/", 1 << 20), ("file:///x", 32 << 20)])
def test_a_batch_is_bounded_in_bytes_too(tmp_path: Path, url: str, most: int) -> None:
    """However many messages it may have: what waits for a sink is at most that and one line."""
    sizes: list[int] = []
    sink = PlainSink(lambda messages: sizes.append(sum(len(message.line) for message in messages)))
    filler = "x" * 200_000
    lines = [(seq, line_of(seq, salt=filler)) for seq in range(1, 400)]
    drive(shipper(tmp_path, ListSource(lines), url, sink=sink, batch=10_000, linger_s=0.0), 399)
    assert seqs(sink.got) == list(range(1, 400))
    assert max(sizes) <= most + len(lines[0][1]) and max(sizes) > most // 2
