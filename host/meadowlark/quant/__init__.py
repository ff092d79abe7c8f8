"""Float model -> integer model, and the golden model that runs it."""
