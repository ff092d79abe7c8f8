"""What commands do: from a name to an image, and runs of it on a target."""
