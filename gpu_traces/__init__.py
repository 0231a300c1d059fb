"""What was measured or published: trace bundles, latency models, reference data."""
