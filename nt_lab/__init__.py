"""The laboratory: the command line ``nt``, data, runs and comparisons. Frameworks are imported lazily."""
