"""The versions and aliases of a registered model, and the tags that hold its ledger.

Each alias, tag or version is set by one request, which the store executes atomically; `mark`,
`describe` and `attached` make several.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from pipeline.config.schema import Tracking
from pipeline.system.secrets import hide
from pipeline.tracking.client import connect, fetch, made_once
from pipeline.tracking.values import (
    ATTEMPT,
    HOLDER,
    LEDGER,
    LONGEST_DESCRIPTION,
    PENDING,
    SAVED_MODEL,
    SIGNED,
    STATE,
    Present,
    Version,
    is_written_by_hand,
    registered_name,
    shortened,
)

# Tags of a ticket that are read back; the texts of users in them are hidden by who writes them.
_READ_BACK = (ATTEMPT, HOLDER)


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The registered model `name`."""

    client: MlflowClient
    name: str

    def present(self) -> Present:
        """Reads aliases and tags; both are empty if there is no such registered model."""
        try:
            model = self.client.get_registered_model(self.name)
        except MlflowException as error:
            _allow(error, RESOURCE_DOES_NOT_EXIST)
            return Present()
        aliases = {alias: int(number) for alias, number in model.aliases.items()}
        return Present(aliases=aliases, tags=model.tags, description=model.description or "")

    def ensure(self) -> None:
        """Creates the registered model if it does not exist."""
        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            _allow(error, RESOURCE_ALREADY_EXISTS)

    def find(self, number: int) -> Version | None:
        """The version with that number, or None."""
        try:
            return _version(self.client.get_model_version(self.name, str(number)))
        except MlflowException as error:
            _allow(error, RESOURCE_DOES_NOT_EXIST)
            return None

    def pending(self) -> list[Version]:
        """The tickets of moves in progress, lowest number first."""
        where = f"name = '{self.name}' AND tags.`{STATE}` = '{PENDING}'"
        found, token = [], None
        while True:
            page = self.client.search_model_versions(where, page_token=token)
            found += [_version(version) for version in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: version.number)

    def of_run(self, run_id: str) -> list[Version]:
        """The versions with a run's model, newest first."""
        found = self.client.search_model_versions(f"name = '{self.name}' AND run_id = '{run_id}'")
        return sorted(map(_version, found), key=lambda version: -version.number)

    def add(
        self, source: str, run_id: str, tags: Mapping[str, str], description: str = ""
    ) -> Version:
        """Creates a version. Numbers grow and are never reused; a long description is shortened."""
        logged = SAVED_MODEL.fullmatch(source)
        tags = {key: text if key in _READ_BACK else hide(text) for key, text in tags.items()}

        def make() -> Version:
            made = self.client.create_model_version(
                self.name,
                source,
                run_id=run_id,
                tags=dict(tags),
                description=_signed(description) if description else None,
                await_creation_for=0,
                model_id=logged["model_id"] if logged else None,  # required by servers
            )
            return _version(made)

        def find() -> Version | None:
            same = (one for one in self.of_run(run_id) if dict(one.tags) == dict(tags))
            return next(same, None)

        return made_once(make, find)

    def point(self, alias: str, number: int | None) -> None:
        """Sets an alias, or removes it for None; MLflow refuses a deleted version."""
        if number is None:
            self.client.delete_registered_model_alias(self.name, alias)
        else:
            self.client.set_registered_model_alias(self.name, alias, str(number))

    def keep(self, key: str, text: str) -> None:
        """Sets a tag of the registered model."""
        self.client.set_registered_model_tag(
            self.name, key, text if key.startswith(LEDGER) else hide(text)
        )

    def describe(self, text: str) -> None:
        """Sets the registered model's description, in Markdown, unless the user has written one.

        A text that is too long for a database is shortened.
        """
        text, present = _signed(text), self.present().description
        if present != text and not is_written_by_hand(present):
            self.client.update_registered_model(self.name, text)

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Logs a text as an artefact of the run of a version."""
        self.client.log_text(run_id, hide(text), name)

    def attached(self, run_id: str, name: str) -> str | None:
        """The text of such an artefact, None if the run or the artefact is gone."""
        try:
            address = f"{self.client.get_run(run_id).info.artifact_uri}/{name}"
            return fetch(address).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None

    def mark(self, number: int, state: str, *, without: Sequence[str] = ()) -> None:
        """Sets the state of a version, then removes tags."""
        self.client.set_model_version_tag(self.name, str(number), STATE, state)
        for key in without:
            self.client.delete_model_version_tag(self.name, str(number), key)

    def drop(self, number: int) -> None:
        """Deletes a version, if it exists."""
        try:
            self.client.delete_model_version(self.name, str(number))
        except MlflowException as error:
            _allow(error, RESOURCE_DOES_NOT_EXIST)


def open_registry(tracking: Tracking, dataset: str) -> Registry:
    """Opens the registered model of a data set in the tracking store.

    Raises:
        RequestError: the store cannot be used.
    """
    return Registry(client=connect(tracking.uri), name=registered_name(dataset))


def _signed(text: str) -> str:
    return shortened(hide(text), LONGEST_DESCRIPTION - len(SIGNED)) + SIGNED


def _version(found: ModelVersion) -> Version:
    return Version(
        number=int(found.version),
        uri=f"models:/{found.name}/{found.version}",
        source=str(found.source),
        run_id=str(found.run_id or ""),
        tags=found.tags,
        age_s=time.time() - found.creation_timestamp / 1000,
    )


def _allow(error: MlflowException, code: int) -> None:
    if error.error_code != ErrorCode.Name(code):
        raise error
