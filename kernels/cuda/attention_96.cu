// Attention (attention.cu) for heads of 96.
#include "attention_backward.cuh"
#include "attention_forward.cuh"

ATTENTION_FORWARD(96, 64, 2, 4)
ATTENTION_DQ(96, 32, 2, 4)
ATTENTION_DKV(96, 64, 8)
