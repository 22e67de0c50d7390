"""The frozen language model: one call, one decode loop, any decoder."""
