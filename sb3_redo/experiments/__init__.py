"""The papers' experiments: sweeps with a page of figures and numbers beside the published ones."""
