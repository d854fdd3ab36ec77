"""`promote`, `rollback` and `history`: which model is the champion."""
