"""What the link's commands do: a handler each, see :mod:`.handler`."""
