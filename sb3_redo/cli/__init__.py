"""The command line, ``sb3-redo``."""
