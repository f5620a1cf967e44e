"""Forward operators: what an instrument does to an image."""
