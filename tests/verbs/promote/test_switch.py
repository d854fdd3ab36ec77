"""The protocol that moves the champion: in memory, and on real stores.

On these it is killed after every request, and raced for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.processes import this_process
from pipeline.tracking.client import connect
from pipeline.tracking.registry import Registry
from pipeline.tracking.values import (
    ATTEMPT,
    ATTEMPT_KEY,
    CHALLENGER,
    CHAMPION,
    DONE,
    HOLDER,
    PENDING,
    PREVIOUS,
    REPLACES,
    STATE,
    TARGET,
    Present,
    Version,
)
from pipeline.verbs.promote.ledger import (
    ABANDONED,
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    Attempt,
    attempts_in,
    to_tag,
)
from pipeline.verbs.promote.switch import (
    BROKEN_OFF,
    Change,
    Outrun,
    settle,
    switch,
)
from tests.commands import mlflow_server
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.warm import call_warm

pytestmark = pytest.mark.slow

NAME = "digits"
DEAD = json.dumps(json.loads(this_process()) | {"born": 1.0})  # a PID that is another's by now


def attempt(number: int, replaces: int | None, decision: str = PROMOTED, **more: Any) -> Attempt:
    key = f"ledger.20260101T0000{number:02}000000Z.{number:08x}"
    made = Attempt(
        key=key,
        who="ada@engine",
        decision=decision,
        run_id=run(number),
        version=None,
        replaces=replaces,
    )
    return replace(made, **more)


def run(number: int) -> str:
    return f"{number:032x}"


def promotion(number: int, replaces: int | None) -> Change:
    return Change(
        attempt=attempt(number, replaces),
        source=f"file:///models/{number}",
        run_id=run(number),
        tags={"model": f"model {number}"},
    )


def going_back(number: int, replaces: int, to: int) -> Change:
    return Change(
        attempt=attempt(number, replaces, ROLLED_BACK, version=to),
        source=f"file:///models/{to}",
        run_id=run(to),
        target=to,
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose schema is made: to be copied."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def stored(empty: Path, tmp_path: Path) -> Registry:
    return opened(shutil.copy(empty, tmp_path / "mlflow.db"))


class InMemory(Registry):
    """A registered model in memory, which answers as one in a store does."""

    def __init__(self) -> None:
        vars(self).update(name=NAME, versions={}, made=0, aliases={}, tags={})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # of a client, for example

    def present(self) -> Present:
        return Present(aliases=dict(self.aliases), tags=dict(self.tags))

    def ensure(self) -> None:
        pass

    def find(self, number: int) -> Version | None:
        return self.versions.get(number)

    def pending(self) -> list[Version]:
        return [one for one in self.versions.values() if one.tags.get(STATE) == PENDING]

    def add(
        self, source: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> Version:
        vars(self)["made"] += 1
        self.versions[self.made] = Version(
            number=self.made,
            uri=f"models:/{NAME}/{self.made}",
            source=source,
            run_id=run_id,
            tags=dict(tags),
            age_s=0.0,
        )
        return self.versions[self.made]

    def point(self, alias: str, number: int | None) -> None:
        if number is None:
            self.aliases.pop(alias, None)
        else:
            self.aliases[alias] = self.versions[number].number

    def keep(self, key: str, text: str) -> None:
        self.tags[key] = text

    def mark(self, number: int, state: str, *, without: Sequence[str] = ()) -> None:
        tags = self.versions[number].tags | {STATE: state}
        left = {key: tag for key, tag in tags.items() if key not in without}
        self.versions[number] = replace(self.versions[number], tags=left)

    def drop(self, number: int) -> None:
        self.versions.pop(number, None)
        vars(self)["aliases"] = {key: at for key, at in self.aliases.items() if at != number}


@pytest.fixture
def registry() -> Registry:
    return InMemory()


@pytest.mark.parametrize("kind", ["in memory", "stored"])
def test_a_registry_in_memory_answers_as_a_store_does(
    kind: str, request: pytest.FixtureRequest
) -> None:
    registry = InMemory() if kind == "in memory" else request.getfixturevalue("stored")
    registry.ensure()
    assert registry.present() == Present()
    for number in (1, 2, 3):
        made = registry.add(f"file:///models/{number}", run(number), {STATE: PENDING, "a": "b"})
        assert (made.number, dict(made.tags)) == (number, {STATE: PENDING, "a": "b"})
    registry.point(CHAMPION, 2)
    registry.point(PREVIOUS, 3)
    registry.drop(2)
    registry.drop(2)
    assert registry.find(2) is None
    assert [one.number for one in registry.pending()] == [1, 3]
    registry.mark(1, DONE, without=["a"])
    registry.keep("key", "text")
    assert [one.number for one in registry.pending()] == [3]
    assert (found := registry.find(1))
    assert dict(found.tags) == {STATE: DONE}
    assert registry.present() == Present(aliases={PREVIOUS: 3}, tags={"key": "text"})
    assert registry.add("file:///models/4", run(4), {}).number == 4
    registry.point(PREVIOUS, None)
    assert registry.present().aliases == {}


def opened(database: Path | str) -> Registry:
    return Registry(client=MlflowClient(f"sqlite:///{database}"), name=NAME)


def decisions(registry: Registry) -> list[str]:
    return [one.decision for one in attempts_in(registry.present().tags, registry.name)]


def aliases(registry: Registry) -> dict[str, int]:
    return dict(registry.present().aliases)


def test_the_first_promotion_makes_version_one_champion_and_is_recorded(registry: Registry) -> None:
    assert switch(registry, promotion(1, None)) == 1
    assert aliases(registry) == {CHAMPION: 1}
    version = registry.find(1)
    assert version is not None
    assert (version.tags[STATE], version.tags["model"]) == (DONE, "model 1")
    assert (version.source, version.run_id) == ("file:///models/1", run(1))
    assert attempts_in(registry.present().tags, registry.name) == [attempt(1, None, version=1)]


def test_the_champion_that_was_becomes_previous(registry: Registry) -> None:
    switch(registry, promotion(1, None))
    switch(registry, promotion(2, 1))
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}


def test_going_back_twice_goes_one_further_each_time_and_forth_again_by_number(
    registry: Registry,
) -> None:
    for number in (1, 2, 3):
        switch(registry, promotion(number, number - 1 or None))
    assert switch(registry, going_back(4, 3, to=2)) == 2
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}
    assert switch(registry, going_back(5, 2, to=1)) == 1
    assert aliases(registry) == {CHAMPION: 1}
    assert switch(registry, going_back(6, 1, to=3)) == 3
    assert aliases(registry) == {CHAMPION: 3, PREVIOUS: 2}
    assert decisions(registry) == [PROMOTED] * 3 + [ROLLED_BACK] * 3
    assert registry.pending() == []


def test_a_promoted_challenger_is_challenger_no_longer_but_another_run_stays_so(
    registry: Registry,
) -> None:
    registry.ensure()
    registry.add("file:///models/2", run(2), {})
    registry.point(CHALLENGER, 1)
    switch(registry, promotion(1, None))
    assert aliases(registry) == {CHALLENGER: 1, CHAMPION: 2}
    switch(registry, promotion(2, 2))
    assert aliases(registry) == {CHAMPION: 3, PREVIOUS: 2}


def test_a_predecessor_that_was_deleted_is_not_previous(registry: Registry) -> None:
    for number in (1, 2, 3):
        switch(registry, promotion(number, number - 1 or None))
    registry.drop(1)
    switch(registry, going_back(4, 3, to=2))
    assert aliases(registry) == {CHAMPION: 2}


def test_a_champion_that_changed_since_it_was_judged_against_is_told(registry: Registry) -> None:
    switch(registry, promotion(1, None))
    with pytest.raises(Outrun, match="champion is now version 1, but was .*try again"):
        switch(registry, promotion(2, None))
    assert aliases(registry) == {CHAMPION: 1}
    assert registry.find(2) is None
    assert registry.pending() == []
    assert decisions(registry) == [PROMOTED, REFUSED]


def ticket(registry: Registry, change: Change, holder: str) -> int:
    """A ticket as a process in the middle of `switch` has it out."""
    registry.ensure()
    tags = {
        STATE: PENDING,
        HOLDER: holder,
        REPLACES: str(change.attempt.replaces or ""),
        TARGET: str(change.target or ""),
        ATTEMPT_KEY: change.attempt.key,
        ATTEMPT: to_tag(change.attempt),
    }
    return registry.add(change.source, change.run_id, tags).number


@matrix(8)
def test_a_lower_ticket_of_a_living_process_goes_first(registry: Registry) -> None:
    out = ticket(registry, promotion(1, None), this_process())
    with pytest.raises(
        Outrun, match=f"another promotion is in progress .process {os.getpid()} on "
    ):
        switch(registry, promotion(2, None))
    settle(registry)
    assert [left.number for left in registry.pending()] == [out]
    assert aliases(registry) == {}
    assert decisions(registry) == [REFUSED]


@matrix(8)
def test_a_higher_ticket_waits_for_nobody_to_ask_it(stored: Registry) -> None:
    switch(stored, promotion(1, None))
    change = promotion(2, 1)
    original = stored.client.search_model_versions

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(stored.client, name)

        def search_model_versions(self, *given: Any, **named: Any) -> Any:
            if not later:
                later.append(ticket(stored, promotion(3, 1), this_process()))
            return original(*given, **named)

    later: list[int] = []
    assert switch(replace(stored, client=Client()), change) == 2  # type: ignore[arg-type]
    assert later == [3]
    assert aliases(stored)[CHAMPION] == 2


def test_what_a_killed_process_left_undone_is_undone(registry: Registry) -> None:
    switch(registry, promotion(1, None))
    ticket(registry, promotion(2, 1), DEAD)
    settle(registry)
    assert aliases(registry) == {CHAMPION: 1}
    assert (registry.find(2), registry.pending()) == (None, [])
    assert attempts_in(registry.present().tags, registry.name)[-1] == attempt(
        2, 1, ABANDONED, note=BROKEN_OFF
    )


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({ATTEMPT: "promoted"}, f"its tag {ATTEMPT} cannot be read as an attempt in the ledger"),
        ({TARGET: "one"}, f"its tag {TARGET}=one is not the number of a version"),
    ],
)
def test_a_tag_of_a_ticket_that_somebody_has_changed_is_named(
    tags: dict[str, str], told: str, registry: Registry
) -> None:
    switch(registry, promotion(1, None))
    left = registry.find(ticket(registry, promotion(2, 1), DEAD))
    assert left is not None
    registry.add(left.source, left.run_id, {**left.tags, **tags})
    registry.drop(left.number)
    with pytest.raises(RequestError) as refused:
        settle(registry)
    assert str(refused.value).startswith(f"models:/{NAME}/3: {told}; correct ")


@pytest.mark.parametrize("left", range(1, 13))
def test_what_a_move_left_undone_as_its_store_went_away_keeps_nobody_waiting(
    left: int, registry: Registry
) -> None:
    """As in a notebook, whose process lives on."""
    switch(registry, promotion(1, None))

    class Away:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            if len(asked) > left:
                raise MlflowException("away")
            return getattr(registry, name)

    asked: list[str] = []
    with pytest.raises(MlflowException, match="away"):
        switch(Away(), promotion(2, 1))  # type: ignore[arg-type]
    settle(registry)
    assert registry.pending() == []
    champion = aliases(registry)[CHAMPION]
    new = switch(registry, promotion(3, champion))
    assert aliases(registry) == {CHAMPION: new, PREVIOUS: champion}


def test_what_a_killed_process_had_done_is_completed(registry: Registry) -> None:
    switch(registry, promotion(1, None))
    registry.point(CHAMPION, ticket(registry, promotion(2, 1), DEAD))
    settle(registry)
    assert aliases(registry) == {CHAMPION: 2, PREVIOUS: 1}
    version = registry.find(2)
    assert version is not None
    assert version.tags[STATE] == DONE
    assert decisions(registry) == [PROMOTED, PROMOTED]


def test_a_dead_ticket_is_settled_by_the_next_promotion_itself(registry: Registry) -> None:
    ticket(registry, promotion(1, None), DEAD)
    assert switch(registry, promotion(2, None)) == 2
    assert decisions(registry) == [ABANDONED, PROMOTED]
    assert registry.find(1) is None


def test_a_request_that_was_sent_twice_is_no_rival(registry: Registry) -> None:
    ticket(registry, promotion(1, None), this_process())
    assert switch(registry, promotion(1, None)) == 2
    assert (registry.find(1), registry.pending()) == (None, [])
    assert decisions(registry) == [PROMOTED]


def test_settling_twice_changes_nothing_more(registry: Registry) -> None:
    switch(registry, promotion(1, None))
    ticket(registry, promotion(2, 1), DEAD)
    settle(registry)
    before = registry.present()
    settle(registry)
    assert registry.present() == before


class Interrupted:
    """A client before whose `number`th request of that name something else happens, once."""

    def __init__(self, client: MlflowClient, name: str, number: int, meanwhile: Any) -> None:
        self.client, self.name, self.left, self.meanwhile = client, name, number, meanwhile

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                self.meanwhile()
        return getattr(self.client, name)


def counted_as_dead(registry: Registry, rival: Change) -> None:
    """What another does who finds the one ticket that is out overdue."""
    for out in registry.pending():
        registry.client.set_model_version_tag(NAME, str(out.number), HOLDER, DEAD)
    switch(registry, rival)


LATE = (
    "search_model_versions",  # whether it is its turn
    "get_model_version",  # whether its ticket is still there
    "set_registered_model_alias",  # the request itself is under way for long
)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        *[pytest.param(promotion(4, 3), name, id=f"promotion-{name}") for name in LATE],
        *[
            pytest.param(
                going_back(4, 3, to=2),
                name,
                marks=() if name == LATE[-1] else only_stressed,
                id=f"rollback-{name}",
            )
            for name in LATE
        ],
    ],
)
def test_a_holder_that_was_counted_as_dead_moves_nothing_when_it_comes_back(
    stored: Registry, change: Change, name: str
) -> None:
    for earlier in (1, 2, 3):
        switch(stored, promotion(earlier, earlier - 1 or None))
    late = Interrupted(stored.client, name, 1, lambda: counted_as_dead(stored, promotion(5, 3)))
    # MLflow itself refuses the alias of a version that is gone, in its own words.
    with pytest.raises(
        (Outrun, MlflowException), match="meanwhile|when this was judged|so long|not found"
    ):
        switch(replace(stored, client=late), change)  # type: ignore[arg-type]
    assert aliases(stored) == {CHAMPION: 5, PREVIOUS: 3}
    assert decisions(stored) == [PROMOTED] * 3 + [ABANDONED, PROMOTED]
    assert stored.pending() == []


def test_a_rollback_that_others_completed_is_not_done_again_over_what_came_later(
    stored: Registry,
) -> None:
    for earlier in (1, 2, 3):
        switch(stored, promotion(earlier, earlier - 1 or None))

    def sent_twice() -> None:
        stored.point(CHAMPION, 2)
        counted_as_dead(stored, promotion(5, 2))

    late = Interrupted(stored.client, "set_registered_model_alias", 1, sent_twice)
    with pytest.raises(Outrun, match="so long"):
        switch(replace(stored, client=late), going_back(4, 3, to=2))  # type: ignore[arg-type]
    assert aliases(stored) == {CHAMPION: 5, PREVIOUS: 2}
    assert decisions(stored) == [PROMOTED] * 3 + [ROLLED_BACK, PROMOTED]


def test_one_who_comes_back_to_a_move_that_others_completed_leaves_later_ones_alone(
    stored: Registry,
) -> None:
    switch(stored, promotion(1, None))
    late = Interrupted(
        stored.client,
        "get_registered_model",
        2,  # the first is the look at the champion, this one begins what follows the move
        lambda: counted_as_dead(stored, promotion(3, 2)),
    )
    assert switch(replace(stored, client=late), promotion(2, 1)) == 2  # type: ignore[arg-type]
    assert aliases(stored) == {CHAMPION: 3, PREVIOUS: 2}
    assert decisions(stored) == [PROMOTED] * 3


class Deadly:
    """A client that kills its process after so many requests."""

    def __init__(self, client: MlflowClient, left: int) -> None:
        self.client, self.left = client, left

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            try:
                return getattr(self.client, name)(*given, **named)
            finally:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call


# At every fifth request in `make test`, at every single one in `make stress`.
STEP = 5 // stressed(5, 1)


def kill_at_every_request(start: Path, folder: Path, action: str) -> int:
    """Forks a child for each number of requests after which it kills itself, until one lives."""
    for number in range(1, 60, STEP):
        database = folder / f"{number}.db"
        shutil.copy(start, database)
        child = os.fork()
        if child == 0:
            registry = opened(database)
            ACTIONS[action](replace(registry, client=Deadly(registry.client, number)))  # type: ignore[arg-type]
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            return number
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("it never ends")


ACTIONS = {
    "first promotion": lambda registry: switch(registry, promotion(4, None)),
    "promotion": lambda registry: switch(registry, promotion(4, 3)),
    "rollback": lambda registry: switch(registry, going_back(4, 3, to=2)),
    "settling": settle,
}


def killed_at_every_request(start: Path, folder: Path, action: str) -> list[Path]:
    """A copy of the store for each request after which the action was killed, in order."""
    survived = call_warm(kill_at_every_request, start, folder, action, timeout=240)
    return [folder / f"{number}.db" for number in range(1, survived, STEP)]


@pytest.fixture
def with_three(stored: Registry, tmp_path: Path) -> Path:
    """A store with champion 3, previous 2, and a challenger that is run 4's."""
    for number in (1, 2, 3):
        switch(stored, promotion(number, number - 1 or None))
    stored.point(CHALLENGER, stored.add("file:///models/4", run(4), {}).number)
    return tmp_path / "mlflow.db"


