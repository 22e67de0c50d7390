"""The image index over the user's own folder."""
