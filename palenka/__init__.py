"""The front door: the command line, and the pipelines that call the stages."""
