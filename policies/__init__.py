"""Verification policies: how many draft tokens each request sends to the target. numpy only."""
