"""Tables of drafts: made, kept in files, and measured."""
