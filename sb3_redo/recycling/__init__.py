"""RECYCLE: fresh incoming weights, cleared outgoing weights and the optimizer state of both."""
