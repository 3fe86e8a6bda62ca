//! Gathering, copying and casting rows (`rows.cu`).
