"""The one seam to MLflow: nothing else imports it.

`store` finds the tracking server and experiment, `lifecycle` opens and closes a run, `recording`
writes to it, `recorded` reads one.
"""

import os

# Heeded when mlflow is imported: its notes on migrations and the like are not for users.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what users do is theirs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "false"

from pipeline.tracking.lifecycle import record
from pipeline.tracking.recorded import RecordedRun, find_run, reopen
from pipeline.tracking.recording import Recording

__all__ = ["RecordedRun", "Recording", "find_run", "record", "reopen"]
