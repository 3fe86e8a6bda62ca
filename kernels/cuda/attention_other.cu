// Attention (attention.cu) for heads of other sizes, filled up with zeros to 32, 192 or 256 (or to 64, 96, 128).
#include "attention_backward.cuh"
#include "attention_forward.cuh"

ATTENTION_FORWARD(32, 64, 2, 4)
ATTENTION_DQ(32, 64, 2, 4)
ATTENTION_DKV(32, 64, 8)
ATTENTION_FORWARD(192, 64, 1, 8)
ATTENTION_DQ(192, 32, 1, 4)
ATTENTION_DKV_APART(192, 32, 4)
ATTENTION_FORWARD(256, 32, 1, 8)
ATTENTION_DQ(256, 16, 1, 4)
ATTENTION_DKV_APART(256, 16, 4)
