//! Cross-entropy of rows of logits, turned into their gradient in place (`cross_entropy.cu`).
