"""`predict`: the classes of pictures."""
