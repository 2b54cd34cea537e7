"""Framework-neutral core: block graphs, masks, allocation, policies, metrics, checkpoints."""

__version__ = "0.1.0"
