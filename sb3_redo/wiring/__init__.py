"""READ: which neurons a network has and what each of them feeds, found by asking the network."""
