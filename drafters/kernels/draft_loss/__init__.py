"""Training loss of draft rows against the target's whole distribution, and its gradient in place.

For row i with draft law p = softmax(logits_i) and target law q = softmax(target_logits[rows_i]):
CE = -log p[label] (or -sum q log p where ``soft``), L1 = sum |p - q|, and
d (a_ce CE + a_l1 L1) / d logit_v = a_ce (p_v - goal_v) + a_l1 p_v (s_v - sum_u s_u p_u) with
s = sign(p - q) and goal the label's point mass, or q. The gradient takes the logits' place, as in
Liger-Kernel's cross entropy, so that no second [n, V] tensor is ever written.
"""