@pytest.mark.parametrize("action", ["promotion", "rollback"])
@matrix(9)
def test_killed_after_any_request_the_champion_is_the_old_or_the_new_and_the_next_one_works(
    action: str, with_three: Path, tmp_path: Path
) -> None:
    new = {"promotion": 5, "rollback": 2}[action]
    before = {3: 2, 2: 1, 5: 3}  # champion: the one it replaced
    stores = killed_at_every_request(with_three, tmp_path, action)
    assert len(stores) >= 10 // STEP
    seen = []
    for database in stores:
        registry = opened(database)
        champion = aliases(registry)[CHAMPION]
        assert champion in (3, new)
        assert registry.find(champion) is not None
        seen.append(champion)
        settle(registry)
        known = aliases(registry)
        assert (known[CHAMPION], known[PREVIOUS]) == (champion, before[champion])
        assert (CHALLENGER in known) == (champion != 5)
        assert registry.pending() == []
        assert decisions(registry)[:3] == [PROMOTED] * 3
        done = {"promotion": PROMOTED, "rollback": ROLLED_BACK}[action]
        assert decisions(registry)[3:] in ([[done]] if champion == new else [[], [ABANDONED]])
        after = switch(registry, promotion(9, champion))
        assert aliases(registry) | {CHALLENGER: 0} == {
            CHAMPION: after,
            PREVIOUS: champion,
            CHALLENGER: 0,
        }
    assert seen == sorted(seen, key=lambda champion: champion == new)
    assert {3, new} == set(seen)


