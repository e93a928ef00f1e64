"""retarget: trained model in, verified artifacts out."""

__version__ = "0.1.0"
