"""`bita profile`: measure how an engine spends its time on this device; report and plot it."""
