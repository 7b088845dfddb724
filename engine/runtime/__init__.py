"""Where iterations run: on the host or a device, over tasks and cores."""
