"""The only interface to MLflow: no other room imports it.

`values` defines our view of a run and the names of tags, `client` finds the tracking server and
experiment (at `addresses`), `lifecycle` opens and closes a run (`heartbeat`, `orphans`).
`recording` writes to its `journal`, with its `origin` and `lineage`, and `delivery` sends that on.
`runs` finds recorded runs, `models` and `registry` their models. `ui` is `make ui`.
"""
