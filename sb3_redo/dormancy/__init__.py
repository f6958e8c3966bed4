"""MEASURE: dormancy scores of every layer on one batch, and the report of them."""
