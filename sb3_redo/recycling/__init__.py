"""RECYCLE: redraws incoming weights, clears outgoing weights, and renews the optimizer state of both."""
