"""The one seam to MLflow: nothing else imports it.

`store` finds the tracking server and experiment, `lifecycle` opens and closes a run, `recording`
writes to it, `recorded` reads one.
"""

import os

# Heeded when mlflow is imported: its notes on migrations and the like are not for users.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what users do is theirs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one a file
os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "false"

from pipeline.tracking.lifecycle import record
from pipeline.tracking.recorded import Entry, RecordedRun, find_entry, find_run, reopen
from pipeline.tracking.recording import LONGEST_PARAM, Recording

__all__ = [
    "LONGEST_PARAM",
    "Entry",
    "RecordedRun",
    "Recording",
    "find_entry",
    "find_run",
    "record",
    "reopen",
]
