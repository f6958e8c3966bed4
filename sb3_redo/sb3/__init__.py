"""ADAPT: everything specific to the algorithms of Stable-Baselines3 and sb3-contrib."""
