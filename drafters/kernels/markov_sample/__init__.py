"""DSpark's sequential head: draw gamma tokens in a chain from base logits plus a transition bias.

For k = 0..gamma-1, with prev the anchor or the token drawn before:

    logits_k = U_k + W2 W1[prev],  x_k ~ softmax(logits_k / T),
    c_k = sigmoid(w [h_k ; W1[prev]] + b)
"""
