"""The HTML pages about runs, data sets, audits and drift: each is one file."""
