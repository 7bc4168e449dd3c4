"""Stand-in."""


class VisionDataset:
    """Never used."""
