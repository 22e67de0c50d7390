"""The image index over the user's own folder."""

from graftlm.index.image_index import ImageIndex

__all__ = ["ImageIndex"]
