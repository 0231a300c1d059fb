"""Rotary embedding of new queries and keys, and storing keys and values, in one launch.

Token t's queries come out rotated; its rotated keys and plain values go to cache row ``rows[t]``.
With (l, r) the halves of a head and (c, s) cosine and sine of the token's angles: l' = l c - r s,
r' = r c + l s. In eager torch this is a dozen small launches a layer, more time than the attention.
"""
