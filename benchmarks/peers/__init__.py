"""The competitors: the same models as others write, compute and train them, from the same initial weights."""
