"""A configuration as flat parameters, and the checksum of what a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from typing import Any

from pipeline.config.builders import GROUPS, added_to, first_name
from pipeline.config.schema import ADDED, Config
from pipeline.system.secrets import hide_value

# No result depends on these.
NOT_PARAMS = {"trusted_modules", "ingest", "tracking", "sweep", "choices", "data_dir", "run_id"}


def flatten(config: Config) -> dict[str, str]:
    """The configuration as MLflow parameters, `optimizer.learning_rate` → `0.001`."""
    return _flat(asdict(config))


def shown_params(config: Config) -> dict[str, str]:
    """The parameters as `flatten` makes them, without secrets."""
    return _flat(hide_value("", asdict(config)))


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    params: dict[str, str] = {}
    for group, values in settings.items():
        if group not in NOT_PARAMS:
            named = values if isinstance(values, dict) else {"": values}
            for key, value in named.items():
                if key != "_target_":
                    name = f"{group}.{key}".rstrip(".")
                    params[name] = as_param(value)
    return params


def as_param(value: Any) -> str:
    """A value as text, both for MLflow and for an override on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def config_sha256(config: Config) -> str:
    """SHA-256 (hex) of everything that a result depends on, including the builders' names.

    Checksums of earlier versions stay valid: builders are included by their first name, and keys
    added since then only if their value differs from the earlier behaviour.
    """
    parts = {key: value for key, value in asdict(config).items() if key not in NOT_PARAMS}
    for group in GROUPS:
        added = added_to(group, parts[group])
        as_before = {key for key, value in added.items() if parts[group].get(key) == value}
        parts[group] = {key: parts[group][key] for key in parts[group].keys() - as_before}
        parts[group] |= {"_target_": first_name(parts[group]["_target_"])}
    for name, value in ADDED.items():
        *groups, key = name.split(".")
        inside = reduce(lambda outer, group: outer.get(group, {}), groups, parts)
        if key in inside and inside[key] == value:
            del inside[key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
