"""Scripts of a page each, to be read and changed: ``python -m engine.examples.sinusoid``."""
