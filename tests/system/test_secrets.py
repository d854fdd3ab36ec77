from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml

from pipeline.system import secrets
from pipeline.system.secrets import (
    hide,
    hide_files,
    hide_in_place,
    hide_param,
    hide_value,
    hide_word,
    is_secret,
    learn,
    may_stand_for,
)
from tests.stress.matrix import matrix

CANARY = "c4n4ry-5ecret"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test has taught is forgotten, and the streams are as before."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(secrets, "known_secrets", set())
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize(
    "key",
    [
        *("password", "tracking.tags.api_key", "apiToken", "+hydra.launcher.auth.secret"),
        *("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "pwd", "client-secret", "key"),
        *("PGPASSWORD", "sslpassword", "dbpasswd", "clientsecret.value"),
    ],
)
def test_a_key_that_says_so_is_secret(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize(
    "key", ["optimizer.learning_rate", "keyword", "seed", "monkey", "num_tokenizer", "passed"]
)
def test_other_keys_are_not(key: str) -> None:
    assert not is_secret(key)


@pytest.mark.parametrize(
    "word",
    [
        f"tracking.uri=http://me:{CANARY}@host:5000/x",
        f"tracking.uri=https://{CANARY}@host/x",
        f"git+HTTPS://{CANARY}@host/x",
        f"tracking.uri=https://{CANARY}:x-oauth-basic@host/x",
        f"sweep.storage=postgresql+psycopg2://me:{CANARY}@db/x",
        f"+dataset.url=https://host/x?token={CANARY}&size=3",
        f"+tracking.tags.token={CANARY}",
        f"++tracking.tags={{password:{CANARY},a:b}}",
        f"tracking.tags={{'api_key': '{CANARY}'}}",
        f"--password={CANARY}",
        f"sweep.storage=postgresql://db/x?user=me&sslpassword={CANARY}",
        f"tracking.uri=mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D{CANARY}%3BEncrypt%3Dyes",
    ],
)
@matrix(44)
def test_a_secret_is_hidden_in_words_and_wherever_its_text_occurs_afterwards(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    assert CANARY not in hide_word(word)
    learn([word])
    assert hide(f"failed: ({CANARY})") == "failed: (***)"
    print(f"error at {CANARY}")
    assert CANARY not in printed.getvalue()
    line = logging.getLogRecordFactory()("x", 20, "", 1, "to %s", (CANARY,), None)
    assert line.getMessage() == "to ***"


def test_a_malformed_call_of_the_log_ends_nothing_and_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    learn([f"--password={CANARY}"])
    handler = logging.StreamHandler(io.StringIO())
    log = logging.Logger("theirs")
    log.addHandler(handler)
    for malformed in (("accuracy", 0.9), (f"at {CANARY}", CANARY)):
        log.info(*malformed)
    said = printed.getvalue()
    assert "Logging error" in said
    assert "Message: 'at ***'" in said
    assert CANARY not in said


def test_what_is_not_secret_stays() -> None:
    words = ["train.epochs=3", "model.hidden=[64,32]", "tracking.run_name=a key: to it"]
    assert [hide_word(word) for word in words[:2]] == words[:2]
    document = {"a": 1, "b": ["x", None], "c": {"d": True}}
    assert hide_value("", document) == document
    assert hide("at http://host:5000/#/experiments?a=b") == "at http://host:5000/#/experiments?a=b"


def test_a_configuration_is_hidden_by_its_keys_at_any_depth() -> None:
    shown = hide_value("", {"tags": {"token": "abc", "pin": 3}, "secrets": {"a": ["b"]}, "n": 1})
    assert shown == {"tags": {"token": "***", "pin": 3}, "secrets": {"a": ["***"]}, "n": 1}


@pytest.mark.parametrize("value", [64, 0.5, None, True, -3])
def test_a_number_under_a_key_that_only_sounds_secret_is_a_setting(value: object) -> None:
    assert hide_value("", {"model": {"token_dim": value}}) == {"model": {"token_dim": value}}


def test_a_number_is_hidden_as_a_password_and_a_long_one_as_a_token() -> None:
    assert hide_value("", {"db": {"password": 1234}}) == {"db": {"password": "***"}}
    assert hide_value("dataset.token", 1234567890) == "***"


@pytest.mark.parametrize(
    "document",
    [
        *({"db": {"password": 12.5}}, {"db_pass": 123456}, {"credentials": {"pin": 1234}}),
        *({"secrets": [12, 0.5]}, {"auth": {"user_id": 7, "password": 1234}}),
        *({"password": date(2024, 1, 1)}, {"password": {"token": 64}}),
    ],
)
def test_a_number_is_hidden_under_every_name_of_a_password(document: dict[str, object]) -> None:
    shown = str(hide_value("", document))
    assert "***" in shown
    assert not re.search(r"12|0\.5|2024|64", shown)


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        *(("model.token_dim", "64", "64"), ("model.token_dims", "[32, 64]", "[32, 64]")),
        *(("model.token_dim", "32,64", "32,64"), ("api_token", "null", "null")),
        *(("model.token", "True", "True"), ("token_dim", "1_000", "1_000"), ("token", ".5", ".5")),
        ("model.token", "shuffle(True,False)", "shuffle(True,False)"),
        ("token_dim", "range(start=8,stop=64)", "range(start=8,stop=64)"),
        ("+model.options", "{token_dim: 64}", "{token_dim: 64}"),
        ("+model.options", '{"token_dim": 64}', '{"token_dim": 64}'),
        ("+model.options", '{api_key: "12345678"}', '{api_key: "***"}'),
        ("+model.options", "{db_password: 64}", "{db_password: ***}"),
        ("+model.token_rate", "tag(log,interval(1e-4,0.1))", "tag(log,interval(1e-4,0.1))"),
        *(("token_dim", "shuffle(range(8,64,8))", "shuffle(range(8,64,8))"), ("seed", "3", "3")),
        *(("dataset.db_pass", "123456", "***"), ("dataset.credentials.port", "5432", "***")),
        *(("dataset.password", "12.5", "***"), ("dataset.password", "1,2", "***")),
        *(("dataset.api_key", '"12345678"', "***"), ("dataset.api_key", "1234567890", "***")),
        *(("dataset.api_key", f"1,{CANARY}", "***"), ("dataset.api_key", "hunter(2)", "***")),
        ("dataset.url", f"https://me:{CANARY}@host", "https://me:***@host"),
    ],
)
def test_a_parameter_is_hidden_in_a_command_as_in_a_record(key: str, text: str, shown: str) -> None:
    assert hide_param(key, text) == shown
    assert hide_word(f"{key}={text}") == f"{key}={shown}"


def test_the_settings_of_a_command_are_not_learnt() -> None:
    learn(
        ["model.token_dim=shuffle(32,64)", "model.token_dims=[32,64]", "token_dim=interval(8,64)"]
    )
    for text in ("model.width=shuffle(32,64)", "model.hidden=[32,64]", "width=interval(8,64)"):
        assert hide(text) == text


def test_nor_are_those_of_a_file() -> None:
    learn({"params": {"model.token_dim": "32,64", "optimizer.token_rate": "0.001,0.01"}})
    assert secrets.known_secrets == set()


def test_an_address_whose_parts_sound_secret_is_no_key() -> None:
    learn(f"postgresql://mlflow:{CANARY}_password@auth-db/mlflow?connect_timeout=10")
    assert hide(f"password {CANARY}_password refused") == "password *** refused"


@pytest.mark.parametrize(
    ("shown", "text", "may"),
    [
        *(("***", "any\nthing", True), ("a(b", "a(b", True), ("a.b", "acb", False)),
        ("postgresql://***@db/x", "postgresql://me@db/x", True),
        ("postgresql://***@db/x", "postgresql://me@other/x", False),
    ],
)
def test_what_is_hidden_may_stand_for_any_text_in_its_place(
    shown: str, text: str, may: bool
) -> None:
    assert may_stand_for(shown, text) is may


@matrix(44)
def test_files_of_hydra_are_rewritten_only_where_they_hold_a_secret(tmp_path: Path) -> None:
    plain, secret = tmp_path / "a.yaml", tmp_path / "b.yaml"
    plain.write_text("a:   1 # as it was\n")
    secret.write_text(f"- tracking.uri=http://me:{CANARY}@host\n- +tracking.tags.token=x\n")
    hide_files([plain, secret, tmp_path / "missing.yaml"])
    assert plain.read_text() == "a:   1 # as it was\n"
    assert yaml.safe_load(secret.read_text()) == [
        "tracking.uri=http://me:***@host",
        "+tracking.tags.token=***",
    ]


def test_the_environment_is_learnt_but_for_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    monkeypatch.setenv("PWD", "/some/where")
    secrets.learn_environment()
    assert hide(f"{CANARY} in /some/where") == "*** in /some/where"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("AUTH_ENABLED", "false"), ("SECRET_NAME", "Default"), ("AUTH_TYPE", "Bearer")),
        *(("POSTGRES_PASSWORD", "mlflow"), ("TOKEN_LIFETIME", "86400"), ("AUTH_SCALE", "0.0001")),
    ],
)
def test_a_setting_under_the_name_of_a_secret_is_not_replaced_wherever_it_occurs(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    secrets.learn_environment()
    assert hide(f"a: {value}, b: 2") == f"a: {value}, b: 2"
    assert hide_value("", {name: value}) == {name: "***"}


@pytest.mark.parametrize("value", ["hunter", "changeme", "1234567890", "3.14-pie"])
def test_a_weak_password_is_hidden_wherever_it_occurs(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", value)
    secrets.learn_environment()
    assert hide(f"login with {value}!") == "login with ***!"


def test_a_log_line_without_a_secret_keeps_its_arguments() -> None:
    learn(f"token={CANARY}")
    line = logging.getLogRecordFactory()("x", 20, "", 1, "%s of %s", ("GET", "/"), None)
    assert line.args == ("GET", "/")


def test_a_place_keeps_its_name_though_a_secret_has_the_same_letters() -> None:
    learn(f"postgresql://me:{CANARY}@db")
    assert hide_in_place(f"/home/{CANARY}/outputs") == f"/home/{CANARY}/outputs"
    assert hide_in_place(f"s3://{CANARY}/runs") == f"s3://{CANARY}/runs"
    assert hide_in_place(f"ftp://me:{CANARY}@host/runs") == "ftp://me:***@host/runs"
    assert hide_in_place(f"multirun/token={CANARY}") == "multirun/token=***"


def test_a_password_with_a_slash_is_hidden_in_its_address_and_elsewhere() -> None:
    learn("store at postgresql://me:pass/word@db/runs")
    assert hide("postgresql://you:s/ame@db") == "postgresql://you:***@db"
    assert hide("no login with pass/word") == "no login with ***"


@pytest.mark.parametrize(
    "password",
    [
        *("o'brien12", 'qu"oted12', "a<b>cdef1", "sl/ash'ed1", "two words", "a /b@c d1"),
        *("ha#sh12", "ma?rk12", "open[12", "shut]12"),
    ],
)
@pytest.mark.parametrize("word", ["{}", "tracking.uri={}", "+tracking.uri='{}'"])
@matrix(44)
def test_a_password_of_any_characters_is_hidden_in_its_address_and_elsewhere(
    word: str, password: str
) -> None:
    written = word.format(f"postgresql://me:{password}@db/runs")
    assert hide_word(written) == word.format("postgresql://me:***@db/runs")
    assert hide_in_place(written) == word.format("postgresql://me:***@db/runs")
    learn(written)
    assert hide(f"no login with {password}") == "no login with ***"


def test_a_secret_that_ends_in_a_line_break_is_hidden_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{CANARY}\n")
    secrets.learn_environment()
    assert hide(f"in header value: {f'Bearer {CANARY}' + chr(10)!r}") == (
        "in header value: 'Bearer ***\\n'"
    )


def test_a_quote_ends_an_address_within_a_text() -> None:
    for text in (
        '<a href="http://host:5000">me@work</a>',
        "['http://host:5000', 'me@work']",
        "at 'http://host:5000/x' by me@work",
    ):
        learn(text)
        assert hide(text) == text


def test_a_password_may_begin_like_a_port_but_an_address_in_brackets_holds_none() -> None:
    learn("postgresql://me:2024/secret@db/runs")
    learn("http://[::1]:5000/team@work")
    assert secrets.known_secrets == {"2024/secret"}


@pytest.mark.parametrize(
    "place",
    [
        "wasbs://a-container-of-many-pictures@account.blob.core.windows.net/runs",
        "abfss://pictures@account.dfs.core.windows.net/runs",
        "sftp://someone@host/runs",
        "postgresql://someone@db/mlflow",
    ],
)
def test_a_container_or_a_user_without_a_password_is_no_secret(place: str) -> None:
    learn(place)
    assert hide_in_place(place) == hide(place) == place
    assert hide("someone keeps pictures") == "someone keeps pictures"


def test_a_password_that_is_the_name_of_its_user_is_hidden_only_in_the_address() -> None:
    learn("postgresql://mlflow:mlflow@db/mlflow")
    assert hide("at mlflow in /home/mlflow") == "at mlflow in /home/mlflow"
    assert hide("postgresql://mlflow:mlflow@db") == "postgresql://mlflow:***@db"
