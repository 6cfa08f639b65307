"""`bita profile`: where an engine's time goes on this device, in figures and pictures."""
