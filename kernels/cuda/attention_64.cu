// Attention (attention.cu) for heads of 64.
#include "attention_backward.cuh"
#include "attention_forward.cuh"

ATTENTION_FORWARD(64, 64, 2, 4)
ATTENTION_DQ(64, 32, 2, 4)
ATTENTION_DKV(64, 64, 8)
