"""The image operators: the laws over the registry, then closed-form truth, then behaviour."""
