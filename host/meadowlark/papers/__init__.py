"""The papers' mechanisms, each measured against its own baseline."""
