"""The papers' experiments: sweeps with a page of figures and numbers beside the published ones.

Experimental: names may change in any release.
"""
