"""Stand-in."""


def to_tensor(image: object) -> object:
    """Never used."""
    raise NotImplementedError
