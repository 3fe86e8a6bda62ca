//! Rotary position embedding (`rope.cu`).
