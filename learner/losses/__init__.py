"""The policy's losses, one module each: its class ``Loss`` is found by the module's name. ``base`` is the interface."""
