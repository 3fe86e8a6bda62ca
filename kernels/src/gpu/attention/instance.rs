//! The kernels that are there for a size of heads, and what they are launched with.

/// One kernel.
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) warps: u32,
    /// Bytes of shared memory.
    pub(super) shared: u32,
    /// Blocks that share a tile of the plan.
    pub(super) parts: u32,
}

/// The kernels for heads of up to `width`.
pub(super) struct Instance {
    width: usize,
    pub(super) forward: Kernel,
    pub(super) dq: Kernel,
    pub(super) dkv: Kernel,
}

/// Rows of a plan's tile.
const TILE: u32 = 128;

/// The numbers of an instance in `attention_*.cu`: keys of a forward tile and its warps; queries, keys and warps of a
/// dq tile; keys, queries and warps of a dkv tile, and whether dk and dv take blocks of their own.
macro_rules! instance {
    ($width:literal, [$fk:literal, $fw:literal], [$qq:literal, $qk:literal, $qw:literal],
     [$kk:literal, $kq:literal, $kw:literal, $apart:literal]) => {
        Instance {
            width: $width,
            // Q, K and V.
            forward: Kernel {
                name: concat!("attention_forward_", $width),
                warps: $fw,
                shared: (TILE + 2 * $fk) * $width * 2,
                parts: 1,
            },
            // Q and dO, K and V in two stages, a pair of f32 per query.
            dq: Kernel {
                name: concat!("attention_dq_", $width),
                warps: $qw,
                shared: (2 * $qq + 4 * $qk) * $width * 2 + $qq * 8,
                parts: TILE / $qq,
            },
            // K and V, Q and dO in two stages, three numbers per query in two stages.
            dkv: Kernel {
                name: concat!("attention_dkv_", $width),
                warps: $kw,
                shared: (2 * $kk + 4 * $kq) * $width * 2 + 2 * $kq * 12,
                parts: TILE / $kk * if $apart { 2 } else { 1 },
            },
        }
    };
}

const LIST: [Instance; 6] = [
    instance!(32, [64, 4], [128, 64, 4], [128, 64, 8, false]),
    instance!(64, [64, 4], [128, 32, 4], [128, 64, 8, false]),
    instance!(96, [64, 4], [128, 32, 4], [128, 64, 8, false]),
    instance!(128, [64, 4], [128, 32, 4], [128, 32, 8, false]),
    instance!(192, [64, 8], [64, 32, 4], [64, 32, 4, true]),
    instance!(256, [32, 8], [64, 16, 4], [64, 16, 4, true]),
];

static INSTANCES: [Instance; LIST.len()] = LIST;

/// What a block of any GPU from `sm_80` on may have: 99 KiB on `sm_86` and `sm_89`.
const SHARED: u32 = 99 << 10;
const _: () = {
    let mut i = 0;
    while i < LIST.len() {
        let Instance { forward, dq, dkv, .. } = &LIST[i];
        assert!(forward.shared <= SHARED && dq.shared <= SHARED && dkv.shared <= SHARED);
        i += 1;
    }
};

impl Instance {
    /// The narrowest that holds heads of `head_dim`, which is at most 256.
    pub(super) fn of(head_dim: usize) -> &'static Self {
        let at = INSTANCES.iter().position(|i| i.width >= head_dim);
        &INSTANCES[at.unwrap_or(INSTANCES.len() - 1)]
    }
}
