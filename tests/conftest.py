"""What every test begins with."""

import os

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it: tables are as wide as a user would see them
