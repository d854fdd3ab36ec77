from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system import processes as holders
from pipeline.system.processes import (
    STALE_AFTER_S,
    at_work,
    has_open,
    process_name,
    started,
    this_process,
    user,
    user_name,
)

OLD = 10 * STALE_AFTER_S


def changed(**values: object) -> str:
    return json.dumps(json.loads(this_process()) | values)


def test_a_file_is_open_as_long_as_it_is_the_one_at_its_path(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for path in (file, other):
        path.write_text("content")
    assert not has_open(file)
    with file.open():
        assert has_open(file)
        assert not has_open(other)
        other.replace(file)
        assert not has_open(file)


def test_a_process_of_this_machine_is_at_work_however_old_its_ticket() -> None:
    assert at_work(this_process(), OLD)
    told = this_process(move="first")
    assert (at_work(told, OLD), json.loads(told)["move"]) == (True, "first")


def test_a_process_that_ended_is_not_however_young_its_ticket() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not at_work(changed(pid=ended.pid), 0)


def test_another_process_that_got_its_number_is_not_mistaken_for_it() -> None:
    assert not at_work(changed(born="1"), 0)


def test_a_process_that_ended_but_was_not_asked_after_is_not_at_work() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        born = started(child)
        while started(child) != "":
            pass
        assert not at_work(changed(pid=child, born=born), 0)
    finally:
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "holder",
    [
        changed(place="elsewhere"),
        changed(place="host pid:[4026531836]", born=1764340000.25),  # as the version before did
        *("", "{}", "[1]", "not JSON"),
    ],
    ids=["elsewhere", "of the version before", "nothing", "no keys", "a list", "not JSON"],
)
def test_one_that_cannot_be_asked_is_trusted_for_a_while(holder: str) -> None:
    assert at_work(holder, STALE_AFTER_S - 1)
    assert not at_work(holder, STALE_AFTER_S + 1)


def test_a_process_is_shown_by_number_and_host() -> None:
    assert process_name(changed(place="engine pid:[4]", pid=7)) == "process 7 on engine"
    assert process_name("[1]") == process_name("") == "a process that did not name itself"


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    assert user_name() == str(os.getuid())
    assert user().startswith(f"{os.getuid()}@")


def test_a_program_is_interrupted_once_and_may_clean_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, holders.interrupt)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # not again
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
