"""The front door: the command line, and the pipelines that call the stages."""

__version__ = "0.1.0"
