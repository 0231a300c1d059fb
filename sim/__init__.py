"""Discrete-event simulation of speculative decoding under production traffic."""
