"""From files on disk to the `Split`s that a model sees."""
