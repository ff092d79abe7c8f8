"""Integer model -> image of a board, and what can be said of an image without running it."""