@matrix(9)
def test_a_first_promotion_killed_after_any_request_leaves_a_champion_or_none(
    empty: Path, tmp_path: Path
) -> None:
    seen = set()
    for database in killed_at_every_request(empty, tmp_path, "first promotion"):
        registry = opened(database)
        champion = aliases(registry).get(CHAMPION)
        seen.add(champion)
        settle(registry)
        assert aliases(registry) == ({CHAMPION: 1} if champion else {})
        assert decisions(registry) in ([[PROMOTED]] if champion else [[], [ABANDONED]])
        switch(registry, promotion(9, champion))
        assert decisions(registry)[-1] == PROMOTED
    assert seen == {None, 1}


@pytest.mark.parametrize("committed", [True, False])
@matrix(9)
def test_settling_that_is_killed_itself_is_finished_by_the_next(
    committed: bool, with_three: Path, tmp_path: Path
) -> None:
    left = opened(with_three)
    out = ticket(left, promotion(4, 3), DEAD)
    if committed:
        left.point(CHAMPION, out)
    stores = killed_at_every_request(with_three, tmp_path, "settling")
    assert len(stores) >= 8 // STEP
    for database in stores:
        registry = opened(database)
        settle(registry)
        known = aliases(registry)
        assert (known[CHAMPION], known[PREVIOUS]) == ((out, 3) if committed else (3, 2))
        assert decisions(registry)[3:] == [PROMOTED if committed else ABANDONED]
        assert registry.pending() == []


