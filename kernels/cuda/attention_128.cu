// Attention (attention.cu) for heads of 128.
#include "attention_backward.cuh"
#include "attention_forward.cuh"

ATTENTION_FORWARD(128, 64, 2, 4)
ATTENTION_DQ(128, 32, 2, 4)
ATTENTION_DKV(128, 32, 8)
