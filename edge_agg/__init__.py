"""The edge agent: raw events in, noisy summaries out. Importing the package imports none of its rooms."""
