"""The version of the package, read by setup.py and by `prompt-tuning --version`."""

__version__ = '0.1.0'
