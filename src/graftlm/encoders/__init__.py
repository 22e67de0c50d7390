"""Frozen perception: pictures, texts and other media to feature vectors."""
