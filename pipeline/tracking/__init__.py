"""The one seam to MLflow: nothing else imports it.

`values` says what a run is to us, `client` finds the tracking server and experiment, `lifecycle`
opens and closes a run, `recording` writes to it, `runs` finds those that were recorded.
"""
