"""ACT: callbacks that measure and recycle between the gradient steps of a training."""
