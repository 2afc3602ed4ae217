"""Training: configurations, runs, and what comes of them; needs ``molkern[train]``.

>>> from molkern.training.config import read_config
>>> config = read_config("schnet-ethanol-small")
>>> config.model["name"], config.training.batch_size
('SchNet', 32)
"""
