"""tulu_lite: post-training recipes that run."""

__version__ = "0.1.0"
