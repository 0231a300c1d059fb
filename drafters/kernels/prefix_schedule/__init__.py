"""The ranking half of a policy on the device: spend a budget on the likeliest draft prefixes.

S[r, j] = product of c[r, i] for i <= j; the B largest are verified, ties going to the lower
position, then the lower row, so that no choice depends on a token's value. S falls along j, hence
each request gets a prefix.
"""
