"""The papers' experiments: sweeps, with a page of figures and a comparison with published numbers.

Experimental: names may change in any release.
"""
