"""ADAPT: all that is known of the algorithms of Stable-Baselines3 and sb3-contrib."""
