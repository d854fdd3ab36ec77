"""A configuration as flat parameters, and as a checksum: what a result depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from pipeline.config.requests import REQUESTS
from pipeline.config.schema import Config

# No result depends on these.
NOT_PARAMS = {"tracking", "sweep", "choices", "data_dir", "run_id", *REQUESTS}


def flatten(config: Config) -> dict[str, str]:
    """The configuration as MLflow parameters, `optimizer.learning_rate` → `0.001`.

    Values are written as an override on the command line would be.
    """
    params: dict[str, str] = {}
    for group, values in asdict(config).items():
        if group not in NOT_PARAMS:
            named = values if isinstance(values, dict) else {"": values}
            for key, value in named.items():
                if key != "_target_":
                    name = f"{group}.{key}".rstrip(".")
                    params[name] = value if isinstance(value, str) else json.dumps(value)
    return params


def config_sha256(config: Config) -> str:
    """SHA-256 (hex) of all that a result depends on, the builders' names included."""
    parts = {key: value for key, value in asdict(config).items() if key not in NOT_PARAMS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
