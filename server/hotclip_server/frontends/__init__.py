"""Processes that take the calls: they parse, prepare and answer; one other owns the device."""
