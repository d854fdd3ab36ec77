"""`doctor`: what is broken here and how to mend it."""
