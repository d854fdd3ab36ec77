"""The one seam to MLflow: nothing else imports it.

`store` finds the tracking server and experiment, `recording` writes a run, `recorded` reads one.
"""

from pipeline.tracking.recorded import RecordedRun, find_run
from pipeline.tracking.recording import Recording, record

__all__ = ["RecordedRun", "Recording", "find_run", "record"]
