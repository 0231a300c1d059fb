"""Fused ragged verification: how many drafts of each request stand, and which token comes next.

Request r owns rows cu[r]..cu[r+1]-1 of the target logits, l[r] = rows - 1; row j judges draft j and
the last row has none. Draft x_j stands if u_j p_d(x_j) < p_t(x_j) and all before it stand; the next
token is drawn from norm(max(0, p_t - p_d)) at the first rejection, else from p_t of the last row
(Leviathan et al. 2023; Chen et al. 2023). The output is distributed as the target's own.
"""
