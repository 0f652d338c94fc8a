"""One file a runtime; imported only in the measuring process."""