ROUNDS, RACERS = stressed(8, 3), 3
Told = tuple[int, int, int | None, str]


def race_of_one(racer: int, given: tuple[str, str, str], barrier: Any, answers: Any) -> None:
    """Promotes in every round, at the same time as the others, having read the champion."""
    uri, model, run_id = given
    registry = Registry(client=connect(uri), name=NAME)
    for number in range(ROUNDS):
        settle(registry)
        champion = registry.present().aliases.get(CHAMPION)
        change = replace(promotion(10 * number + racer, champion), source=model, run_id=run_id)
        barrier.wait()
        try:
            answers.put((number, racer, switch(registry, change), ""))
        except PipelineError as error:
            answers.put((number, racer, None, str(error)))
        barrier.wait()


def race(*given: str) -> list[Told]:
    """What each racer was told in each round."""
    context = get_context("fork")
    barrier, answers = context.Barrier(RACERS), context.Queue()
    processes = [
        context.Process(target=race_of_one, args=(racer, given, barrier, answers))
        for racer in range(RACERS)
    ]
    for process in processes:
        process.start()
    told = [answers.get(timeout=120) for _ in range(ROUNDS * RACERS)]
    for process in processes:
        process.join()
    return told


def assert_one_wins_each_round(uri: str) -> None:
    tally(ROUNDS)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    model = client.create_logged_model("0", source_run_id=run_id)
    answers = call_warm(race, uri, model.model_uri, run_id, timeout=240)
    registry = Registry(client=client, name=NAME)
    champions = []
    for number in range(ROUNDS):
        told = [answer for answer in answers if answer[0] == number]
        [won] = [version for _, _, version, _ in told if version is not None]
        champions.append(won)
        for _, _, version, message in told:
            if version is None:
                assert "nothing was changed" in message
                assert "another promotion is in progress" in message or "champion is now" in message
    assert aliases(registry) == {CHAMPION: champions[-1], PREVIOUS: champions[-2]}
    assert champions == sorted(champions)
    kept = [
        one.version for one in attempts_in(registry.present().tags, registry.name) if one.version
    ]
    assert sorted(kept) == champions
    assert decisions(registry).count(PROMOTED) == ROUNDS
    assert decisions(registry).count(REFUSED) == ROUNDS * (RACERS - 1)
    assert registry.pending() == []


@matrix(8)
def test_of_processes_that_promote_at_the_same_time_exactly_one_wins(
    empty: Path, tmp_path: Path
) -> None:
    database = shutil.copy(empty, tmp_path / "mlflow.db")
    assert_one_wins_each_round(f"sqlite:///{database}")


@pytest.fixture
def served(empty: Path, tmp_path: Path) -> Iterator[str]:
    database = Path(shutil.copy(empty, tmp_path / "mlflow.db"))
    with mlflow_server(database) as address:
        yield address


@matrix(8)
def test_through_a_server_too_exactly_one_wins(served: str) -> None:
    assert_one_wins_each_round(served)
