"""The one seam to MLflow: nothing else imports it.

`values` says what a run is to us, `client` finds the tracking server and experiment, `lifecycle`
opens and closes a run, `recording` writes to it, `runs` finds those that were recorded.
"""

import os

# Heeded when mlflow is imported: its notes on migrations and the like are not for users.
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what users do is theirs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one a file
os.environ["MLFLOW_TRUNCATE_LONG_VALUES"] = "false"
