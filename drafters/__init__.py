"""Real models: targets, drafters, training, calibration, the live decode loop, the trace recorder."""
