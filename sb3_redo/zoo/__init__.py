"""The RL Zoo: its saved agents, its names of policies, and its commands with our algorithms."""
