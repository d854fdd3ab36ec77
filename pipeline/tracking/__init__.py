"""The only interface to MLflow: no other room imports it.

`values` defines our view of a run, `client` finds the tracking server and experiment, `lifecycle`
opens and closes a run, `recording` writes to it, `runs` finds recorded runs.
"""
